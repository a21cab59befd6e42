"""CP decomposition of convolution filters, all filters at once.

Each filter of a convolution weight ``W`` (O, I, Kh, Kw) is a 3-order tensor (I, Kh, Kw) with its own rank-R
CP decomposition (NORTON, section III-A): factor matrices A (I, R), B (Kh, R), C (Kw, R) with
``W[o,i,h,w] = sum_r A[o,i,r] B[o,h,r] C[o,w,r]``. Reference: Kolda and Bader, "Tensor Decompositions and
Applications", SIAM Review 2009 (alternating least squares, section 3.4).

Legend: ``O`` filters, ``I`` input channels, ``Kh``/``Kw`` kernel, ``K = Kh*Kw``, ``R`` rank.

Why it is fast: the I x K unfolding of a filter has at most K independent rows, so a thin QR reduces the
problem exactly to (min(I, K), Kh, Kw). All filters of all layers then share one batched solver (``als``), in
which A is eliminated and only small Gram matrices are left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.threads import one_thread
from .als import fit, khatri_rao, solve_a


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

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> "Factors":
        return Factors(*(factor.to(device=device, dtype=dtype) for factor in (self.a, self.b, self.c)))


def reconstruct(factors: Factors) -> Tensor:
    """The weight (O, I, Kh, Kw) that the factors stand for."""
    kernel = khatri_rao(factors.b, factors.c)  # (O, K, R)
    weight = factors.a @ kernel.transpose(1, 2)  # (O, I, K)
    return weight.unflatten(2, (factors.b.shape[1], factors.c.shape[1]))


@one_thread()
def nmse(weight: Tensor, factors: Factors) -> float:
    """Normalised mean squared error ``||W - W'||^2 / ||W||^2`` of a layer; 0 for a zero layer."""
    weight = weight.detach().cpu().double()
    largest = weight.abs().max()
    if largest == 0:
        return 0.0
    difference = weight - reconstruct(factors.to(torch.float64)).detach().cpu()
    # scaled first: no overflow or underflow in the squares
    return float((difference / largest).square().sum() / (weight / largest).square().sum())


def cp_decompose(weight: Tensor, rank: int, **options: object) -> Factors:
    """Rank-``rank`` CP decomposition of every filter of one weight (O, I, Kh, Kw); see ``cp_decompose_layers``."""
    return cp_decompose_layers([weight], [rank], **options)[0]  # type: ignore[arg-type]


@one_thread()
def cp_decompose_layers(
    weights: Sequence[Tensor],
    ranks: Sequence[int],
    *,
    starts: int | None = None,
    iterations: int = 200,
    tolerance: float = 1e-7,
    seed: int = 0,
    names: Sequence[str] = (),
    progress: Callable[[int], object] | None = None,
) -> list[Factors]:
    """CP decomposition of every filter of every layer, batched over all that share kernel size and rank.

    Args:
        weights: convolution weights (O, I, Kh, Kw), any float dtype, device and widths.
        ranks: one rank per weight, 1..Kh*Kw.
        starts: initial guesses per filter: one from the singular vectors of the two kernel modes, the others
            random. The best third goes on after a few sweeps; the best end is kept. By default 6 for rank 1 and 16
            above, where there are more local minima.
        iterations: at most so many steps per start; the error never rises from one to the next.
        tolerance: a filter is finished when a step lowers its squared error by less than this share of it.
        seed: of the random starts; the global random state is not touched.
        names: layer names for error messages.
        progress: called with the number of filters finished.

    Returns:
        One ``Factors`` per weight, in the weight's dtype and on its device; computed in float64 on the CPU. The same
        filter gives the same factors, whatever stands beside it. A filter of zeros gives factors of zeros.

    Raises:
        InputError: not a 4-d weight, an empty one, a rank, ``starts`` or ``iterations`` out of range, or NaN or
            infinity in a weight.
    """
    if (starts is not None and starts < 1) or iterations < 0:
        raise InputError(
            f"expected starts >= 1 and iterations >= 0, got {starts} and {iterations}; leave them out for the defaults"
        )
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, (weight, rank) in enumerate(zip(weights, ranks, strict=True)):
        _check(weight, rank, names[index] if names else f"weight {index}")
        groups.setdefault((weight.shape[2], weight.shape[3], rank), []).append(index)
    results: list[Factors | None] = [None] * len(weights)
    for (kh, kw, rank), members in groups.items():
        reduced = [_reduce(weights[index]) for index in members]
        core = torch.cat([reduction[1] for reduction in reduced])  # (F, K, K)
        exact = rank == kh * kw  # any start is
        b, c = fit(
            core,
            (kh, kw),
            rank,
            starts=1 if exact else starts or (6 if rank == 1 else 16),
            iterations=0 if exact else iterations,
            tolerance=tolerance,
            seed=seed,
            progress=progress,
        )
        offset = 0
        for index, (basis, layer_core, scale) in zip(members, reduced, strict=True):
            here = slice(offset, offset + layer_core.shape[0])
            offset += layer_core.shape[0]
            a = solve_a(layer_core, khatri_rao(b[here], c[here]))  # (O, K, R)
            factors = _balance(Factors(basis @ a, b[here], c[here]), scale)
            results[index] = factors.to(weights[index].dtype, weights[index].device)
    return [factors for factors in results if factors is not None]


