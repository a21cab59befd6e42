"""Where the files of a folder in Pascal VOC's layout are, also as CVAT, macOS and Windows leave it.

``Annotations`` and ``JPEGImages`` may have folders below them, ``ImageSets/Main`` lists of any name; hidden files
(``._a.xml``, ``.DS_Store``) belong to the system and are passed over. A picture belongs to the annotations of its name,
else to those that name it.
"""

import codecs
import re
from collections import defaultdict
from collections.abc import Set
from functools import cached_property
from pathlib import Path

from ..utils.errors import InputError
from ..utils.files import require_file
from .class_match import nearest
from .images import SUFFIXES

SPLITS = ("train", "val", "trainval", "test")
ALL = "all"  # the split of a folder without lists
_RATING = re.compile(r"(?<=\S)\s+-?[01]$")  # what a list of VOC says of a class beside a name


class NamedFiles:
    """The files of some endings below a folder, by their path in it without the ending: ``job_1/0001``."""

    def __init__(self, folder: Path, suffixes: Set[str]) -> None:
        self.paths: dict[str, Path] = {}
        self._by_last: dict[str, list[str]] = defaultdict(list)
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder)
            hidden = any(part.startswith((".", "__MACOSX")) for part in inner.parts)
            if path.suffix.lower() in suffixes and not hidden and path.is_file():
                name = inner.with_suffix("").as_posix()
                self.paths[name] = path
                self._by_last[inner.stem].append(name)

    def find(self, *names: str) -> str | None:
        """The first of these that is there, else the only one that is called so in whatever folder."""
        for name in names:
            if name in self.paths:
                return name
        for name in names:
            alike = self._by_last.get(name.rpartition("/")[2], [])
            if len(alike) == 1:
                return alike[0]
        return None


class VocFolder:
    """A folder with ``Annotations``, ``JPEGImages`` and perhaps ``ImageSets/Main``; each is listed once.

    Raises:
        InputError: there is no such folder, or no ``Annotations`` in it.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not (self.root / "Annotations").is_dir():
            raise InputError(
                f"{self.root}: expected a folder with Annotations and JPEGImages, found none; check the path"
            )

    @cached_property
    def annotations(self) -> NamedFiles:
        return NamedFiles(self.root / "Annotations", {".xml"})

    @cached_property
    def pictures(self) -> NamedFiles:
        return NamedFiles(self.root / "JPEGImages", SUFFIXES)

    @cached_property
    def lists(self) -> dict[str, list[str]]:
        """Lines of the lists in ``ImageSets/Main``, else in ``ImageSets``, by their names."""
        folders = [self.root / "ImageSets" / "Main", self.root / "ImageSets"]
        folder = next((folder for folder in folders if folder.is_dir()), folders[0])
        files = sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))
        return {path.stem: _lines(path) for path in files}

    def splits(self) -> list[str]:
        """Names of the lists that are not empty: train, val, trainval and test first; ``all`` where there is none.

        VOC's lists of one class (``cat_train.txt``) are none.
        """
        names = [name for name, lines in self.lists.items() if lines and not self._is_of_a_class(name)]
        return sorted(names, key=lambda name: (*(name.lower() != split for split in SPLITS), name)) or [ALL]

    def names(self, split: str) -> list[str]:
        """Sorted names of the annotations of a split, as ``annotations`` has them.

        Raises:
            InputError: no such list, or one that names annotations that are not there.
        """
        if split == ALL:
            return list(self.annotations.paths)
        if split not in self.lists:
            known = nearest(split, list(self.lists)) or f"there is {', '.join(self.lists) or 'none'}"
            file = self.root / "ImageSets" / "Main" / f"{split}.txt"
            raise InputError(f"{file}: expected the list of a split, found no such file; {known}")
        return sorted({self._listed(line) for line in self.lists[split]})

    def picture(self, name: str, filename: str) -> Path:
        """The picture of annotations: that of the same name, else the one that they name.

        Args:
            name: of the annotations.
            filename: that they say, perhaps with folders of another machine.

        Raises:
            InputError: there is none.
        """
        said = _without_suffix(re.split(r"[/\\]", filename.strip())[-1])
        beside = f"{name.rpartition('/')[0]}/{said}".removeprefix("/")
        found = self.pictures.find(name, *([beside, said] if said else []))
        if found is None:
            return require_file(self.root / "JPEGImages" / f"{name}.jpg", "an image")
        return self.pictures.paths[found]

    def _listed(self, line: str) -> str:
        """The annotations that a line of a list means."""
        name = line.replace("\\", "/").removeprefix("./")
        name = name.removeprefix("JPEGImages/").removeprefix("Annotations/")
        found = self.annotations.find(name, _without_suffix(name), _without_suffix(_RATING.sub("", name)))
        if found is None:
            require_file(self.root / "Annotations" / f"{_without_suffix(name)}.xml", "VOC annotations (XML)")
        return str(found)

    def _is_of_a_class(self, name: str) -> bool:
        first, _, split = name.rpartition("_")
        return bool(first) and split in self.lists


def _without_suffix(name: str) -> str:
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in SUFFIXES | {".xml"} else name


def _lines(file: Path) -> list[str]:
    """Lines of a text with something in them; a mark of its encoding (BOM) is no part of them.

    Raises:
        InputError: no text, or one that cannot be read.
    """
    try:
        data = file.read_bytes()
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{file}: expected a list of names, cannot read it ({reason}); save it anew") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
