"""SHA-256 of what a checkpoint holds: a changed bit, which loads silently in torch and in safetensors, is noticed.

It is a checksum, not a signature: it tells damage, and cannot tell who wrote a file. Files of others carry none; beside
them ``FILE.sha256``, as ``sha256sum FILE > FILE.sha256`` writes it, is looked for.
"""

import hashlib
import hmac
import logging
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import InputError

logger = logging.getLogger(__name__)
DIGEST_KEY = "sha256"
_PARTS = 1_000_000  # tensors and numbers; a trainer's file has some thousands
_DEPTH = 32  # dicts and lists inside each other


def content_digest(content: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of tensors, numbers, text, and dicts and lists of them.

    It depends on names, types, shapes and bits, not on the order of a dict, nor on device, strides or shared memory.

    Raises:
        InputError: something else in it, which could not be loaded safely either; the place is named.
    """
    digest = hashlib.sha256()
    _update(digest, content, "content", 0, [_PARTS])
    return digest.hexdigest()


def _update(digest: Any, value: Any, where: str, depth: int, left: list[int]) -> None:
    left[0] -= 1
    if left[0] < 0:  # lists that share their parts are small in a file
        raise InputError(f"{where[:80]}: expected at most {_PARTS} values, got more; get the file again")
    if depth > _DEPTH:
        raise InputError(f"{where[:80]}: expected at most {_DEPTH} dicts inside each other, got more; flatten it")
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise InputError(f"{where}: expected a dense tensor, got another kind; save plain tensors")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(f"{where}: expected {value.numel()} stored values, got fewer; save a copy")
        _head(digest, "tensor", f"{value.dtype} {tuple(value.shape)}")
        flat = value.detach().cpu().contiguous().reshape(-1)
        if value.is_conj() or value.is_neg():
            flat = flat.resolve_conj().resolve_neg()
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        _head(digest, "dict", str(len(value)))
        for key in sorted(value, key=lambda key: (type(key).__name__, str(key))):
            _update(digest, key, where, depth + 1, left)
            _update(digest, value[key], f"{where}: {str(key)[:60]}", depth + 1, left)
    elif isinstance(value, list | tuple):
        _head(digest, "list", str(len(value)))
        for index, item in enumerate(value):
            _update(digest, item, f"{where}[{index}]", depth + 1, left)
    elif isinstance(value, float):
        digest.update(b"float " + struct.pack("<d", value))
    elif value is None or isinstance(value, bool | int | str):
        _head(digest, type(value).__name__, str(value))
    else:
        raise InputError(f"{where}: expected tensors, numbers or text, got {type(value).__name__}; leave it out")


def _head(digest: Any, kind: str, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    digest.update(f"{kind} {len(data)} ".encode())
    digest.update(data)


def check_digest(stored: object, content: Any) -> None:
    """Hold the digest that a file carries against its content.

    Raises:
        InputError: they differ.
    """
    if not isinstance(stored, str) or not hmac.compare_digest(stored.encode(), content_digest(content).encode()):
        raise InputError(f"{DIGEST_KEY}: expected {str(stored)[:12]!r}..., its content has another; get the file again")


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_beside(file: Path, data: bytes) -> None:
    """Hold a file without a digest of its own against ``FILE.sha256`` beside it, where there is one.

    Args:
        file: its path.
        data: all of its bytes.

    Raises:
        InputError: they differ, or the other file holds no digest.
    """
    beside = file.with_name(f"{file.name}.sha256")
    try:
        text = beside.read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        logger.info("%s: carries no checksum; damage to its numbers cannot be noticed (%s would tell)", file, beside)
        return
    match = re.match(r"\\?([0-9a-fA-F]{64})\b", text)
    if match is None:
        raise InputError(f"{beside}: expected what sha256sum writes, got {text[:40]!r}; write it again or remove it")
    digest = hashlib.sha256(data).hexdigest()
    if digest != match[1].lower():
        raise InputError(
            f"{file}: {DIGEST_KEY}: expected {match[1][:12]}... as {beside.name} says, got {digest[:12]}...; "
            "get the file again"
        )
