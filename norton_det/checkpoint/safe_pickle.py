"""Pickles of plain numpy arrays, read without running anything in them.

Detectron and Detectron2 publish weights as pickles, and a pickle is a program: it may call any function. Here every
name that it asks for is looked up in a short table of stand-ins. They check what they get and give tensors; numpy's
own constructors are not called either, as a crafted state can corrupt memory through them. Anything else is refused
by name. Before that, a scan of the opcodes holds all sizes to what the file can contain.
"""

import io
import pickle
import pickletools
import re
import sys
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.files import read_whole

_DTYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}
_MAX_DIMS = 8
_MAX_OPCODES = 500_000  # a detector's weights take about 20,000
_REFUSED_OPCODES = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}


def read_arrays(path: str | Path, data: bytes | None = None) -> dict[str, Any]:
    """The dict of a pickle; numpy arrays in it and in dicts of it come as tensors of the same type.

    Args:
        path: of a pickle of protocol 0 to 5, written by Python 2 or 3 and any numpy.
        data: its bytes, where they are read already.

    Raises:
        InputError: missing, empty, truncated, not a pickle of a dict, or it asks for anything but numpy arrays.
    """
    file = Path(path)
    data = read_whole(file, "a pickle of numpy arrays") if data is None else data
    try:
        _scan(data)
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()  # latin1: Python 2 stored bytes as text
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise InputError(
            f"{file}: expected a pickle of numpy arrays, got a truncated or damaged one ({reason}); get it again"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a dict of arrays, got {type(content).__name__}; get Detectron2's weights")
    return plain(content)


def plain(content: dict[Any, Any], depth: int = 6) -> dict[Any, Any]:
    """A copy of a dict in which stand-in arrays are tensors, down to ``depth`` dicts inside each other.

    Dicts that are shared stay so: copied each time, a small file would take gigabytes.
    """
    made: dict[tuple[int, int], dict[Any, Any]] = {}

    def copy(entries: dict[Any, Any], left: int) -> dict[Any, Any]:
        if (id(entries), left) not in made:
            made[id(entries), left] = {
                key: value.tensor
                if isinstance(value, _Array)
                else copy(value, left - 1)
                if isinstance(value, dict) and left > 1
                else value
                for key, value in entries.items()
            }
        return made[id(entries), left]

    return copy(content, depth)


class _DType:
    """Stand-in for a ``numpy.dtype`` of numbers."""

    __slots__ = ("code", "swapped")

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        match = re.fullmatch(r"([<>|=]?)([a-z]\d{1,2})", text) if isinstance(text, str) else None
        shown = text[:40] if isinstance(text, str) else type(text).__name__
        if match is None or match[2] not in _DTYPES:
            raise InputError(f"expected arrays of numbers, got type {shown!r}; save float arrays")
        self.code = match[2]
        self.swapped = match[1] == _FOREIGN_ORDER

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) >= 5 else None
        if (
            not isinstance(state, tuple)
            or order not in ("<", ">", "|", "=")
            or any(field is not None for field in state[2:5])
        ):
            raise InputError("expected arrays of plain numbers, got a compound type; save float arrays")
        self.swapped = order == _FOREIGN_ORDER

    def tensor(self, raw: object, shape: object, fortran: bool) -> Tensor:
        """The tensor of ``shape`` in these bytes; a copy."""
        if isinstance(raw, str):
            raw = raw.encode("latin1")
        if not isinstance(raw, bytes | bytearray):
            raise InputError(f"expected the bytes of an array, got {type(raw).__name__}; save float arrays")
        sizes = (shape,) if isinstance(shape, int) else shape
        if not isinstance(sizes, tuple) or len(sizes) > _MAX_DIMS or not all(_is_size(size) for size in sizes):
            raise InputError(f"expected the shape of an array, got {str(shape)[:60]}; get the file again")
        itemsize = int(self.code[1:])
        if prod(sizes) * itemsize != len(raw):
            raise InputError(
                f"expected {prod(sizes) * itemsize} bytes for shape {sizes}, got {len(raw)}; get the file again"
            )
        if not raw:
            return torch.zeros(sizes, dtype=_DTYPES[self.code])
        flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        if self.swapped and itemsize > 1:
            flat = flat.view(-1, itemsize).flip(1).flatten()
        flat = flat.view(_DTYPES[self.code])
        if fortran:
            return flat.view(sizes[::-1]).permute(*range(len(sizes) - 1, -1, -1)).contiguous()
        return flat.view(sizes)


