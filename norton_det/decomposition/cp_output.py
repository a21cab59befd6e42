"""CP decomposition in the metric of the output: the factors that give a layer's outputs, not its weights.

A filter of factors A, B, C has the weight ``w = sum_r k_r (x) a_r`` over patches ``x`` of the input, with
``k_r = khatri_rao(b_r, c_r)``. With the exact covariance M of the patches (K*I x K*I) and their covariance n with
the target, its squared output error is ``w^T M w - 2 n^T w`` plus a constant: quadratic in each factor of each
component. So the components are updated in turn (a, then b and c), each by an exact solve, and the error never
rises. The decomposition of the weights (``cp``) is the start.

A metric that is a Kronecker product over the modes would be cheaper, but channels and positions of a patch are not
independent, and it is too coarse to help.

Legend: ``O`` filters, ``I`` input channels, ``Kh``/``Kw`` kernel, ``K = Kh*Kw``, ``R`` rank. Patch features are
kernel-major: feature ``k*I + i``.
"""

import math

import torch
from torch import Tensor

from ..utils.threads import on_threads
from .cp import Factors, khatri_rao
from .moments import Moments

_INNER = 3  # alternations of b and c for every solve of a: they cost nothing beside it
_CHUNK = 1 << 23  # numbers per batch of normal equations: 64 MB
_FILTERS = 32  # at most so many at a time: work for several threads


def flatten_weight(weight: Tensor) -> Tensor:
    """(O, I, Kh, Kw) -> (O, K*I), kernel-major."""
    return weight.flatten(2).transpose(1, 2).flatten(1)


def unflatten_weight(flat: Tensor, kernel_size: tuple[int, ...]) -> Tensor:
    """(O, K*I), kernel-major -> (O, I, Kh, Kw)."""
    by_position = flat.unflatten(1, (math.prod(kernel_size), -1))  # (O, K, I)
    return by_position.transpose(1, 2).unflatten(2, kernel_size)


def weight_of(factors: Factors) -> Tensor:
    """The weight (O, K*I) of factors."""
    return (khatri_rao(factors.b, factors.c) @ factors.a.transpose(1, 2)).flatten(1)


def fit_output(
    moments: Moments, start: Factors, prior: Tensor, share: float, *, sweeps: int = 3, kernel: bool = True
) -> Factors:
    """Factors that minimise a layer's output error on the patches behind ``moments``.

    Args:
        moments: of patches (rows, K*I) and targets (rows, O).
        start: factors (O, I, R), (O, Kh, R), (O, Kw, R) to begin with.
        prior: weight (O, K*I) that the solution is drawn to where the data do not decide.
        share: how much, see ``Moments.least_squares``.
        sweeps: times each component is updated.
        kernel: whether B and C are fitted too; else only A is (the best 1x1 in front of fixed kernels).

    Returns:
        New factors, float64.
    """
    outputs, inputs, rank = start.a.shape
    height, width = start.b.shape[1], start.c.shape[1]
    size = height * width
    ridge = moments.ridge(share)
    metric = moments.xx.clone()
    metric.diagonal().add_(ridge)
    target = (moments.xy.T + ridge * prior.double()).view(outputs, size, inputs)
    blocks = metric.view(size, inputs, size, inputs).transpose(1, 2).contiguous()  # (K, K, I, I)
    a, b, c = (factor.double().clone() for factor in (start.a, start.b, start.c))
    a *= b.norm(dim=1, keepdim=True) * c.norm(dim=1, keepdim=True)
    b, c = _unit(b), _unit(c)
    for sweep in range(sweeps):
        for r in range(rank):
            residual = target
            if rank > 1:
                others = [other for other in range(rank) if other != r]
                rest = khatri_rao(b[:, :, others], c[:, :, others]) @ a[:, :, others].transpose(1, 2)
                parts = on_threads(lambda chunk: chunk @ metric, rest.flatten(1).split(_FILTERS))
                residual = target - torch.cat(list(parts)).view_as(target)
            a[:, :, r] = _solve_inputs(blocks, residual, khatri_rao(b[:, :, r : r + 1], c[:, :, r : r + 1])[:, :, 0])
            if not kernel or (sweep == sweeps - 1 and rank == 1):
                continue
            b[:, :, r], c[:, :, r] = _solve_kernel(blocks, residual, a[:, :, r], b[:, :, r], c[:, :, r])
        if not kernel and rank == 1:
            break
    norms = a.norm(dim=1, keepdim=True).clamp_min(1e-150)
    return Factors(a / norms.pow(2 / 3), b * norms.pow(1 / 3), c * norms.pow(1 / 3))


