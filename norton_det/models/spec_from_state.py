"""The CompressionSpec of a state dict, read off the shapes of its tensors.

Nobody has to repeat rank and ratios on a command line: the number of filters of each layer tells the widths, and the
rows of ``pointwise`` in a CP layer its rank. A ratio is not unique then; the shortest decimal that gives the stored
width by ``int(width * (1 - ratio))`` is taken, or the ratios of a preset that gives the same network.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..utils.errors import InputError
from .architecture import ARCHITECTURES, BLOCKS, Architecture, Site, norm_name
from .notation import format_list, parse_list
from .presets import presets
from .spec import KERNEL, CompressionSpec

_MAX_FILTERS = 65536  # of a CP layer


def spec_from_state(
    state: Mapping[str, Tensor], rank: int | None = None, ratios: str | Sequence[float] | None = None
) -> CompressionSpec:
    """The spec that gives a network of these shapes.

    Args:
        state: tensors of a ResNet by torchvision's names; only their shapes are used.
        rank, ratios: what a file says of itself, if it does: the CP rank, and a ratio list or its text. They are
            checked against the shapes and then kept; surplus numbers are ignored, as in the release.

    Raises:
        InputError: a layer is missing, a width is beyond the dense network's, the blocks are of another kind, or
            ``rank`` or ``ratios`` do not agree with the shapes.
    """
    arch = _architecture(state)
    ranks = [_rank(state, site) for site in arch.sites if site.factored]
    writers = {site.writes: site for site in reversed(arch.sites) if not site.projection}  # the first of each
    sites = [writers[f"{name}.{arch.convs[0][0]}" if "." in name else name] for name in arch.pruned]
    widths = [_filters(state, site, limit) for site, limit in zip(sites, arch.pruned.values(), strict=True)]
    last, whole = writers[arch.stream(4)], arch.outputs[3]
    if (got := _filters(state, last, whole)) != whole:
        raise InputError(f"{last.name}.weight: expected {whole} filters, got {got}; stage 4 is not pruned")
    kept = zip(arch.pruned.values(), widths, strict=True)
    spec = CompressionSpec(tuple(shortest_ratio(*pair) for pair in kept), tuple(ranks), arch.name)
    if rank is not None and set(spec.ranks) != {rank}:
        told = ", ".join(sorted({str(number or "none") for number in spec.ranks}))
        raise InputError(f"rank: the file says {rank}, its tensors have {told}; get the file again or remove its rank")
    known = (CompressionSpec.preset(name, arch.name) for name in presets(arch.name))
    preset = next((candidate for candidate in known if candidate.same_network(spec)), None)
    if ratios is not None:
        return _declared(spec, ratios, [site.name for site in sites]).named(preset.name if preset else "")
    return spec if preset is None else preset


def _architecture(state: Mapping[str, Tensor]) -> Architecture:
    blocks: list[set[int]] = [set(), set(), set(), set()]
    for name in state:
        if match := re.match(r"layer([1-4])\.(\d+)\.", name):
            blocks[int(match[1]) - 1].add(int(match[2]))
    depths = tuple(len(indices) for indices in blocks)
    kind = "bottleneck" if any(re.match(r"layer\d\.\d+\.conv3\.", name) for name in state) else "basic"
    alike = [arch for arch in ARCHITECTURES.values() if (arch.kind, arch.depths) == (kind, depths)]
    if alike and all(max(indices) == len(indices) - 1 for indices in blocks):
        last = state.get(f"layer4.0.{norm_name(BLOCKS[kind][-1][0])}.weight")
        width = len(last) if last is not None and last.ndim else 0
        return next((arch for arch in alike if arch.outputs[3] == width), alike[0])
    if not any(depths):
        raise InputError("expected the blocks of a ResNet (layer1.0.conv1.weight, ...), found none; use weights of one")
    known = ", ".join(f"{arch.name} {arch.depths}" for arch in ARCHITECTURES.values() if arch.kind == kind)
    mend = "a C4 detector keeps stage 4 in its box head, use an FPN one" if not depths[3] else "use one of these"
    raise InputError(f"{kind} blocks per stage: expected {known}, got {depths}; {mend}")


def _filters(state: Mapping[str, Tensor], site: Site, limit: int) -> int:
    """Outputs of a convolution: of its weight, or of the normalisation after a CP layer."""
    factored = f"{site.name}.pointwise.weight" in state
    name, dimensions = (f"{site.norm}.weight", 1) if factored else (f"{site.name}.weight", 4)
    tensor = state.get(name)
    if tensor is None:
        raise InputError(f"{name}: expected among the tensors, found none; use weights of a whole ResNet")
    if tensor.ndim != dimensions or not 1 <= tensor.shape[0] <= limit:
        raise InputError(
            f"{name}: expected 1 to {limit} filters of {dimensions} dimensions, got shape {tuple(tensor.shape)}; "
            "use an ordinary ResNet (not Wide ResNet or ResNeXt)"
        )
    return tensor.shape[0]


def _rank(state: Mapping[str, Tensor], site: Site) -> int:
    """CP rank of a convolution, 0 for a dense one."""
    pointwise, whole = state.get(f"{site.name}.pointwise.weight"), f"{site.name}.weight" in state
    if whole is (pointwise is not None):
        got = "both" if whole else "neither"
        raise InputError(f"{site.name}: expected a dense weight or CP factors, got {got}; get the file again")
    if pointwise is None:
        return 0
    width = _filters(state, site, _MAX_FILTERS)
    rows, largest = (pointwise.shape[0] if pointwise.ndim else 0), KERNEL[0] * KERNEL[1]
    if rows % width or not 1 <= rows // width <= largest:
        raise InputError(
            f"{site.name}.pointwise.weight: expected rank * {width} rows with rank 1 to {largest}, got {rows}; "
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


def _declared(stored: CompressionSpec, ratios: str | Sequence[float], layers: Sequence[str]) -> CompressionSpec:
    """The spec with the ratios that a file states, if they give the stored widths."""
    numbers = parse_list(ratios, "compress_rate") if isinstance(ratios, str) else list(ratios)
    spec = CompressionSpec(tuple(numbers[: len(layers)]), stored.rank, stored.arch)
    for layer, stated, filters in zip(layers, spec.left().values(), stored.left().values(), strict=True):
        if stated != filters:
            raise InputError(
                f"compress_rate: {format_list(spec.ratios)} leaves {stated} filters in {layer}, but {layer}.weight has "
                f"{filters}; get the file again or remove its compress_rate"
            )
    return spec
