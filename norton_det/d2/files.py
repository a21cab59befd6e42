"""Detector checkpoints in Detectron2's two forms, with the spec inside: ``.pth`` (trainer) and ``.safetensors``."""

import re
from pathlib import Path
from typing import Any

from ..checkpoint import METADATA_KEY, CheckpointInfo, read_info, read_tensors, tensor_names
from ..errors import InputError
from ..sources import read_content

TORCH_SUFFIXES = (".pth", ".pt", ".bin")


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """A ``.pth`` file as a dict with the key ``model``; tensors stay on disk until used, and no code in it is run.

    Raises:
        InputError: missing, truncated, not such a file, or one that would need code to be run.
    """
    content = read_content(path)
    return content if isinstance(content.get("model"), dict) else {"model": content}


def read_checkpoint_info(path: str | Path) -> CheckpointInfo | None:
    """What a norton checkpoint, ``.safetensors`` or ``.pth``, says of itself; ``None`` for all other weights."""
    suffix = Path(path).suffix
    if suffix == ".safetensors":
        return read_info(path)
    if suffix not in TORCH_SUFFIXES or "://" in str(path):
        return None
    text = read_torch_file(path).get(METADATA_KEY)
    if text is None:
        return None
    try:
        return CheckpointInfo.from_json(str(text))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_layout(path: str | Path) -> dict[str, int] | None:
    """Ranks of the factored layers around the ResNet of a detector that norton_det wrote; ``None`` for a backbone, or
    weights of another origin.
    """
    info = read_checkpoint_info(path)
    if info is None:
        return None
    names = tensor_names(path) if Path(path).suffix == ".safetensors" else read_torch_file(path)["model"]
    if not any("roi_heads." in name for name in names):
        return None
    factors = (
        re.fullmatch(r"(?!backbone\.bottom_up\.)(.+?)(?:\.conv)?\.(?:pointwise|first)\.weight", n) for n in names
    )
    found = {match[1] for match in factors if match}
    if {name.removesuffix(".conv") for name in info.layout} != {name.removesuffix(".conv") for name in found}:
        raise InputError(f"{path}: metadata: layout does not name the factored layers in it; write the file again")
    return info.layout


def read_detector_file(path: str | Path) -> dict[str, Any]:
    """Checkpoint content for a Detectron2 ``Checkpointer``: the key ``model`` and what the trainer added."""
    if Path(path).suffix == ".safetensors":
        return {"model": read_tensors(path)}
    return read_torch_file(path)
