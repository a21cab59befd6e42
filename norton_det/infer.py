"""The CompressionSpec of a state dict, read off the shapes of its tensors.

Nobody has to repeat rank and ratios on a command line: the number of filters of each layer tells the widths, and the
rows of ``conv2.pointwise`` the CP rank. A ratio is not unique then; the shortest decimal that gives the stored width
by ``int(width * (1 - ratio))`` is taken, or the ratios of a preset that gives the same network.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from .errors import InputError
from .number_list import format_list, parse_list
from .spec import (
    ARCHITECTURES,
    BLOCK_WIDTHS,
    KERNEL,
    PRESETS,
    STAGE_WIDTHS,
    STEM_WIDTH,
    CompressionSpec,
    Widths,
)


def spec_from_state(
    state: Mapping[str, Tensor], rank: int | None = None, ratios: str | Sequence[float] | None = None
) -> CompressionSpec:
    """The spec that gives a network of these shapes.

    Args:
        state: tensors of a ResNet by torchvision's names; only their shapes are used.
        rank, ratios: what a file says of itself, if it does: the CP rank, and a ratio list or its text. They are
            checked against the shapes and then kept; numbers beyond ``4 + blocks`` are ignored, as in the release.

    Raises:
        InputError: a layer is missing, a width is beyond the dense network's, the blocks are of another kind, or
            ``rank`` or ``ratios`` do not agree with the shapes.
    """
    arch = _architecture(state)
    depths = ARCHITECTURES[arch]
    names = [f"layer{stage + 1}.{block}" for stage, depth in enumerate(depths) for block in range(depth)]
    found_ranks = [_rank(state, name) for name in names]
    limits = (STEM_WIDTH, *STAGE_WIDTHS[:3], *(BLOCK_WIDTHS[int(name[5]) - 1] for name in names))
    layers = ("conv1", *(f"layer{stage}.0.conv3" for stage in (1, 2, 3)), *(f"{name}.conv1" for name in names))
    widths = [_filters(state, f"{layer}.weight", limit) for layer, limit in zip(layers, limits, strict=True)]
    if (last := _filters(state, "layer4.0.conv3.weight", STAGE_WIDTHS[3])) != STAGE_WIDTHS[3]:
        raise InputError(
            f"layer4.0.conv3.weight: expected {STAGE_WIDTHS[3]} filters, got {last}; stage 4 is not pruned"
        )
    found = CompressionSpec(
        tuple(shortest_ratio(limit, width) for limit, width in zip(limits, widths, strict=True)),
        tuple(found_ranks),
        arch,
    )
    if rank is not None and set(found.ranks) != {rank}:
        told = ", ".join(sorted({str(number or "none") for number in found.ranks}))
        raise InputError(f"rank: the file says {rank}, its tensors have {told}; get the file again or remove its rank")
    preset = next((spec for spec in map(CompressionSpec.preset, PRESETS) if spec.same_network(found)), None)
    if ratios is not None:
        return _declared(found, ratios, layers).named(preset.name if preset else "")
    if preset is not None:
        return preset
    return CompressionSpec.dense(arch) if found.is_dense else found


def _architecture(state: Mapping[str, Tensor]) -> str:
    blocks: list[set[int]] = [set(), set(), set(), set()]
    for name in state:
        if match := re.match(r"layer([1-4])\.(\d+)\.", name):
            blocks[int(match[1]) - 1].add(int(match[2]))
    depths = tuple(len(indices) for indices in blocks)
    if "layer1.0.conv2.weight" in state and not any(name.endswith(".conv3.weight") for name in state):
        raise InputError(
            f"expected bottleneck blocks (ResNet-50, -101, -152), got basic blocks {depths} as in ResNet-18 or -34; "
            "use a ResNet-50"
        )
    for arch, expected in ARCHITECTURES.items():
        if depths == expected and all(max(indices) == len(indices) - 1 for indices in blocks):
            return arch
    known = ", ".join(f"{arch} {depth}" for arch, depth in ARCHITECTURES.items())
    mend = "a C4 detector keeps stage 4 in its box head, use an FPN one" if not depths[3] else "use one of these"
    raise InputError(f"blocks per stage: expected {known}, got {depths}; {mend}")


def _filters(state: Mapping[str, Tensor], name: str, limit: int) -> int:
    tensor = state.get(name)
    if tensor is None:
        raise InputError(f"{name}: expected among the tensors, found none; use weights of a whole ResNet")
    if tensor.ndim != 4 or not 1 <= tensor.shape[0] <= limit:
        raise InputError(
            f"{name}: expected 1 to {limit} filters of 4 dimensions, got shape {tuple(tensor.shape)}; "
            "use an ordinary ResNet (not Wide ResNet or ResNeXt)"
        )
    return tensor.shape[0]


def _rank(state: Mapping[str, Tensor], block: str) -> int:
    """CP rank of a block's conv2, 0 for a dense one."""
    pointwise, whole = state.get(f"{block}.conv2.pointwise.weight"), f"{block}.conv2.weight" in state
    if whole is (pointwise is not None):
        got = "both" if whole else "neither"
        raise InputError(f"{block}.conv2: expected a dense weight or CP factors, got {got}; get the file again")
    if pointwise is None:
        return 0
    width = _filters(state, f"{block}.conv1.weight", max(BLOCK_WIDTHS))
    rows, largest = (pointwise.shape[0] if pointwise.ndim else 0), KERNEL[0] * KERNEL[1]
    if rows % width or not 1 <= rows // width <= largest:
        raise InputError(
            f"{block}.conv2.pointwise.weight: expected rank * {width} rows with rank 1 to {largest}, got {rows}; "
            "get the file again"
        )
    return rows // width


def shortest_ratio(limit: int, width: int) -> float:
    """The shortest decimal that keeps ``width`` of ``limit`` channels."""
    for digits in range(1, 5):
        ratio = int((1 - width / limit) * 10**digits) / 10**digits
        if int(limit * (1 - ratio)) == width:
            return ratio
    return (limit - width - 0.5) / limit  # the middle of the interval


def _declared(found: CompressionSpec, ratios: str | Sequence[float], layers: Sequence[str]) -> CompressionSpec:
    """The spec with the ratios that a file states, if they give the widths that were found."""
    numbers = parse_list(ratios, "compress_rate") if isinstance(ratios, str) else list(ratios)
    spec = CompressionSpec(tuple(numbers[: len(layers)]), found.rank, found.arch)
    for layer, stated, stored in zip(layers, _flat(spec.widths()), _flat(found.widths()), strict=True):
        if stated != stored:
            raise InputError(
                f"compress_rate: {format_list(spec.ratios)} leaves {stated} filters in {layer}, but {layer}.weight has "
                f"{stored}; get the file again or remove its compress_rate"
            )
    return spec


def _flat(widths: Widths) -> list[int]:
    return [widths.stem, *widths.stages[:3], *(width for stage in widths.blocks for width in stage)]