def _solve_inputs(blocks: Tensor, residual: Tensor, kernel: Tensor) -> Tensor:
    """The best a (O, I) of one component with kernels (O, K)."""
    size, inputs = blocks.shape[0], blocks.shape[2]
    right = torch.einsum("oki,ok->oi", residual, kernel)
    flat = blocks.view(size * size, inputs * inputs)
    step = max(1, min(_FILTERS, _CHUNK // (inputs * inputs)))

    def solve(filters: tuple[Tensor, Tensor]) -> Tensor:
        kernels, right_sides = filters
        pairs = (kernels[:, :, None] * kernels[:, None, :]).flatten(1)  # (o, K*K)
        cholesky = torch.linalg.cholesky((pairs @ flat).view(-1, inputs, inputs))
        return torch.cholesky_solve(right_sides[:, :, None], cholesky)[:, :, 0]

    return torch.cat(list(on_threads(solve, zip(kernel.split(step), right.split(step), strict=True))))


def _solve_kernel(blocks: Tensor, residual: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Better b (O, Kh) and c (O, Kw) for given a (O, I), both of norm 1: the scale is left to a."""
    size, height, width = blocks.shape[0], b.shape[1], c.shape[1]
    pairs = torch.empty(len(a), size, size, dtype=a.dtype, device=a.device)
    places = [(row, column) for row in range(size) for column in range(row, size)]
    products = on_threads(lambda place: ((a @ blocks[place]) * a).sum(1), places)
    for (row, column), values in zip(places, products, strict=True):
        pairs[:, row, column] = pairs[:, column, row] = values
    pairs = pairs.view(-1, height, width, height, width)
    right = torch.einsum("oki,oi->ok", residual, a).view(-1, height, width)
    for _ in range(_INNER):
        b = _small_solve(torch.einsum("ohwgv,ow,ov->ohg", pairs, c, c), torch.einsum("ohw,ow->oh", right, c), b)
        c = _small_solve(torch.einsum("ohwgv,oh,og->owv", pairs, b, b), torch.einsum("ohw,oh->ow", right, b), c)
    return b, c


def _small_solve(normal: Tensor, right: Tensor, fallback: Tensor) -> Tensor:
    """Solutions scaled to norm 1; a filter without energy keeps its former direction."""
    scale = normal.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-150)
    normal = normal / scale[:, None, None]
    normal.diagonal(dim1=1, dim2=2).add_(1e-9)
    solution = torch.cholesky_solve((right / scale[:, None])[:, :, None], torch.linalg.cholesky_ex(normal)[0])[:, :, 0]
    norm = solution.norm(dim=1, keepdim=True)
    usable = (norm > 1e-100) & norm.isfinite()
    return torch.where(usable, solution / torch.where(usable, norm, 1.0), fallback)


def _unit(columns: Tensor) -> Tensor:
    """Columns (O, K, R) scaled to norm 1; a zero column becomes constant."""
    norm = columns.norm(dim=1, keepdim=True)
    flat = torch.full_like(columns, columns.shape[1] ** -0.5)
    return torch.where(norm > 0, columns / torch.where(norm > 0, norm, 1.0), flat)
