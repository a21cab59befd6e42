"""CP decomposition of convolution filters, all filters at once.

Each filter of a convolution weight ``W`` (O, I, Kh, Kw) is a 3-order tensor (I, Kh, Kw) with its own rank-R
CP decomposition (NORTON, section III-A): factor matrices A (I, R), B (Kh, R), C (Kw, R) with
``W[o,i,h,w] = sum_r A[o,i,r] B[o,h,r] C[o,w,r]``. Reference: Kolda and Bader, "Tensor Decompositions and
Applications", SIAM Review 2009 (alternating least squares, section 3.4).

Legend: ``F`` filters of any layers, ``O`` filters of one layer, ``I`` input channels, ``Kh``/``Kw`` kernel,
``K = Kh*Kw``, ``R`` rank, ``S`` starts.

Why it is fast: the I x K unfolding of a filter has at most K independent rows, so a thin QR reduces the
problem exactly to (min(I, K), Kh, Kw). All filters of all layers then share one batched ALS, in which A is
eliminated by least squares at every step and only small Gram matrices are left.

Why it is safe: each update is an exact least-squares solution, so the error never rises; a filter whose
components would grow without bound (a degenerate, cancelling pair; the best rank-R approximation need not
exist) is held at its last bounded iterate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError

MAX_COMPONENT_NORM = 30.0  # largest norm of one component, relative to the filter's norm


@dataclass(frozen=True)
class Factors:
    """Factor matrices of one layer's filters, with balanced columns (the same norm in all three modes).

    Attributes:
        a: input-channel mode, (O, I, R).
        b: vertical mode, (O, Kh, R).
        c: horizontal mode, (O, Kw, R).
    """

    a: Tensor
    b: Tensor
    c: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[2]

    def filters(self, index: Tensor) -> "Factors":
        """The filters of ``index`` (output channels kept by pruning)."""
        return Factors(self.a[index], self.b[index], self.c[index])

    def inputs(self, index: Tensor) -> "Factors":
        """The input channels of ``index``: rows of A."""
        return Factors(self.a[:, index], self.b, self.c)

    def to(self, dtype: torch.dtype) -> "Factors":
        return Factors(self.a.to(dtype), self.b.to(dtype), self.c.to(dtype))


def khatri_rao(b: Tensor, c: Tensor) -> Tensor:
    """Column-wise Kronecker product: (..., Kh, R), (..., Kw, R) -> (..., Kh*Kw, R)."""
    product = b.unsqueeze(-2) * c.unsqueeze(-3)  # (..., Kh, Kw, R)
    return product.flatten(-3, -2)


def reconstruct(factors: Factors) -> Tensor:
    """The weight (O, I, Kh, Kw) that the factors stand for."""
    kernel = khatri_rao(factors.b, factors.c)  # (O, K, R)
    weight = factors.a @ kernel.transpose(1, 2)  # (O, I, K)
    return weight.unflatten(2, (factors.b.shape[1], factors.c.shape[1]))


def nmse(weight: Tensor, factors: Factors) -> float:
    """Normalised mean squared error ``||W - W'||^2 / ||W||^2`` of a layer; 0 for a zero layer."""
    weight = weight.double()
    norm = weight.square().sum()
    return float((weight - reconstruct(factors.to(torch.float64))).square().sum() / norm) if norm > 0 else 0.0


def cp_decompose(weight: Tensor, rank: int, **options: object) -> Factors:
    """Rank-``rank`` CP decomposition of every filter of one weight (O, I, Kh, Kw); see ``cp_decompose_layers``."""
    return cp_decompose_layers([weight], [rank], **options)[0]  # type: ignore[arg-type]


def cp_decompose_layers(
    weights: Sequence[Tensor],
    ranks: Sequence[int],
    *,
    starts: int = 4,
    iterations: int = 200,
    tolerance: float = 1e-7,
    seed: int = 0,
    names: Sequence[str] = (),
    progress: Callable[[int], object] | None = None,
) -> list[Factors]:
    """CP decomposition of every filter of every layer, batched over all that share kernel size and rank.

    Args:
        weights: convolution weights (O, I, Kh, Kw), any float dtype and any widths.
        ranks: one rank per weight, 1..Kh*Kw.
        starts: initial guesses per filter: one from the singular vectors of the two kernel modes, the others
            random; the best end is kept.
        iterations: at most so many ALS sweeps per start.
        tolerance: a filter is finished when a sweep lowers its relative squared error by less.
        seed: of the random starts; the global random state is not touched.
        names: layer names for error messages.
        progress: called with the number of filters finished.

    Returns:
        One ``Factors`` per weight, in the weight's dtype. The same input gives the same output.

    Raises:
        InputError: not a 4-d weight, a rank out of range, or NaN or infinity in a weight.
    """
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, (weight, rank) in enumerate(zip(weights, ranks, strict=True)):
        _check(weight, rank, names[index] if names else f"weight {index}")
        groups.setdefault((weight.shape[2], weight.shape[3], rank), []).append(index)
    results: list[Factors | None] = [None] * len(weights)
    for (kh, kw, rank), members in groups.items():
        reduced = [_reduce(weights[index]) for index in members]  # q (O, I, K) or None, core (O, K, K), scale (O,)
        core = torch.cat([part[1] for part in reduced])  # (F, K, K)
        b, c = _best_of_starts(core, kh, kw, rank, starts, iterations, tolerance, seed, progress)
        offset = 0
        for index, (basis, part, scale) in zip(members, reduced, strict=True):
            here = slice(offset, offset + part.shape[0])
            offset += part.shape[0]
            a = _solve_a(part, khatri_rao(b[here], c[here]))  # (O, K, R)
            factors = _balance(Factors(basis @ a, b[here], c[here]), scale)
            results[index] = factors.to(weights[index].dtype)
    return [factors for factors in results if factors is not None]


