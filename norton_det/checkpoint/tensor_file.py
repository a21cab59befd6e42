"""safetensors files that carry a description and the digest of both; read whole, never mapped into memory.

The description is one JSON object under the metadata key ``norton_det``, the only one, so that equal content gives
equal bytes. A file that is mapped changes under the program that reads it, and kills it when it is cut short.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..utils.errors import InputError, first_line, naming
from ..utils.files import atomic_path, read_whole
from .digest import DIGEST_KEY, check_beside, check_digest, content_digest

METADATA_KEY = "norton_det"
SEALED_SINCE = 3  # version of the description from which on it has a digest
_MAX_HEADER = 4 << 20  # bytes; the header of a ResNet-152 detector has 0.2 MB


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> Path:
    """Write tensors with a description; the file appears whole or not at all.

    Args:
        path: where to.
        tensors: of any device and strides; those that share memory are written each.
        fields: of the description, as JSON has them; ``version`` among them.

    Raises:
        InputError: the file cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    plain = json.loads(json.dumps(fields))  # as they will be read
    text = json.dumps(plain | {DIGEST_KEY: content_digest({"fields": plain, "tensors": state})})
    with atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(state, {METADATA_KEY: text}))  # save_file would lose its lock
    return Path(path)


def read_safetensors(path: str | Path, data: bytes | None = None) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """The description of a safetensors file, ``None`` when norton_det did not write it, and its tensors on the CPU.

    Args:
        path: of the file.
        data: its bytes, where they are read already.

    Raises:
        InputError: the file is missing, truncated, damaged, not safetensors, holds a type that PyTorch lacks, or its
            content is not what was written.
    """
    file = Path(path)
    data = read_whole(file, "a safetensors file") if data is None else data
    fields = _fields(_parse(data[: 8 + _MAX_HEADER], len(data), file), file)
    try:
        tensors = dict(sorted(safetensors.torch.load(data).items()))
    except SafetensorError as error:
        raise _damaged(file, first_line(error)) from None
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{file}: expected tensors of PyTorch's types ({first_line(error)}); convert it") from None
    if fields is None:
        check_beside(file, data)
        return None, tensors
    if DIGEST_KEY in fields:
        stored = fields.pop(DIGEST_KEY)
        with naming(file):
            check_digest(stored, {"fields": fields, "tensors": tensors})
    return fields, tensors


def _parse(start: bytes, size: int, file: Path) -> dict[str, Any]:
    """The header, once it agrees with the length of the file."""
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    if not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise _damaged(file, f"a header of {length} bytes in a file of {size}")
    try:
        header = json.loads(start[8 : 8 + length])
        metadata = header.get("__metadata__", {})
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = all(type(end) is int for end in ends) and max(ends, default=0) == size - 8 - length
        plain = all(isinstance(text, str) for text in metadata.values())
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, first_line(error, 80)) from None
    if not whole or not plain:
        raise _damaged(file, "its header does not fit its length" if plain else "metadata that is not text")
    return header


def _fields(header: dict[str, Any], file: Path) -> dict[str, Any] | None:
    metadata = header.get("__metadata__", {})
    text = metadata.get(METADATA_KEY)
    if text is None:
        if any(f'"{DIGEST_KEY}"' in other for other in metadata.values()):
            raise InputError(f"{file}: metadata: expected the key {METADATA_KEY}, got others; get the file again")
        return None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of thousands of digits
        raise InputError(f"{file}: metadata: expected JSON ({first_line(error)}); get the file again") from None
    version = fields.get("version") if isinstance(fields, dict) else fields
    if type(version) is not int:
        raise InputError(f"{file}: metadata: version: expected a number, got {str(version)[:40]!r}; get the file again")
    if version >= SEALED_SINCE and DIGEST_KEY not in fields:
        raise InputError(f"{file}: metadata: expected the field {DIGEST_KEY}, found none; get the file again")
    return fields


def _damaged(file: Path, reason: str) -> InputError:
    return InputError(f"{file}: expected a safetensors file, got a damaged or other one ({reason}); get it again")
