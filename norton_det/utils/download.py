"""Archives from the network: resumed where they stopped, checked, unpacked within their folder."""

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .errors import InputError, why_not_written
from .files import atomic_path

CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A zip file: its address, bytes and MD5."""

    url: str
    size: int
    md5: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def download(archive: Archive, folder: str | Path, progress: bool = True, timeout: float = 30.0) -> Path:
    """Download an archive; what is there of it already, whole or in ``NAME.part``, is not loaded again.

    Args:
        archive: what to load.
        folder: where to.
        progress: show a bar.
        timeout: seconds without an answer.

    Raises:
        InputError: no network, no room, or a file that is not the archive; a damaged one is deleted.
    """
    target = Path(folder) / archive.name
    partial = target.with_name(f"{target.name}.part")
    if not target.exists():
        fetch(archive.url, partial, archive.size, progress, timeout)
        _check(archive, partial, progress)
        partial.replace(target)
    else:
        _check(archive, target, progress)
    return target


def fetch(url: str, path: Path, size: int | None = None, progress: bool = True, timeout: float = 30.0) -> None:
    """Load a file, or the rest of one.

    Args:
        url: its address.
        path: where to; what is there already, where ``size`` is known, is not loaded again.
        size: bytes; ``None``: as many as the server says.

    Raises:
        InputError: no network, no room, or fewer bytes.
    """
    received = path.stat().st_size if path.exists() and size is not None else 0
    if size is not None and received >= size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={received}-"} if received else {})
    name = url.rpartition("/")[2]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.build_opener().open(request, timeout=timeout) as response:  # with the proxies of now
            if response.status != 206:  # the server does not resume
                received = 0
            length = response.headers.get("Content-Length", "")
            total = size if size is not None or not length.isdigit() else received + int(length)
            options = {"desc": name, "unit": "B", "unit_scale": True, "disable": not progress}
            with path.open("ab" if received else "wb") as file, tqdm(total=total, initial=received, **options) as bar:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        expected, purpose = ("it", "") if size is None else (f"{size / 1e9:.1f} GB", " to go on")
        raise InputError(
            f"{url}: expected to load {expected}, got {reason}; run it again{purpose}, or put {name} into {path.parent}"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: could not be written {why_not_written(error)}") from None
    if total is not None and path.stat().st_size < total:
        raise InputError(f"{path}: expected {total} bytes, got {path.stat().st_size}; run it again to go on")


def md5_of(path: Path, name: str, progress: bool = True) -> str:
    """MD5 of a file, hexadecimal; it tells damage, not forgery. ``name`` is for the bar."""
    digest = hashlib.md5(usedforsecurity=False)
    options = {"desc": f"check {name}", "unit": "B", "unit_scale": True, "disable": not progress}
    with path.open("rb") as file, tqdm(total=path.stat().st_size, **options) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _check(archive: Archive, path: Path, progress: bool) -> None:
    digest = md5_of(path, archive.name, progress)
    if digest != archive.md5:
        path.unlink()
        raise InputError(f"{path}: expected MD5 {archive.md5}, got {digest}; deleted, load it again")


def unpack(path: Path, folder: str | Path, progress: bool = True) -> None:
    """Unpack a zip file; files that are there with their size are left alone.

    Raises:
        InputError: not a zip file, a name that leads out of the folder, or no room.
    """
    root = Path(folder).resolve()
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            for member in tqdm(members, f"unpack {path.name}", unit="file", disable=not progress):
                target = (root / member.filename).resolve()
                if not target.is_relative_to(root):
                    raise InputError(f"{path}: {member.filename}: expected a name within the folder; use another file")
                if target.is_file() and target.stat().st_size == member.file_size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(target) as temporary, archive.open(member) as source, temporary.open("wb") as file:
                    shutil.copyfileobj(source, file, CHUNK)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: expected an intact zip file, got another ({error}); load it again") from None
    except OSError as error:
        raise InputError(f"{root}: could not be written {why_not_written(error)}") from None
