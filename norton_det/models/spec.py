"""What to compress and by how much: CP ranks and pruning ratios of a ResNet (standard library only).

Legend: a ResNet has a stem, four stages, and ``B`` blocks in all (16 in ResNet-50).

With bottleneck blocks ``ratios`` is the list that the NORTON release uses, of length ``1 + 3 + B``::

    ratios[0]      stem output
    ratios[1:4]    output (residual stream) of stages 1-3; stage 4 is never pruned
    ratios[4:]     inner width (outputs of conv1 and conv2) of every block

With basic blocks (ResNet-18 and -34) stage 1 adds to what the stem puts out, so that the two share one number and the
length is ``3 + B``; the inner width is the output of conv1.

A width is ``int(width * (1 - ratio))``. ``rank`` is the CP rank of each filter of the 3x3 convolutions, one number for
all or one per convolution (a bottleneck has one, a basic block two); ``None`` leaves them dense, and so does 0 one of
several.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..utils.errors import InputError
from .architecture import ARCHITECTURES, Architecture, architecture
from .notation import format_list, parse_list, shorten
from .presets import presets

SPEC_VERSION = 1
KERNEL = (3, 3)  # of the convolutions that are decomposed


@dataclass(frozen=True)
class Widths:
    """Channel widths of a compressed ResNet.

    Attributes:
        stem: channels after conv1.
        stages: output channels of the four stages.
        blocks: inner width of each block, one tuple per stage.
    """

    stem: int
    stages: tuple[int, int, int, int]
    blocks: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CompressionSpec:
    """CP ranks and pruning ratios of a ResNet; immutable and validated.

    Attributes:
        ratios: pruning ratios in [0, 1), see the module's legend.
        rank: CP rank of the 3x3 convolutions (1..9), one for each when a tuple (0 there: dense), ``None`` for dense.
        arch: a name in ``ARCHITECTURES``.
        name: what people call it, for tables and file names.

    Raises:
        InputError: a field is out of range; the message names the field, what came, and the mend.
    """

    ratios: tuple[float, ...]
    rank: int | tuple[int, ...] | None = 1
    arch: str = "resnet50"
    name: str = ""

    def __post_init__(self) -> None:
        architecture(self.arch)
        if isinstance(self.ratios, str) or not isinstance(self.ratios, Iterable):
            raise InputError(
                f"ratios: expected numbers, got {shorten(self.ratios)}; use CompressionSpec.parse for text"
            )
        object.__setattr__(self, "ratios", tuple(_as_float(ratio, "ratios") for ratio in self.ratios))
        expected = len(self.architecture.pruned)
        if len(self.ratios) != expected:
            surplus = len(self.ratios) > expected and self.arch == "resnet50"  # the release ignores it
            mend = f"use ratios[:{expected}]" if surplus else f"give {expected}"
            raise InputError(
                f"ratios: expected {expected} ({self.architecture.ratios_text}), got {len(self.ratios)}; {mend}"
            )
        for index, ratio in enumerate(self.ratios):
            if not 0 <= ratio < 1:
                raise InputError(f"ratios[{index}]: expected 0 <= ratio < 1, got {ratio:g}; choose within it")
        if self.rank is not None:
            self._check_rank()
        self.widths()

    def _check_rank(self) -> None:
        largest = KERNEL[0] * KERNEL[1]
        if isinstance(self.rank, Iterable) and not isinstance(self.rank, str):
            ranks = tuple(_as_int(rank, "rank") for rank in self.rank)
            expected = len(self.architecture.factored)
            if len(ranks) != expected:
                per = "one per block" if expected == self.num_blocks else "one per 3x3 convolution"
                raise InputError(f"rank: expected one number or {expected} ({per}), got {len(ranks)}; give {expected}")
            object.__setattr__(self, "rank", (ranks[0] or None) if len(set(ranks)) == 1 else ranks)
            lowest = 0
        else:
            ranks, lowest = (_as_int(self.rank, "rank"),), 1
            object.__setattr__(self, "rank", ranks[0])
        for rank in ranks:
            if not lowest <= rank <= largest:
                raise InputError(
                    f"rank: expected 1 to {largest} (Kh*Kw of a 3x3 filter), got {shorten(rank)}; "
                    f"use 1 to {largest}, or none for dense (0 in a list)"
                )

    @classmethod
    def parse(
        cls,
        rank: int | str | Sequence[int] | None = 1,
        ratios: str | Sequence[float] | None = None,
        arch: str = "resnet50",
        name: str = "",
    ) -> "CompressionSpec":
        """A spec from a rank (number, list, or text such as ``[1]*8+[2]*8``) and ratios or their text (0 without)."""
        if isinstance(rank, str):
            text = rank.strip()
            if text.lower() in ("", "none", "dense"):
                rank = None
            else:
                numbers = [_as_int(number, "rank") for number in parse_list(text, "rank")]
                rank = numbers[0] if len(numbers) == 1 and "[" not in text else tuple(numbers)
        elif rank is not None and not isinstance(rank, int | float):
            rank = tuple(rank)
        if ratios is None:
            ratios = (0.0,) * len(architecture(arch).pruned)
        numbers_of = parse_list(ratios) if isinstance(ratios, str) else ratios
        return cls(ratios=numbers_of, rank=rank, arch=arch, name=name)  # type: ignore[arg-type]

    @classmethod
    def preset(cls, name: str, arch: str = "resnet50") -> "CompressionSpec":
        """A preset by its name, such as ``norton-78``: for ResNet-50 a published row of the paper, for another ResNet
        ranks and ratios that save as many MACs (in %, at 224 x 224).
        """
        known = presets(arch)
        if not isinstance(name, str) or name not in known:
            raise InputError(f"preset: expected one of {', '.join(known)}, got {shorten(name)}; choose one of them")
        rank, ratios = known[name]
        return cls.dense(arch) if name == "dense" else cls.parse(rank=rank, ratios=ratios, arch=arch, name=name)

    @classmethod
    def dense(cls, arch: str = "resnet50") -> "CompressionSpec":
        """The uncompressed network."""
        return cls(ratios=(0.0,) * len(architecture(arch).pruned), rank=None, arch=arch, name="dense")

    @property
    def architecture(self) -> Architecture:
        """The dense network that this is of."""
        return ARCHITECTURES[self.arch]

    @property
    def depths(self) -> tuple[int, int, int, int]:
        """Blocks per stage."""
        return self.architecture.depths

    @property
    def num_blocks(self) -> int:
        return self.architecture.num_blocks

    @property
    def ranks(self) -> tuple[int | None, ...]:
        """CP rank of each 3x3 convolution, in the order of ``architecture.factored``; ``None`` where it is dense."""
        ranks = self.rank if isinstance(self.rank, tuple) else (self.rank,) * len(self.architecture.factored)
        return tuple(rank or None for rank in ranks)

    def rank_of(self, conv: str) -> int | None:
        """CP rank of a convolution by its name, ``None`` for a dense one and those that are never factored."""
        factored = self.architecture.factored
        return self.ranks[factored.index(conv)] if conv in factored else None

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(stage 1..4, block 0..) of every block, in order."""
        return self.architecture.blocks()

    @property
    def is_dense(self) -> bool:
        return self.rank is None and not any(self.ratios)

    def widths(self) -> Widths:
        """Channel widths after pruning: ``int(width * (1 - ratio))`` as in the release."""
        arch = self.architecture
        left = self.left()
        stages = tuple(left.get(arch.stream(stage), arch.outputs[stage - 1]) for stage in range(1, 5))
        blocks = tuple(
            tuple(left[f"layer{stage}.{block}"] for block in range(depth)) for stage, depth in enumerate(self.depths, 1)
        )
        return Widths(left[arch.stream(0)], stages, blocks)  # type: ignore[arg-type]

    def channels(self) -> dict[str, int]:
        """Width after pruning of every channel set of ``architecture.widths``."""
        arch, left = self.architecture, self.left()
        groups = {name: arch.group(name) for name in arch.widths}
        return {name: arch.widths[name] if group is None else left[group] for name, group in groups.items()}

    def left(self) -> dict[str, int]:
        """Channels that each ratio leaves, by the names of ``architecture.pruned``."""
        full = self.architecture.pruned
        return {name: _pruned(width, self.ratios, index) for index, (name, width) in enumerate(full.items())}

    def named(self, name: str) -> "CompressionSpec":
        return replace(self, name=name)

    def same_network(self, other: "CompressionSpec") -> bool:
        """Whether both describe the same ranks and widths; the name does not count."""
        return (self.arch, self.ranks, self.widths()) == (other.arch, other.ranks, other.widths())

    def to_dict(self) -> dict[str, Any]:
        rank = list(self.rank) if isinstance(self.rank, tuple) else self.rank
        return {
            "version": SPEC_VERSION,
            "arch": self.arch,
            "rank": rank,
            "ratios": list(self.ratios),
            "name": self.name,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "CompressionSpec":
        if not isinstance(fields, dict):
            raise InputError(f"spec: expected a JSON object, got {shorten(fields)}; write it with to_json()")
        known = {"version", "arch", "rank", "ratios", "name"}
        if unknown := sorted(set(map(str, fields)) - known):
            raise InputError(f"spec: unknown field {unknown[0]!r}; the fields are {', '.join(sorted(known))}")
        if fields.get("version", SPEC_VERSION) != SPEC_VERSION:
            raise InputError(
                f"spec: version: expected {SPEC_VERSION}, got {shorten(fields['version'])}; update norton_det"
            )
        if not isinstance(fields.get("ratios"), list):
            raise InputError(f"spec: ratios: expected a list, got {shorten(fields.get('ratios'))}; write all of them")
        rank = fields.get("rank", 1)
        return cls(
            ratios=tuple(fields["ratios"]),
            rank=tuple(rank) if isinstance(rank, list) else rank,
            arch=fields.get("arch", "resnet50"),
            name=str(fields.get("name", "")),
        )

    @classmethod
    def from_json(cls, text: str) -> "CompressionSpec":
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError also for an integer of thousands of digits
            raise InputError(f"spec: expected JSON, got {shorten(text)} ({error}); write it with to_json()") from None
        return cls.from_dict(fields)

    def __str__(self) -> str:
        rank = format_list(self.rank) if isinstance(self.rank, tuple) else self.rank
        of = "" if self.arch == "resnet50" or not self.name else f" of {self.arch}"
        return f"{self.name or self.arch}{of} (rank {rank}, ratios {format_list(self.ratios)})"


def _pruned(width: int, ratios: Sequence[float], index: int) -> int:
    kept = int(width * (1 - ratios[index]))
    if kept < 1:
        raise InputError(
            f"ratios[{index}]: {ratios[index]:g} leaves none of {width} channels; use at most {1 - 1 / width:.4g}"
        )
    return kept


def _as_int(value: object, field: str) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())  # not infinity, not NaN
    if isinstance(value, bool) or not whole:
        raise InputError(f"{field}: expected a whole number, got {shorten(value)}; write 1, 2, ...")
    return int(value)  # type: ignore[call-overload]


def _as_float(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{field}: expected numbers, got {shorten(value)}; write 0.1, 0.2, ...")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{field}: expected numbers, got {shorten(value)}; write 0.1, 0.2, ...") from None