def _check(weight: Tensor, rank: int, name: str) -> None:
    if weight.ndim != 4 or not weight.is_floating_point():
        raise InputError(
            f"{name}: expected a float weight (O, I, Kh, Kw), got {tuple(weight.shape)} {weight.dtype}; "
            "pass a Conv2d weight"
        )
    largest = weight.shape[2] * weight.shape[3]
    if not 1 <= rank <= largest:
        raise InputError(f"{name}: rank: expected 1 to {largest} (Kh*Kw), got {rank}; use 1 to {largest}")
    if not torch.isfinite(weight).all():
        raise InputError(f"{name}: expected finite weights, got NaN or infinity; use an intact checkpoint")


def _reduce(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin QR of each filter's I x K unfolding, scaled to norm 1: basis (O, I, K'), core (O, K', K), scale (O,).

    K' is K after zero padding of short bases, so that layers of any input width share one batch.
    """
    unfolded = weight.detach().double().flatten(2)  # (O, I, K)
    scale = unfolded.abs().amax(dim=(1, 2))  # first by the largest entry: no overflow in the squares
    unfolded = unfolded / torch.where(scale > 0, scale, 1.0)[:, None, None]
    norm = unfolded.square().sum(dim=(1, 2)).sqrt()
    unfolded = unfolded / torch.where(norm > 0, norm, 1.0)[:, None, None]
    basis, core = torch.linalg.qr(unfolded)  # (O, I, M), (O, M, K), M = min(I, K)
    missing = unfolded.shape[2] - core.shape[1]
    if missing > 0:
        basis = torch.nn.functional.pad(basis, (0, missing))
        core = torch.nn.functional.pad(core, (0, 0, 0, missing))
    return basis, core, scale * norm


def _solve_a(core: Tensor, kernel: Tensor) -> Tensor:
    """Least-squares A for given B and C: minimises ``||core - A kernel^T||``; (F, K, R)."""
    return _solve(kernel.transpose(1, 2) @ kernel, core @ kernel)


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """``right @ inverse(gram)`` for symmetric positive semidefinite ``gram`` (F, R, R) with a tiny ridge."""
    if gram.shape[1] == 1:
        return right / gram.clamp_min(1e-150)
    trace = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-150)
    ridge = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device) * (1e-13 * trace)[:, None, None]
    factor, _ = torch.linalg.cholesky_ex(gram + ridge)
    solution = torch.cholesky_solve(right.transpose(1, 2), factor)  # (F, R, rows)
    return solution.transpose(1, 2)


def _sweep(core: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One ALS sweep: B, then C, each scaled to unit columns, then the best A for them.

    Scaling a factor loses nothing, since the next exact solution takes the scale up. Returns A, B, C and the
    squared error (F,) relative to filters of norm 1.
    """
    kh, kw = b.shape[1], c.shape[1]
    projected = (core.transpose(1, 2) @ a).unflatten(1, (kh, kw))  # (F, Kh, Kw, R)
    gram_a = a.transpose(1, 2) @ a
    b = _unit(_solve(gram_a * (c.transpose(1, 2) @ c), (projected * c.unsqueeze(1)).sum(2)), b)
    c = _unit(_solve(gram_a * (b.transpose(1, 2) @ b), (projected * b.unsqueeze(2)).sum(1)), c)
    kernel = khatri_rao(b, c)
    right = core @ kernel  # (F, K, R)
    a = _solve(kernel.transpose(1, 2) @ kernel, right)
    error = core.square().sum(dim=(1, 2)) - (a * right).sum(dim=(1, 2))
    return a, b, c, error.clamp_min(0.0)


def _unit(columns: Tensor, fallback: Tensor) -> Tensor:
    """Columns scaled to norm 1; a column that vanished keeps its former direction."""
    norm = columns.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e-150, columns / norm.clamp_min(1e-150), fallback)


