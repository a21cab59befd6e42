"""RoIAlign on a CPU as a weighted sum of rows, which PyTorch does vectorised and on all cores.

RoIAlign (He et al., 2017) is linear in the feature map and separable: a bin's value is the sum over the cells that its
samples touch, with weights that are a product of one factor per axis. With the map as a table (H*W, C) that is an
``embedding_bag`` of one bag per bin. torchvision's operator runs on one core, sample by sample; samples that touch the
same cell are merged here, and regions of one size go together, so that Detectron2's adaptive sampling costs little more
than a fixed one. Gradients are of the map alone, not of the regions, as torchvision's.

Legend: ``K`` regions, ``P, Q`` bins per axis, ``M`` cells that a bin touches per axis, ``C`` channels.
"""

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

ENTRIES = 1 << 22  # of the table of weights made at a time


def pool_regions(
    map_: Tensor, regions: Tensor, size: tuple[int, int], scale: float, sampling: int, aligned: bool
) -> Tensor:
    """RoIAlign of regions, as ``torchvision.ops.roi_align`` up to rounding.

    Args:
        map_: (N, C, H, W).
        regions: (K, 4) xyxy in pixels of the first image, or (K, 5) with the number of the image before them.
        size: (P, Q).
        scale: cells per pixel.
        sampling: samples per bin and axis; 0: as many as the bin has cells.
        aligned: half a cell is subtracted.

    Returns:
        (K, C, P, Q); where it is computed here, float32 in channels_last.
    """
    full = (torch.float32, torch.bfloat16)
    if regions.shape[1] == 4:
        regions = torch.cat([torch.zeros_like(regions[:, :1]), regions], 1)
    if map_.device.type != "cpu" or map_.dtype not in full or torch.jit.is_tracing():
        return roi_align(map_, regions, size, scale, sampling, aligned)
    if not len(regions):
        return map_.new_zeros(0, map_.shape[1], *size, dtype=torch.float32)
    height, width = map_.shape[2:]
    table = map_.float().permute(0, 2, 3, 1).flatten(0, 2)  # (N*H*W, C)
    image, regions = regions[:, 0].int(), regions[:, 1:].detach()
    shift = 0.5 if aligned else 0.0
    low, high = regions[:, :2] * scale - shift, regions[:, 2:] * scale - shift  # (K, 2) as x, y
    sides = high - low if aligned else (high - low).clamp(min=1)
    order, groups = _alike(sides / sides.new_tensor(size[::-1]), sampling)
    pooled = []
    for group in groups:
        rows, row_weights = _axis(low[group, 1], sides[group, 1], size[0], height, sampling)
        columns, column_weights = _axis(low[group, 0], sides[group, 0], size[1], width, sampling)
        rows = rows + height * image[group, None, None]
        step = max(1, ENTRIES // (size[0] * size[1] * rows.shape[2] * columns.shape[2]))
        for at in range(0, len(group), step):
            chunk = slice(at, at + step)
            index = rows[chunk, :, None, :, None] * width + columns[chunk, None, :, None, :]  # (k, P, Q, M, M')
            weight = row_weights[chunk, :, None, :, None] * column_weights[chunk, None, :, None, :]
            bags = index.flatten(3).flatten(0, 2)
            sums = functional.embedding_bag(bags, table, mode="sum", per_sample_weights=weight.view_as(bags))
            pooled.append(sums.view(-1, *size, table.shape[1]))
    whole = torch.cat(pooled)
    return (whole if len(groups) == 1 else whole[order.argsort()]).permute(0, 3, 1, 2)


def _alike(steps: Tensor, sampling: int) -> tuple[Tensor, list[Tensor]]:
    """The regions (K,) in an order of groups that touch about as many cells, so that a slender one costs none but
    itself; and the groups.

    Args:
        steps: (K, 2), sides of the bins in cells.
        sampling: samples per bin, or 0.
    """
    touched = steps.clamp(min=0).ceil() + 2
    if sampling > 0:
        touched = touched.clamp(max=2 * sampling)
    together = len(touched) * touched.amax(0).prod()
    if together <= 2 * touched.prod(1).sum():
        everything = torch.arange(len(touched), device=touched.device)
        return everything, [everything]
    doublings = touched.log2().ceil().long()
    kinds = 64 * doublings[:, 0] + doublings[:, 1]
    order = kinds.argsort(stable=True)
    counts = kinds[order].unique_consecutive(return_counts=True)[1]
    return order, list(order.split(counts.tolist()))


def _axis(start: Tensor, side: Tensor, bins: int, cells: int, sampling: int) -> tuple[Tensor, Tensor]:
    """Cells (K, P, M), int32, that each bin of each region touches along an axis, and their weights (K, P, M).

    Args:
        start, side: (K,) of the regions, in cells.
        bins: P.
        cells: of the map.
        sampling: samples per bin, or 0.
    """
    step = side / bins
    if sampling > 0:
        counts = torch.full_like(step, float(sampling))
    else:
        counts = step.ceil()
    most = max(1, int(counts.max()))
    sample = torch.arange(most, device=start.device)  # (S,)
    offset = (sample + 0.5) * (step / counts.clamp(min=1))[:, None]  # (K, S)
    at = (start[:, None] + torch.arange(bins, device=start.device) * step[:, None])[..., None] + offset[:, None]
    inside = (at >= -1) & (at <= cells) & (sample < counts[:, None, None])  # (K, P, S)
    at = at.clamp(0, cells - 1)  # beyond the last cell its value holds, as before the first
    lower = at.floor()
    share = at - lower
    first = torch.where(inside, lower, float(cells)).amin(2, keepdim=True).clamp(max=cells - 1)  # (K, P, 1)
    last = torch.where(inside, lower, -1.0).amax(2, keepdim=True)
    spread = max(2, int((last - first).max()) + 2)
    scaled = inside / counts.clamp(min=1)[:, None, None]
    if 0 < 2 * sampling < spread:  # samples far apart: the two cells of each, and none between
        pairs = torch.stack([lower, (lower + 1).clamp(max=cells - 1)], 3)
        return pairs.flatten(2).int(), torch.stack([(1 - share) * scaled, share * scaled], 3).flatten(2)
    weights = start.new_zeros(*at.shape[:2], spread)
    place = torch.where(inside, lower - first, 0.0).long()
    weights.scatter_add_(2, place, (1 - share) * scaled)
    weights.scatter_add_(2, place + 1, share * scaled)
    index = first + torch.arange(spread, device=start.device)
    return index.clamp(max=cells - 1).int(), weights
