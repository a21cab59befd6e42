"""The solver behind the CP decomposition: many small problems at once, error that never rises.

Minimises ``||T - A khatri_rao(B, C)^T||`` over A, B, C for F tensors T (K', Kh, Kw) in one batch. A is eliminated:
for given B and C the best A is a linear least-squares solution, so only B and C are searched for, and only the
Gram matrix ``T^T T`` of the kernel mode is needed. Every start takes a few sweeps of alternating least squares
(Kolda and Bader, "Tensor Decompositions and Applications", SIAM Review 2009, section 3.4); the best third then
goes on with damped Gauss-Newton steps on the same eliminated problem (variable projection, Kaufman's form;
Golub and Pereyra, Inverse Problems 2003), which do not crawl where plain ALS needs thousands of sweeps. For R = 1
the two coincide and ALS, being cheaper, goes on.

A step that raises the error, or makes a component larger than ``MAX_COMPONENT_NORM`` (a degenerate, cancelling
pair; the best rank-R approximation need not exist), is not taken.

Legend: ``F`` filters, ``P`` problems (filters times starts), ``K = Kh*Kw``, ``R`` rank, ``V = R*(Kh+Kw)`` unknowns.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MAX_COMPONENT_NORM = 30.0  # largest norm of one component, relative to the filter's norm
_ALS_SWEEPS = 8  # before all but the best third of the starts are given up
_EXACT = 1e-15  # squared error that counts as none: rounding of the Gram matrix
_MAX_DAMPING = 1e6
_CHUNK = 1 << 21  # numbers per array: 16 MB, so that a batch stays near the caches


def khatri_rao(b: Tensor, c: Tensor) -> Tensor:
    """Column-wise Kronecker product: (..., Kh, R), (..., Kw, R) -> (..., Kh*Kw, R)."""
    product = b.unsqueeze(-2) * c.unsqueeze(-3)  # (..., Kh, Kw, R)
    return product.flatten(-3, -2)


def solve_a(core: Tensor, kernel: Tensor) -> Tensor:
    """Least-squares A (F, K', R) for given B and C: minimises ``||core - A kernel^T||``.

    Args:
        core: unfolded tensors (F, K', K).
        kernel: ``khatri_rao(B, C)``, (F, K, R).
    """
    return _solve(_cholesky(kernel.transpose(1, 2) @ kernel), core @ kernel)


def fit(
    core: Tensor,
    kernel_size: tuple[int, int],
    rank: int,
    *,
    starts: int,
    iterations: int,
    tolerance: float,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Factor matrices B (F, Kh, R) and C (F, Kw, R) with unit columns of the best of several starts.

    The result of one tensor does not depend on the others in the batch: equal filters get equal factors.

    Args:
        core: tensors of norm 1 (or 0), unfolded to (F, K', K), float64 on the CPU.
        kernel_size: (Kh, Kw).
        rank: R, 1..Kh*Kw.
        starts, iterations, tolerance, seed, progress: see ``cp.cp_decompose_layers``.
    """
    kh, kw = kernel_size
    numbers = starts * max(kh * kw, rank * (kh + kw)) ** 2
    bases = _random_bases(kh, kw, starts - 1, seed)
    parts = [
        _fit_chunk(chunk, kh, kw, rank, bases, iterations, tolerance, progress)
        for chunk in core.split(max(1, _CHUNK // numbers))
    ]
    return torch.cat([chunk[0] for chunk in parts]), torch.cat([chunk[1] for chunk in parts])


class _Point(NamedTuple):
    """A state (B, C) of P problems and what a step from it needs."""

    b: Tensor  # (P, Kh, R), unit columns
    c: Tensor  # (P, Kw, R), unit columns
    kernel: Tensor  # N = khatri_rao(B, C): (P, K, R)
    cholesky: Tensor  # of N^T N: (P, R, R)
    projected: Tensor  # T^T A for the best A: (P, K, R)
    gram_a: Tensor  # A^T A: (P, R, R)
    error: Tensor  # squared error: (P,)

    def pick(self, index: Tensor) -> "_Point":
        return _Point(*(field[index] for field in self))

    def replaced(self, other: "_Point", where: Tensor) -> "_Point":
        return _Point(
            *(
                torch.where(where.view(-1, *[1] * (new.ndim - 1)), new, old)
                for old, new in zip(self, other, strict=True)
            )
        )


def _evaluate(gram: Tensor, b: Tensor, c: Tensor) -> _Point:
    """The point (B, C) of problems with Gram matrices T^T T (P, K, K)."""
    kernel = khatri_rao(b, c)
    cholesky = _cholesky(kernel.transpose(1, 2) @ kernel)
    projected = _solve(cholesky, gram @ kernel)
    gram_a = _solve(cholesky, projected.transpose(1, 2) @ kernel)
    error = gram.diagonal(dim1=1, dim2=2).sum(1) - (kernel * projected).sum((1, 2))
    return _Point(b, c, kernel, cholesky, projected, gram_a, error.clamp_min(0.0))


def _fit_chunk(
    core: Tensor,
    kh: int,
    kw: int,
    rank: int,
    bases: list[tuple[Tensor, Tensor]],
    iterations: int,
    tolerance: float,
    progress: Callable[[int], object] | None,
) -> tuple[Tensor, Tensor]:
    count, starts = len(core), 1 + len(bases)
    gram = core.transpose(1, 2) @ core  # (F, K, K)
    guesses = [_start(gram, kh, kw, rank, basis) for basis in (None, *bases)]
    b, c = (torch.cat([guess[mode] for guess in guesses]) for mode in (0, 1))  # start-major: (S*F, Kh or Kw, R)
    active = torch.arange(starts * count)  # problem s*F + f is start s of filter f
    point = _evaluate(gram.repeat(starts, 1, 1), b, c)
    errors = point.error.clone()
    damping = torch.full_like(errors, 1e-2)
    reported = 0
    for iteration in range(iterations):
        sweeping = iteration < _ALS_SWEEPS
        going = point.error > _EXACT
        if iteration == _ALS_SWEEPS and starts > 2:
            place = errors.view(starts, count).argsort(dim=0, stable=True).argsort(dim=0).flatten()
            going &= place[active] < (starts + 2) // 3
        if not going.all():
            active, damping, point = active[going], damping[going], point.pick(going)
        if progress:
            finished = count - len(torch.unique(active % count))
            progress(finished - reported)
            reported = finished
        if len(active) == 0:
            break
        step = _als_step(point) if sweeping or rank == 1 else _gauss_newton_step(point, damping)
        new = _evaluate(gram[active % count], *step)
        bounded = new.gram_a.diagonal(dim1=1, dim2=2).amax(1) < MAX_COMPONENT_NORM**2
        taken = (new.error <= point.error) & bounded
        converged = point.error - new.error <= tolerance * point.error
        point = point.replaced(new, taken)
        b[active], c[active], errors[active] = point.b, point.c, point.error
        if sweeping and rank > 1:
            continue
        damping = torch.where(taken, damping * 0.25, damping * 4.0)
        stalled = (damping > _MAX_DAMPING) if rank > 1 else ~taken
        left = ~((taken & converged) | stalled)
        active, damping, point = active[left], damping[left].clamp_min(1e-12), point.pick(left)
    if progress:
        progress(count - reported)
    best = errors.view(starts, count).argmin(dim=0) * count + torch.arange(count)
    return b[best], c[best]


def _als_step(point: _Point) -> tuple[Tensor, Tensor]:
    """One sweep: the best B for A and C, then the best C for A and B, each scaled to unit columns.

    Scaling a factor loses nothing: the A that follows takes the scale up.
    """
    b, c = point.b, point.c
    projected = point.projected.unflatten(1, (b.shape[1], c.shape[1]))  # (P, Kh, Kw, R)
    gram = point.gram_a * (c.transpose(1, 2) @ c)
    b = _unit(_solve(_cholesky(gram), (projected * c.unsqueeze(1)).sum(2)), b)
    gram = point.gram_a * (b.transpose(1, 2) @ b)
    c = _unit(_solve(_cholesky(gram), (projected * b.unsqueeze(2)).sum(1)), c)
    return b, c


def _gauss_newton_step(point: _Point, damping: Tensor) -> tuple[Tensor, Tensor]:
    """One Levenberg-Marquardt step of the problem in B and C alone.

    With A eliminated the residual is ``T (I - N N^+)`` and, in Kaufman's form, its derivative in the direction D of
    N is ``-A D^T (I - N N^+)``. One entry of B or C moves one column of N, so J^T J is ``A^T A`` (spread to the
    entries) times the inner products of the directions outside the space of N.
    """
    b, c = point.b, point.c
    rank, entries = b.shape[2], b.shape[1] + c.shape[1]
    of_b = torch.einsum("hi,pwr->phwri", torch.eye(b.shape[1], dtype=b.dtype), c)  # e_i outer c_r
    of_c = torch.einsum("phr,wj->phwrj", b, torch.eye(c.shape[1], dtype=c.dtype))  # b_r outer e_j
    directions = torch.cat([of_b, of_c], dim=4).flatten(3).flatten(1, 2)  # (P, K, V)
    inside = torch.linalg.solve_triangular(point.cholesky, point.kernel.transpose(1, 2) @ directions, upper=False)
    hessian = directions.transpose(1, 2) @ directions - inside.transpose(1, 2) @ inside  # (P, V, V)
    hessian *= point.gram_a.repeat_interleave(entries, 1).repeat_interleave(entries, 2)
    residual = point.projected - point.kernel @ point.gram_a  # (residual)^T A: (P, K, R)
    descent = torch.einsum("pkri,pkr->pri", directions.unflatten(2, (rank, entries)), residual).flatten(1)  # (P, V)
    energy = point.gram_a.diagonal(dim1=1, dim2=2).clamp_min(1e-12).repeat_interleave(entries, 1)
    hessian.diagonal(dim1=1, dim2=2).add_(damping[:, None] * energy)
    cholesky, _ = torch.linalg.cholesky_ex(hessian)
    step = torch.cholesky_solve(descent.unsqueeze(2), cholesky).view(-1, rank, entries).transpose(1, 2)
    return _unit(b + step[:, : b.shape[1]], b), _unit(c + step[:, b.shape[1] :], c)


def _cholesky(gram: Tensor) -> Tensor:
    """Cholesky factor of positive semidefinite (P, R, R) matrices with a ridge of rounding size."""
    if gram.shape[1] == 1:
        return gram.clamp_min(1e-150).sqrt()
    ridge = 1e-13 * gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-150)
    return torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge[:, None].expand(-1, gram.shape[1])))[0]


def _solve(cholesky: Tensor, right: Tensor) -> Tensor:
    """``right @ inverse(gram)`` for right sides (P, rows, R)."""
    if cholesky.shape[1] == 1:
        return right / cholesky.square()
    return torch.cholesky_solve(right.transpose(1, 2), cholesky).transpose(1, 2)


def _unit(columns: Tensor, fallback: Tensor) -> Tensor:
    """Columns scaled to norm 1; one that vanished or overflowed keeps its former direction."""
    norm = columns.norm(dim=1, keepdim=True)
    usable = (norm > 1e-150) & torch.isfinite(norm)
    return torch.where(usable, columns / torch.where(usable, norm, 1.0), fallback)


def _random_bases(kh: int, kw: int, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """``count`` pairs of random orthogonal matrices (Kh, Kh), (Kw, Kw)."""
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.linalg.qr(torch.randn(k, k, dtype=torch.double, generator=generator))[0] for k in (kh, kw))
        for _ in range(count)
    ]


def _start(gram: Tensor, kh: int, kw: int, rank: int, basis: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """A start (F, Kh, R), (F, Kw, R): the R strongest pairs of an orthonormal basis of each kernel mode.

    Without a given basis, the singular vectors of the two modes (HOSVD). With R = Kh*Kw all pairs are taken and
    the start is already exact.
    """
    square = gram.view(-1, kh, kw, kh, kw)
    if basis is None:
        left = torch.linalg.eigh(torch.einsum("fhwgw->fhg", square))[1]
        right = torch.linalg.eigh(torch.einsum("fhwhv->fwv", square))[1]
    else:
        left, right = (matrix.expand(len(gram), -1, -1) for matrix in basis)
    pairs = (left[:, :, None, :, None] * right[:, None, :, None, :]).flatten(3).flatten(1, 2)  # (F, K, Kh*Kw)
    energy = (pairs * (gram @ pairs)).sum(1)
    top = energy.argsort(dim=1, descending=True, stable=True)[:, :rank].unsqueeze(1)  # (F, 1, R)
    b = left.gather(2, (top // kw).expand(-1, kh, -1))
    c = right.gather(2, (top % kw).expand(-1, kw, -1))
    return b, c