def _best_of_starts(
    core: Tensor,
    kh: int,
    kw: int,
    rank: int,
    starts: int,
    iterations: int,
    tolerance: float,
    seed: int,
    progress: Callable[[int], object] | None,
) -> tuple[Tensor, Tensor]:
    """B (F, Kh, R) and C (F, Kw, R), unit columns, of the best of several ALS runs for cores (F, K, K)."""
    count = core.shape[0]
    generator = torch.Generator().manual_seed(seed)
    guesses = [_start(core, kh, kw, rank, None)] + [_start(core, kh, kw, rank, generator) for _ in range(starts - 1)]
    b = torch.cat([guess[0] for guess in guesses])  # (S*F, Kh, R)
    c = torch.cat([guess[1] for guess in guesses])  # (S*F, Kw, R)
    owner = torch.arange(count).repeat(starts)
    a = _solve_a(core[owner], khatri_rao(b, c))  # (S*F, K, R)
    errors = torch.full((len(b),), 2.0, dtype=core.dtype)
    active = torch.arange(len(b))
    left = torch.full((count,), starts) if progress else None
    for _ in range(iterations):
        new_a, new_b, new_c, error = _sweep(core[owner[active]], a[active], b[active], c[active])
        bounded = new_a.norm(dim=1).amax(dim=1) < MAX_COMPONENT_NORM
        improved = (error <= errors[active]) & bounded
        change = errors[active] - error
        moved = active[improved]
        a[moved], b[moved], c[moved] = new_a[improved], new_b[improved], new_c[improved]
        errors[moved] = error[improved]
        going = improved & (change > tolerance)
        if left is not None and progress is not None:
            left -= torch.bincount(owner[active[~going]], minlength=count)
            finished = int((left == 0).sum())
            left[left == 0] = -1
            progress(finished)
        active = active[going]
        if len(active) == 0:
            break
    if left is not None and progress is not None:
        progress(int((left > 0).sum()))
    best = errors.view(starts, count).argmin(dim=0) * count + torch.arange(count)
    return b[best], c[best]


def _start(core: Tensor, kh: int, kw: int, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """A start (F, Kh, R), (F, Kw, R): the R strongest pairs of an orthonormal basis of each kernel mode.

    The bases are the singular vectors of the two modes (HOSVD) without a generator, random otherwise. With
    R = Kh*Kw all pairs are taken and the start is already exact.
    """
    cube = core.unflatten(2, (kh, kw))  # (F, K, Kh, Kw)
    if generator is None:
        left = torch.linalg.eigh(torch.einsum("fkhw,fkgw->fhg", cube, cube))[1]
        right = torch.linalg.eigh(torch.einsum("fkhw,fkhv->fwv", cube, cube))[1]
    else:
        left = torch.linalg.qr(torch.randn(len(core), kh, kh, dtype=core.dtype, generator=generator))[0]
        right = torch.linalg.qr(torch.randn(len(core), kw, kw, dtype=core.dtype, generator=generator))[0]
    pairs = torch.einsum("fkhw,fhp,fwq->fkpq", cube, left, right).square().sum(1)  # energy of each pair, (F, Kh, Kw)
    top = pairs.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :rank]  # (F, R)
    b = left.gather(2, (top // kw).unsqueeze(1).expand(-1, kh, -1))
    c = right.gather(2, (top % kw).unsqueeze(1).expand(-1, kw, -1))
    return b, c


def _balance(factors: Factors, scale: Tensor) -> Factors:
    """Equal column norms in the three modes, strongest component first, signs fixed; ``scale`` (O,) restored."""
    signs = [_sign(factors.b), _sign(factors.c)]
    a = factors.a * signs[0] * signs[1] * scale[:, None, None]
    b, c = factors.b * signs[0], factors.c * signs[1]  # unit columns
    norms = a.norm(dim=1)  # (O, R)
    order = norms.argsort(dim=1, descending=True, stable=True).unsqueeze(1)  # (O, 1, R)
    a, b, c = (part.gather(2, order.expand_as(part)) for part in (a, b, c))
    share = a.norm(dim=1, keepdim=True).pow(1 / 3)  # (O, 1, R)
    divisor = torch.where(share > 0, share.square(), 1.0)
    return Factors(a / divisor, b * share, c * share)


def _sign(columns: Tensor) -> Tensor:
    """Sign (O, 1, R) that makes each column's largest entry positive."""
    peak = columns.gather(1, columns.abs().argmax(dim=1, keepdim=True))
    return torch.where(peak < 0, -1.0, 1.0).to(columns.dtype)
