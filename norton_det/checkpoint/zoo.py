"""The zoo: networks by name, their configs, and weights that are downloaded once and held against their checksum.

A name is LEVEL/NETWORK, as in ``norton-78/faster_rcnn``: LEVEL is dense or a preset, NETWORK a ResNet or an R-CNN (on
ResNet-50 unless it says another). ``dense-detectron2/...`` are Detectron2's own baselines. ``zoo_table`` has
what is known of each.

Nobody publishes weights of compressed detectors: an entry without weights is what a config trains to.
"""

import difflib
import hashlib
import logging
import os
from pathlib import Path

from ..utils.configs import find_config
from ..utils.download import fetch
from ..utils.errors import InputError
from ..utils.files import atomic_path, read_whole, require_file, write_text
from .digest import check_beside, file_digest
from .zoo_table import ENTRIES, Entry, Weights

logger = logging.getLogger(__name__)
FOLDER = "NORTON_DET_ZOO"  # environment variable: where weights are kept, instead of torch's cache


def entries() -> tuple[Entry, ...]:
    """All of the zoo, network by network."""
    return ENTRIES


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
        InputError: there is none; the nearest names are told.
    """
    by_name = {entry.name: entry for entry in ENTRIES}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, 3, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "see norton-det zoo"
    raise InputError(f"zoo: expected LEVEL/NETWORK such as norton-78/faster_rcnn, got {name!r}; {hint}")


def config_path(name: str) -> Path:
    """The config file of an entry.

    Raises:
        InputError: no such entry, or it has none (classifiers, and Detectron2's own baselines).
    """
    entry = find(name)
    if not entry.config:
        raise InputError(
            f"{name}: expected a detector with a config of this project, got one without; see norton-det zoo"
        )
    return find_config(entry.config)


def folder_of_weights() -> Path:
    """Where weights are kept: ``NORTON_DET_ZOO``, else the cache of torch.hub, where torchvision keeps them too."""
    if named := os.environ.get(FOLDER):
        return Path(named)
    from torch import hub

    return Path(hub.get_dir()) / "checkpoints"


def weights_path(name: str, folder: str | Path | None = None, progress: bool = True) -> Path:
    """The file of an entry's weights; it is downloaded where it is not there yet, and held against its checksum.

    Args:
        name: of the entry.
        folder: where it is kept, by default ``folder_of_weights()``.
        progress: show a bar.

    Raises:
        InputError: no such entry, nobody publishes its weights, no network, or another checksum than is known; what was
            downloaded is not kept then.
    """
    entry = find(name)
    if entry.weights is None:
        where = f"train {entry.config}" if entry.config else f"compress zoo://dense/{entry.network}"
        where = f"look at {entry.page}, and give the file itself" if entry.page else where
        raise InputError(f"{name}: expected published weights, found none of a known name; {where}")
    weights = entry.weights
    file = Path(folder or folder_of_weights()) / weights.name
    if file.is_file():
        check(require_file(file, "weights"), weights)
        return file
    with atomic_path(file) as temporary:
        fetch(weights.url, temporary, progress=progress)
        digest = check(temporary, weights, name=weights.name)
    beside = file.with_name(f"{file.name}.sha256")  # the next time it is held against this one
    write_text(beside, f"{digest}  {file.name}\n")
    logger.info("%s: SHA-256 %s, kept in %s", file, digest, beside.name)
    return file


def check(file: Path, weights: Weights, name: str = "") -> str:
    """Hold a file against what is known of it, and against ``FILE.sha256`` beside it; its SHA-256.

    Raises:
        InputError: another checksum.
    """
    shown, data = name or str(file), read_whole(file, "weights")
    digest = hashlib.sha256(data).hexdigest()
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest() if weights.md5 else ""
    for kind, known, real in (("SHA-256", weights.sha256, digest), ("MD5", weights.md5, md5)):
        if not real.startswith(known.lower()):
            raise InputError(
                f"{shown}: expected {kind} {known}..., as {weights.owner} says, got {real[: max(12, len(known))]}...; "
                f"{'it was not kept, load it again' if name else 'remove it, and it is loaded again'}"
            )
    if not name:
        check_beside(file, data)
    return digest


def verify(path: str | Path) -> str:
    """A line on a file that has the name of one of the zoo's: its SHA-256, and whose checksum it agrees with.

    Raises:
        InputError: no such file, no file of the zoo has its name (the nearest is told), or another checksum.
    """
    file = require_file(path, "weights")
    published = {entry.weights.name: (entry, entry.weights) for entry in ENTRIES if entry.weights is not None}
    if file.name not in published:
        near = difflib.get_close_matches(file.name, published, 1, 0.5)
        told = f"did you mean {near[0]}?" if near else "see norton-det zoo NAME for theirs"
        raise InputError(
            f"{file}: expected the name of a file of the zoo, whose checksum is known, got {file.name!r} with SHA-256 "
            f"{file_digest(file)}; {told}"
        )
    entry, weights = published[file.name]
    digest = check(file, weights)
    how = f"SHA-256 {weights.sha256}..." if weights.sha256 else f"MD5 {weights.md5}..."
    return f"{file}: {entry.name}, SHA-256 {digest}; it has what {weights.owner} says: {how}"
