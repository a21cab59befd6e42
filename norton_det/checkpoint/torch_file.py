"""Files of ``torch.save``, with the digest of their content; read without running anything in them.

``weights_only=True`` is said on each load, so that no environment variable turns it off, and files are not mapped into
memory, where sizes would not be checked. A zip archive has a checksum of each member, which torch does not look at.
"""

import io
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..utils.errors import InputError, naming, why_not_written
from ..utils.files import atomic_path, read_whole
from .bystanders import BYSTANDERS
from .digest import DIGEST_KEY, check_beside, check_digest, content_digest
from .safe_pickle import TORCH_STAND_INS, plain

KEY = f"norton_det.{DIGEST_KEY}"  # in the dict
ZIP = b"PK\x03\x04"
_MOST_GROWTH = 4
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # magic number of torch files before 1.6


def save_torch(path: str | Path, content: Mapping[str, Any]) -> Path:
    """``torch.save`` of a dict with the digest of its content beside it; the file appears whole or not at all.

    Args:
        path: where to.
        content: tensors, numbers, text, and dicts and lists of them by name.

    Raises:
        InputError: something else in the content, or the file cannot be written.
    """
    sealed = {**content, KEY: content_digest(content)}
    with atomic_path(path) as temporary:
        try:
            torch.save(sealed, temporary)
        except RuntimeError as error:  # of torch's writer, such as a full disk
            if "DataLoader worker" in str(error):  # it can be raised anywhere
                raise
            full = "unexpected pos" in str(error)
            reason = "(no space left); free some space" if full else why_not_written(error)
            raise InputError(f"{path}: could not be written {reason}") from None
    return Path(path)


def read_torch(path: str | Path, data: bytes | None = None) -> dict[Any, Any]:
    """The dict of a torch file, its digest checked and left out; options of a run do not come.

    Args:
        path: of the file, a zip archive or of the form before torch 1.6.
        data: its bytes, where they are read already.

    Raises:
        InputError: missing, truncated, changed, no dict, or it needs something to be run.
    """
    file = Path(path)
    data = read_whole(file, "a torch file") if data is None else data
    zipped = data.startswith(ZIP)
    try:
        if zipped:
            _check_archive(data)
        with torch.serialization.safe_globals([*TORCH_STAND_INS, *BYSTANDERS]):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True, mmap=False)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InputError(
                f"{file}: expected tensors only, got a file that asks for {asked[1][:120]}; nothing was run: "
                "if you trust its maker, ask for model.state_dict() alone"
            ) from None
        raise _damaged(file, error) from None
    except Exception as error:  # a damaged file can raise nearly anything
        raise _damaged(file, error) from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a state dict, got {type(content).__name__}; save model.state_dict()")
    if KEY in content:
        stored = content.pop(KEY)
        with naming(file):
            check_digest(stored, content)
    elif not zipped:
        check_beside(file, data)
    return plain(content)


def _check_archive(data: bytes) -> None:
    """Refuse a zip that is TorchScript, is not stored as torch stores it, or whose checksums do not fit."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if any(member.filename.endswith("/constants.pkl") for member in members):
            raise InputError(
                "expected a state dict, got a TorchScript archive, which holds code; save model.state_dict()"
            )
        if sum(member.file_size for member in members) > _MOST_GROWTH * len(data):
            raise InputError("expected tensors as torch stores them, got an archive that grows absurdly; get it again")
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise InputError("expected tensors as torch stores them, got a compressed archive; get the file again")
        if len({member.filename for member in members}) != len(members):
            raise InputError("expected an archive of torch, got two members of one name; get the file again")
        if sum(member.file_size for member in members) > len(data):
            raise InputError("expected tensors as torch stores them, got members that overlap; get the file again")
    checksums = {member.filename.partition("/")[2]: member.CRC for member in members}
    reader = torch._C.PyTorchFileReader(
        io.BytesIO(data)
    )  # its view counts: zipfile may take other bytes for a member's
    for name in reader.get_all_records():
        if name not in checksums or zlib.crc32(reader.get_record(name)) != checksums[name]:
            raise InputError(f"{name[:60]!r}: expected its checksum, its bytes have another; get the file again")


def _damaged(file: Path, error: Exception) -> InputError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:120]
    return InputError(f"{file}: expected a torch file, got a truncated or damaged one ({reason}); get it again")
