"""Loading and saving of detectors with Detectron2's checkpointer, norton checkpoints included."""

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..checkpoint import METADATA_KEY, CheckpointInfo
from ..errors import InputError
from ..files import atomic_path
from ..keys import find_resnet as find_resnet_part
from ..keys import torchvision_to_d2
from ..preprocessing import MSRA
from ..resnet import NortonResNet
from ..surgery import find_layout
from ..weights import load_weights
from .files import read_detector_file

logger = logging.getLogger(__name__)
BACKBONE = "backbone.bottom_up."  # of the ResNet's tensors in a Detectron2 detector with FPN
CLASSIFIER = ("fc.weight", "fc.bias")


class NortonCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that also reads norton checkpoints and writes the spec into every file.

    - ``.safetensors``: a compressed classifier (its tensors go to ``backbone.bottom_up``) or a whole detector;
    - ``.pth`` of a trainer: read without running code; written whole or not at all, with the model's spec;
    - detectors with Detectron2's own ResNet, also from the model zoo, and classifiers of every origin that
      ``norton_det.weights`` knows; no code in a file is run.

    A tensor of the backbone that does not fit is an error here, not a warning: a network with a part that is
    left at random trains and scores quietly badly. Heads of another number of classes start anew, with a warning;
    with ``whole`` they are an error too.
    """

    def __init__(self, model: nn.Module | None, save_dir: str = "", *, whole: bool = False, **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.whole = whole

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict()}
        data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        data |= kwargs
        info = info_of_model(self.model)
        if info is not None:
            data[METADATA_KEY] = info.to_json()
        file = Path(self.save_dir) / f"{name}.pth"
        with atomic_path(file) as temporary:
            torch.save(data, temporary)
        self.tag_last_checkpoint(file.name)

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_detector_file(filename)
        try:
            part = find_resnet_part(content["model"])
        except InputError:
            if find_resnet(self.model)[0] is None:
                return content  # another backbone: Detectron2 matches the names
            raise
        if "backbone." in part.prefix and part.layout != "caffe2":
            if part.layout == "detectron2" and find_resnet(self.model)[0] is not None:
                logger.warning(
                    "%s does not say what input it wants. Detectors of Detectron2's zoo: INPUT.FORMAT BGR, "
                    "MODEL.PIXEL_MEAN %s, PIXEL_STD [1, 1, 1], MODEL.RESNETS.STRIDE_IN_1X1 True",
                    filename,
                    list(MSRA.mean),
                )
            rest = {name.removeprefix("module."): tensor for name, tensor in part.rest.items()}
            content["model"] = {BACKBONE + name: tensor for name, tensor in part.state.items()} | rest
            return content
        loaded = load_weights(filename)  # a classifier
        return {"model": {BACKBONE + name: tensor for name, tensor in loaded.state.items()}}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        resnet, prefix = find_resnet(self.model)
        wanted = self.model.state_dict()
        state = {}
        for name, tensor in checkpoint["model"].items():
            inner = name.removeprefix(BACKBONE)
            if name.startswith(BACKBONE) and inner in CLASSIFIER:
                continue
            if name.startswith(BACKBONE) and resnet is not None:
                name = prefix + inner
            elif name.startswith(BACKBONE) and inner.startswith(("conv1.", "bn1.", "layer")):
                name = BACKBONE + torchvision_to_d2(inner)
            if name in wanted or not name.endswith("num_batches_tracked"):  # frozen normalisation does not count
                state[name] = tensor
        checkpoint["model"] = state
        incompatible = super()._load_model(checkpoint)
        if resnet is not None or self.whole:
            self._refuse_misfits(incompatible, prefix or BACKBONE)
        return incompatible

    def _refuse_misfits(self, incompatible: Any, prefix: str) -> None:
        for name, found, expected in incompatible.incorrect_shapes:
            if self.whole or name.startswith("backbone."):
                mend = (
                    "the rank or ratios of MODEL.NORTON are of another network than the weights"
                    if name.startswith("backbone.")
                    else "set MODEL.ROI_HEADS.NUM_CLASSES and the heads' other keys as they were in training"
                )
                raise InputError(f"weights: {name}: expected shape {tuple(expected)}, got {tuple(found)}; {mend}")
        missing = [name for name in incompatible.missing_keys if self.whole or name.startswith(prefix)]
        counted = [name for name in missing if not name.endswith("num_batches_tracked")]
        if counted:
            part, mend = ("detector", "train it first") if self.whole else ("backbone", "use weights of this network")
            raise InputError(f"weights: {len(counted)} tensors of the {part} are missing (first: {counted[0]}); {mend}")
        for name in missing:
            incompatible.missing_keys.remove(name)


def find_resnet(model: nn.Module) -> tuple[NortonResNet | None, str]:
    """The compressed ResNet in a detector and the prefix of its tensors."""
    for name, module in model.named_modules():
        if isinstance(module, NortonResNet):
            return module, f"{name}." if name else ""
    return None, ""


def info_of_model(model: nn.Module) -> CheckpointInfo | None:
    """Spec and preprocessing of a detector, for its checkpoints; ``None`` without a compressed ResNet."""
    resnet, _ = find_resnet(model)
    return resnet and CheckpointInfo(resnet.spec, resnet.preprocessing, 0, resnet.stride_in_1x1, find_layout(model))
