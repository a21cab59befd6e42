"""Files of configs: what they set, and what their bases do. Nothing in them is executed."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

EVAL = "tag:yaml.org,2002:python/object/apply:eval"
OCTAVES = re.compile(
    r"\[\[x, x \* 2\*\*\(1\.0/3\), x \* 2\*\*\(2\.0/3\) ?\] for x in \[((?:\d{1,6}, ?){0,20}\d{1,6}) ?\]\]"
)


@contextmanager
def known_expressions() -> Iterator[None]:
    """While the block runs, YAML's safe loader knows the one expression in Detectron2's configs: RetinaNet's anchors,
    three to an octave. It is read, not executed, and any other is refused as before."""
    loader: Any = yaml.SafeLoader
    before = dict(loader.yaml_constructors)

    def construct(_: Any, node: yaml.Node) -> list[list[float]]:
        words = [each.value for each in node.value] if isinstance(node, yaml.SequenceNode) else []
        match = OCTAVES.fullmatch(words[0]) if len(words) == 1 and isinstance(words[0], str) else None
        if match is None:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"an expression that would be executed ({str(words)[:60]}): write its value",
                node.start_mark,
            )
        sizes = [int(size) for size in match[1].split(",")]
        return [[size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)] for size in sizes]

    loader.add_constructor(EVAL, construct)
    try:
        yield
    finally:
        loader.yaml_constructors = before


def has_reference(path: Path) -> bool:
    """Whether the file of a config's bases that sets the learning rate says what batches it is for."""
    solver = _content(path).get("SOLVER") or {}
    if "REFERENCE_IMS_PER_BATCH" in solver or "BASE_LR" in solver:
        return "REFERENCE_IMS_PER_BATCH" in solver
    return any(has_reference(base) for base in _bases(path))


def is_inherited(path: str | Path, given: Sequence[str]) -> bool:
    """Whether SOLVER.MAX_ITER comes from farther away than DATASETS.TRAIN: is of a file that is for other data.

    Args:
        path: of the config.
        given: keys that are set beside it.
    """
    depths = [
        -1 if key in given else _depth(Path(path), *key.split(".")) for key in ("SOLVER.MAX_ITER", "DATASETS.TRAIN")
    ]
    return depths[0] > depths[1]


def _depth(path: Path, section: str, name: str) -> float:
    """How many bases away a file sets a key; infinite where none does."""
    if name in (_content(path).get(section) or {}):
        return 0
    return 1 + min((_depth(base, section, name) for base in _bases(path)), default=math.inf)


def _content(path: Path) -> dict[str, Any]:
    with known_expressions():
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _bases(path: Path) -> list[Path]:
    bases = _content(path).get("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    return [path.parent / Path(base).expanduser() for base in bases if "://" not in base]
