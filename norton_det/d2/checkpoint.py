"""Loading and saving of detectors with Detectron2's checkpointer, norton checkpoints included."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..checkpoint import METADATA_KEY, CheckpointInfo
from ..errors import InputError
from ..files import atomic_path
from ..resnet import NortonResNet
from ..weights import load_weights
from .files import read_detector_file, read_torch_file

logger = logging.getLogger(__name__)
_OWN_NAMES = re.compile(r"(module\.)?backbone\.(bottom_up\.)?layer1\.")  # not those of another stack's detector
CLASSIFIER = ("fc.weight", "fc.bias")


class NortonCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that also reads norton checkpoints and writes the spec into every file.

    - ``.safetensors``: a compressed classifier (its tensors go to ``backbone.bottom_up``) or a whole detector;
    - ``.pth`` of a trainer: read without running code; written whole or not at all, with the model's spec;
    - everything else, also a classifier's ``.pth`` or ``.pkl``: by ``norton_det.weights``.

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
        suffix = Path(filename).suffix
        content = read_detector_file(filename) if suffix == ".safetensors" else {}
        if suffix not in (".safetensors", ".pkl"):
            content = read_torch_file(filename)
        if content and any(_OWN_NAMES.match(str(name)) for name in content["model"]):
            return content
        loaded = load_weights(filename)  # a classifier, or another stack's detector: its ResNet
        return {"model": {f"backbone.bottom_up.{name}": tensor for name, tensor in loaded.state.items()}}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        state = checkpoint["model"]
        resnet, prefix = find_resnet(self.model)
        if resnet is not None:
            if prefix != "backbone.bottom_up.":  # a backbone without FPN
                for name in [name for name in state if name.startswith("backbone.bottom_up.")]:
                    state[prefix + name.removeprefix("backbone.bottom_up.")] = state.pop(name)
            for name in [name for name in state if name.startswith(prefix)]:
                if name.endswith("num_batches_tracked") or name.removeprefix(prefix) in CLASSIFIER:
                    del state[name]
        incompatible = super()._load_model(checkpoint)
        if resnet is not None:
            self._refuse_misfits(incompatible, prefix)
        return incompatible

    def _refuse_misfits(self, incompatible: Any, prefix: str) -> None:
        for name, found, expected in incompatible.incorrect_shapes:
            if self.whole or name.startswith("backbone."):
                raise InputError(
                    f"weights: {name}: expected shape {tuple(expected)}, got {tuple(found)}; the rank or ratios of "
                    "MODEL.NORTON are of another network than the weights"
                )
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
    return resnet and CheckpointInfo(resnet.spec, resnet.preprocessing, 0, resnet.stride_in_1x1)
