"""Loading and saving of detectors with Detectron2's checkpointer, norton checkpoints included."""

import json
import logging
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..checkpoint.load import load_weights
from ..checkpoint.opened import DETECTOR_IN_TORCH, OpenedWeights, open_weights
from ..checkpoint.tensor_file import METADATA_KEY
from ..checkpoint.torch_file import save_torch
from ..models.description import NetworkInfo
from ..models.factorize import find_layout
from ..models.preprocessing import MSRA
from ..models.resnet import NortonResNet
from ..models.state import match_counters
from ..utils.errors import InputError
from ..utils.files import write_text
from .description import config_on, fields_on
from .files import newest_checkpoint
from .own_resnet import CLASSIFIER, has_resnet, is_detectron2, own_prefix, state_for

logger = logging.getLogger(__name__)
BACKBONE = "backbone.bottom_up."  # of the ResNet's tensors in a Detectron2 detector with FPN
DETECTOR = ("proposal_generator.", "head.cls_")  # by which one of Detectron2 is known, and one without regions
HARMLESS = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.")  # that older detectors keep


class NortonCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that also reads norton checkpoints and writes the spec into every file.

    - ``.safetensors``: a compressed classifier (its tensors go to ``backbone.bottom_up``) or a whole detector;
    - ``.pth`` of a trainer: read without running code; written whole or not at all, with the model's spec and the
      digest of its content; a run goes on from the newest one whose digest fits;
    - detectors with Detectron2's own ResNet, also from the model zoo, and classifiers of every origin that
      ``norton_det.checkpoint.opened`` knows; no code in a file is run.

    Tensors that are missing, left over or do not fit are an error here, not a warning: a network with a part that is
    left at random trains and scores quietly badly. Weights of a ResNet alone leave neck and heads to start anew, and
    so do predictors of another number of classes, with a warning.

    Args:
        model, save_dir, checkpointables: as Detectron2's.
        whole: for use as it is: nothing may start anew.
        partial: what the weights of a detector lack outside the ResNet starts anew, what they have besides is left.
    """

    def __init__(
        self,
        model: nn.Module | None,
        save_dir: str = "",
        *,
        whole: bool = False,
        partial: bool = False,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.whole, self.partial = whole, partial
        self.file = "weights"

    def save(self, name: str, **kwargs: Any) -> None:
        """As Detectron2's.

        Raises:
            FloatingPointError: weights that are not finite, which nobody could use.
            InputError: the file cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict()}
        for key, tensor in data["model"].items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise FloatingPointError(f"weights {key} are not finite")
        data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        data |= kwargs
        info = info_of_model(self.model)
        if info is not None:
            data[METADATA_KEY] = info.to_json()
        model: Any = getattr(self.model, "module", self.model)
        if (cfg := config_on(model)) is not None:
            data[DETECTOR_IN_TORCH] = json.dumps(fields_on(model, cfg, norton=info is not None))
        file = Path(self.save_dir) / f"{name}.pth"
        save_torch(file, data)
        self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The newest whole checkpoint in ``save_dir``, see ``newest_checkpoint``."""
        return newest_checkpoint(self.save_dir)

    def _load_file(self, filename: str) -> dict[str, Any]:
        opened = open_weights(filename)
        self.file = filename
        if find_resnet(self.model)[0] is None:
            state = state_for(opened, self.model.state_dict())
            self._refuse_other_stacks(opened)
            return opened.fields | {"model": state}
        resnet = opened.resnet
        if opened.stack == "detectron2":
            if resnet.naming == "detectron2":
                logger.warning(
                    "%s does not say what input it wants. Detectors of Detectron2's zoo: INPUT.FORMAT BGR, "
                    "MODEL.PIXEL_MEAN %s, PIXEL_STD [1, 1, 1], MODEL.RESNETS.STRIDE_IN_1X1 True",
                    filename,
                    list(MSRA.mean),
                )
            state = {BACKBONE + name: tensor for name, tensor in resnet.state.items()}
            return opened.fields | {"model": state | opened.around}
        self._refuse_other_stacks(opened)
        loaded = load_weights(opened)  # the ResNet alone
        return {"model": {BACKBONE + name: tensor for name, tensor in loaded.state.items()}}

    def _refuse_other_stacks(self, opened: OpenedWeights) -> None:
        """Refuse, for use as it is, a detector of torchvision or another project: its ResNet alone would be taken."""
        native = find_resnet(self.model)[0] is None
        if not self.whole or (native and (not has_resnet(opened) or is_detectron2(opened))):
            return
        if opened.family is not None:
            got, mend = opened.family.name, opened.family.mend
        elif opened.stack == "torchvision":
            got, mend = "one of torchvision", "leave out --config"
        else:
            return
        raise InputError(f"{opened.source}: expected a detector of Detectron2, got {got}; {mend}")

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        resnet, prefix = find_resnet(self.model)
        expected = self.model.state_dict()
        state = {}
        for name, tensor in checkpoint["model"].items():
            short_name = name.removeprefix(BACKBONE)
            if name.startswith(BACKBONE) and short_name in CLASSIFIER:
                continue
            if name.startswith(BACKBONE) and resnet is not None:
                name = prefix + short_name
            state[name] = tensor
        checkpoint["model"] = match_counters(state, expected)
        detector = any(name.startswith(DETECTOR) for name in state)
        incompatible = super()._load_model(checkpoint)
        self._refuse_misfits(incompatible, prefix or own_prefix(expected), detector)
        return incompatible

    def _refuse_misfits(self, incompatible: Any, prefix: str, detector: bool) -> None:
        """Refuse tensors of the backbone, which is below ``prefix``, that do not fit; of weights of a detector others
        too, unless ``partial``."""
        complete = detector and not self.partial
        norton = find_resnet(self.model)[0] is not None
        for name, actual, expected in incompatible.incorrect_shapes:
            if self.whole or name.startswith("backbone."):
                mend = (
                    f"the {'rank or ratios of MODEL.NORTON' if norton else 'MODEL.RESNETS'} are of another network "
                    "than the weights"
                    if name.startswith("backbone.")
                    else "set MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS, MODEL.RPN.CONV_DIMS as in training"
                    if ".rpn_head." in name
                    else "set MODEL.ROI_HEADS.NUM_CLASSES and the heads' other keys as they were in training"
                )
                raise InputError(f"{self.file}: {name}: expected shape {tuple(expected)}, got {tuple(actual)}; {mend}")
        misshapen = {name for name, *_ in incompatible.incorrect_shapes}
        missing = [name for name in incompatible.missing_keys if self.whole or complete or name.startswith(prefix)]
        absent = [name for name in missing if name not in misshapen]
        if absent:
            inside = all(name.startswith(prefix) for name in absent)
            scope, mend = "backbone", "use weights of this network"
            if self.whole:
                scope, mend = "detector", "use weights of this detector" if detector else "train a detector with them"
            if complete and not self.whole and not inside:
                scope, mend = "detector", "use weights of this detector, or --partial to have them start anew"
            first = absent[0]
            raise InputError(f"{self.file}: {len(absent)} tensors of the {scope} are missing (first: {first}); {mend}")
        extra = [
            name for name in incompatible.unexpected_keys if name not in misshapen and not name.startswith(HARMLESS)
        ]
        if extra and (complete or self.whole):
            raise InputError(
                f"{self.file}: {len(extra)} tensors are not of this detector (first: {extra[0][:80]}); use weights of "
                "this detector, or --partial to leave them"
            )
        for name in missing:
            incompatible.missing_keys.remove(name)


def find_resnet(model: nn.Module) -> tuple[NortonResNet | None, str]:
    """The compressed ResNet in a detector and the prefix of its tensors."""
    for name, module in model.named_modules():
        if isinstance(module, NortonResNet):
            return module, f"{name}." if name else ""
    return None, ""


def info_of_model(model: nn.Module) -> NetworkInfo | None:
    """Spec and preprocessing of a detector, for its checkpoints; ``None`` without a compressed ResNet."""
    resnet, _ = find_resnet(model)
    if resnet is None:
        return None
    return NetworkInfo(resnet.spec, resnet.preprocessing, 0, resnet.stride_in_1x1, find_layout(model))
