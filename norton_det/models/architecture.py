"""The ResNets that can be compressed, as data: their convolutions, and who reads and writes which channels.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; names are torchvision's. A *channel set* is a
group of channels of which the same ones are kept everywhere: those of a residual stream, named after its stage
(``layer1``), and those between two convolutions of a block, named after the convolution that writes them
(``layer1.0.conv1``). The stem's is ``conv1``; with basic blocks the first stage adds to what the stem puts out, so
that the two are one set, ``layer1``.

A further ResNet is one more row of ``ARCHITECTURES``, another kind of block one more of ``BLOCKS``. Standard library
only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ..utils.errors import InputError

BLOCKS: dict[str, tuple[tuple[str, int], ...]] = {  # kind of block -> its convolutions: name, side of the kernel
    "basic": (("conv1", 3), ("conv2", 3)),
    "bottleneck": (("conv1", 1), ("conv2", 3), ("conv3", 1)),
}
EXPANSION = {"basic": 1, "bottleneck": 4}  # of a block's outputs over its inner width
IMAGE = "image"  # the channel set that the stem reads


def norm_name(conv: str) -> str:
    """Of the normalisation after a convolution: ``bn1`` of ``conv1``."""
    return conv.replace("conv", "bn")


@dataclass(frozen=True)
class Site:
    """One convolution and the normalisation after it.

    Attributes:
        name, norm: of the two.
        kernel: side, 1, 3 or 7.
        reads, writes: channel sets.
        stage, block: 1..4 and 0..; 0 and 0 for the stem.
        factored: whether it gets a CP rank; as in the paper every convolution of a block that is larger than 1x1.
        projection: whether it is on the shortcut.
    """

    name: str
    norm: str
    kernel: int
    reads: str
    writes: str
    stage: int
    block: int
    factored: bool = False
    projection: bool = False


@dataclass(frozen=True)
class Architecture:
    """A dense ResNet.

    Attributes:
        name: torchvision's.
        kind: of its blocks, a name in ``BLOCKS``.
        depths: blocks of each stage.
        stem: outputs of the first convolution.
        inner: width inside the blocks of each stage.
    """

    name: str
    kind: str
    depths: tuple[int, int, int, int]
    stem: int = 64
    inner: tuple[int, int, int, int] = (64, 128, 256, 512)

    @property
    def convs(self) -> tuple[tuple[str, int], ...]:
        """Names and kernels of a block's convolutions."""
        return BLOCKS[self.kind]

    @property
    def outputs(self) -> tuple[int, int, int, int]:
        """Width of each stage's residual stream."""
        first, second, third, fourth = (EXPANSION[self.kind] * width for width in self.inner)
        return first, second, third, fourth

    @property
    def num_blocks(self) -> int:
        return sum(self.depths)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(stage 1..4, block 0..) of every block, in order."""
        return ((stage, block) for stage, depth in enumerate(self.depths, 1) for block in range(depth))

    def stream(self, stage: int) -> str:
        """The channel set that a stage writes; of stage 0, the stem."""
        return f"layer{stage}" if stage else "conv1" if self.projects(1, 0) else "layer1"

    def projects(self, stage: int, block: int) -> bool:
        """Whether a block's shortcut has a convolution; pruning does not change that."""
        return block == 0 and (stage > 1 or EXPANSION[self.kind] > 1)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every convolution, in the order of torchvision's modules."""
        sites = [Site("conv1", "bn1", 7, IMAGE, self.stream(0), 0, 0)]
        for stage, block in self.blocks():
            name, source = f"layer{stage}.{block}", self.stream(stage if block else stage - 1)
            reads = source
            for conv, kernel in self.convs:
                writes = self.stream(stage) if conv == self.convs[-1][0] else f"{name}.{conv}"
                norm = f"{name}.{norm_name(conv)}"
                sites.append(Site(f"{name}.{conv}", norm, kernel, reads, writes, stage, block, kernel > 1))
                reads = writes
            if self.projects(stage, block):
                shortcut = (f"{name}.downsample.0", f"{name}.downsample.1")
                sites.append(Site(*shortcut, 1, source, self.stream(stage), stage, block, projection=True))
        return tuple(sites)

    def sites_of(self, stage: int, block: int) -> list[Site]:
        """The convolutions of one block, a projection last."""
        return [site for site in self.sites if (site.stage, site.block) == (stage, block)]

    def strided(self, stage: int, block: int, in_1x1: bool = False) -> str:
        """The convolution, beside the projection, that halves a block's maps; "" where none does.

        It is the block's first 3x3 convolution, or with ``in_1x1`` its first one.
        """
        if stage == 1 or block:
            return ""
        conv = self.convs[0][0] if in_1x1 else next(name for name, kernel in self.convs if kernel > 1)
        return f"layer{stage}.{block}.{conv}"

    @cached_property
    def factored(self) -> tuple[str, ...]:
        """The convolutions that get a CP rank, in the order of a spec's ranks."""
        return tuple(site.name for site in self.sites if site.factored)

    @cached_property
    def widths(self) -> dict[str, int]:
        """Channels of every channel set of the dense network."""
        widths = {IMAGE: 3, self.stream(0): self.stem}
        for site in self.sites[1:]:
            inside = site.writes != self.stream(site.stage)
            widths[site.writes] = (self.inner if inside else self.outputs)[site.stage - 1]
        return widths

    @cached_property
    def pruned(self) -> dict[str, int]:
        """What a spec's ratios are of, in their order, with the dense width: streams, then blocks; not stage 4."""
        streams = dict.fromkeys(self.stream(stage) for stage in range(4))
        return {name: self.widths[name] for name in streams} | {
            f"layer{stage}.{block}": self.inner[stage - 1] for stage, block in self.blocks()
        }

    @property
    def ratios_text(self) -> str:
        """What the ratios are of, for messages: ``stem, 3 stages, 16 blocks``."""
        streams = len(self.pruned) - self.num_blocks
        first = "stem, 3 stages" if streams == 4 else "stem and stage 1 together, 2 stages"
        return f"{first}, {self.num_blocks} blocks"

    def group(self, channels: str) -> str | None:
        """Which of ``pruned`` a channel set belongs to; ``None`` for the image and stage 4, which stay whole."""
        if channels in self.pruned:
            return channels
        block = channels.rpartition(".")[0]
        return block if block in self.pruned else None


ARCHITECTURES: dict[str, Architecture] = {
    name: Architecture(name, kind, depths)
    for name, kind, depths in (
        ("resnet18", "basic", (2, 2, 2, 2)),
        ("resnet34", "basic", (3, 4, 6, 3)),
        ("resnet50", "bottleneck", (3, 4, 6, 3)),
        ("resnet101", "bottleneck", (3, 4, 23, 3)),
        ("resnet152", "bottleneck", (3, 8, 36, 3)),
    )
}


def architecture(name: object) -> Architecture:
    """The architecture of that name.

    Raises:
        InputError: there is none.
    """
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(f"arch: expected one of {', '.join(ARCHITECTURES)}, got {name!r:.40}; choose one of them")
    return ARCHITECTURES[name]