def _check(weight: Tensor, rank: int, name: str) -> None:
    if weight.ndim != 4 or not weight.is_floating_point():
        raise InputError(
            f"{name}: expected a float weight (O, I, Kh, Kw), got {tuple(weight.shape)} {weight.dtype}; "
            "pass a Conv2d weight"
        )
    if weight.numel() == 0:
        raise InputError(f"{name}: expected at least one filter and input channel, got {tuple(weight.shape)}; skip it")
    largest = weight.shape[2] * weight.shape[3]
    if not 1 <= rank <= largest:
        raise InputError(f"{name}: rank: expected 1 to {largest} (Kh*Kw), got {rank}; use 1 to {largest}")
    if not torch.isfinite(weight).all():
        raise InputError(f"{name}: expected finite weights, got NaN or infinity; use an intact checkpoint")


def _reduce(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin QR of each filter's I x K unfolding, scaled to norm 1: basis (O, I, K'), core (O, K', K), scale (O,).

    K' is K after zero padding of short bases, so that layers of any input width share one batch.
    """
    unfolded = weight.detach().cpu().double().flatten(2)  # (O, I, K)
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


def _balance(factors: Factors, scale: Tensor) -> Factors:
    """Equal column norms in the three modes, strongest component first, signs fixed; ``scale`` (O,) restored."""
    signs = [_sign(factors.b), _sign(factors.c)]
    a = factors.a * signs[0] * signs[1]
    b, c = factors.b * signs[0], factors.c * signs[1]  # unit columns
    norms = a.norm(dim=1)  # (O, R)
    order = norms.argsort(dim=1, descending=True, stable=True).unsqueeze(1)  # (O, 1, R)
    a, b, c = (factor.gather(2, order.expand_as(factor)) for factor in (a, b, c))
    # the scale comes in last, by its cube root: no underflow in the squares of tiny weights
    root = scale.pow(1 / 3)[:, None, None]
    share = a.norm(dim=1, keepdim=True).pow(1 / 3)  # (O, 1, R)
    divisor = torch.where(share > 0, share.square(), 1.0)
    return Factors(a / divisor * root, b * share * root, c * share * root)


def _sign(columns: Tensor) -> Tensor:
    """Sign (O, 1, R) that makes each column's largest entry positive."""
    peak = columns.gather(1, columns.abs().argmax(dim=1, keepdim=True))
    return torch.where(peak < 0, -1.0, 1.0).to(columns.dtype)