_FOREIGN_ORDER = ">" if sys.byteorder == "little" else "<"


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 0


class _Array:
    """Stand-in for a ``numpy.ndarray`` or scalar; ``tensor`` holds its values."""

    __slots__ = ("tensor",)

    def __init__(self) -> None:
        self.tensor = torch.zeros(0)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _DType):
            raise InputError("expected the state of a numpy array, got something else; get the file again")
        _, shape, dtype, fortran, raw = state
        self.tensor = dtype.tensor(raw, shape, bool(fortran))


class _Callable:
    """Base of the stand-ins for functions: without ``__dict__``, so that a pickle cannot alter them."""

    __slots__ = ()


class _Reconstruct(_Callable):
    __slots__ = ()

    def __call__(self, *_: object) -> _Array:
        return _Array()  # of no size: its state brings shape and bytes


class _FromBuffer(_Callable):
    __slots__ = ()

    def __call__(self, raw: object, dtype: object, shape: object, order: object, *_: object) -> _Array:
        return _filled(dtype, raw, shape, order == "F")


class _Scalar(_Callable):
    __slots__ = ()

    def __call__(self, dtype: object, raw: object = b"") -> _Array:
        return _filled(dtype, raw, (), False)


class _MakeDType(_Callable):
    __slots__ = ()

    def __call__(self, code: object, *_: object) -> _DType:
        return _DType(code)


class _Encode(_Callable):
    """``_codecs.encode`` of text to latin1, which protocols 0 to 2 use for bytes."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object = "") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise InputError(f"expected text as latin1, got encoding {str(encoding)[:20]!r}; get the file again")
        return text.encode("latin1")


class _NoBytes(_Callable):
    """``bytes()``, which protocols 0 to 2 use for the content of an array without elements."""

    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


class Ignored:
    """Stand-in for an object whose fields are of no interest, such as the options of a training run."""

    __slots__ = ()

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _filled(dtype: object, raw: object, shape: object, fortran: bool) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, fortran, raw))
    return array


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "numpy.ndarray",  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _MakeDType(),
    ("_codecs", "encode"): _Encode(),
    ("__builtin__", "bytes"): _NoBytes(),
    ("collections", "OrderedDict"): OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _Reconstruct()
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _Scalar()
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _FromBuffer()

TORCH_STAND_INS: list[Any] = [  # the same for torch.serialization.safe_globals; torch wants the class that has a state
    (Ignored, "argparse.Namespace"),
    (_DType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((value, ".".join(key)) for key, value in _ALLOWED.items() if key[0].startswith(("numpy.core", "numpy._core"))),
]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            asked = f"{module[:60]}.{name[:60]}".encode("unicode_escape").decode()  # it may hold line breaks
            raise InputError(
                f"expected only numpy arrays, got a pickle that asks for {asked}; "
                "nothing was run, do not trust the file"
            )
        return _ALLOWED[module, name]


def _scan(data: bytes) -> None:
    """Walk the opcodes without running them: lengths have to fit the file, memo numbers the count of opcodes."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data), start=1):
        if count > _MAX_OPCODES:
            raise InputError(f"expected arrays, got more than {_MAX_OPCODES} pickle opcodes; get Detectron2's weights")
        if opcode.name in _REFUSED_OPCODES:
            raise InputError(f"expected only numpy arrays, got the pickle opcode {opcode.name}; get the file again")
        if opcode.name.endswith("PUT") and int(argument or 0) > count:
            raise InputError(f"expected a pickle in order, got memo number {argument}; get the file again")
