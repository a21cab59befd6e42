"""First and second moments of what enters and what should leave a linear layer, and the least squares they give.

A linear layer ``y = W x + b`` that is to give the targets ``y`` on its inputs ``x`` minimises
``E ||y - W x - b||^2``; mean and covariance are all of the data that this needs. So rows come in chunks, and the
memory does not grow with their number.

Legend: ``F`` input features, ``O`` outputs, ``rows`` samples (positions of images).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.threads import on_threads

_PANEL = 512  # features per block row of the covariance: only the blocks on and above the diagonal are formed
_FLUSH = 4096  # rows that are summed in float32 before they are added in float64


class Moments:
    """Means and covariances of inputs (rows, F) and targets (rows, O), in float64.

    Call ``add`` with chunks, then ``finish`` once; the attributes are there after it.

    Attributes:
        rows: how many there were.
        mean_x, mean_y: (F,), (O,).
        xx: covariance of the inputs (F, F).
        xy: covariance of inputs and targets (F, O).
        yy: variance of the targets (O,).
    """

    def __init__(self, name: str) -> None:
        self.name, self.rows = name, 0
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._shift: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, name: str, rows: Iterable[tuple[Tensor, Tensor]]) -> "Moments":
        """Finished moments of chunks of inputs (rows, F) and targets (rows, O); errors are those of ``finish``."""
        moments = cls(name)
        for x, y in rows:
            moments.add(x, y)
        return moments.finish()

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add inputs (rows, F) and their targets (rows, O)."""
        self._waiting.append((x, y))
        if sum(len(x) for x, _ in self._waiting) >= _FLUSH:
            self._flush()

    @property
    def count(self) -> int:
        """Rows added so far."""
        return self.rows + sum(len(x) for x, _ in self._waiting)

    def _flush(self) -> None:
        if not self._waiting:
            return
        x, y = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        if self._shift is None:  # about the mean: no cancellation when the covariance is formed
            self._shift = x.mean(0), y.mean(0)
            features, outputs = x.shape[1], y.shape[1]
            self._sum_x, self._sum_y = (
                x.new_zeros(features, dtype=torch.double),
                y.new_zeros(outputs, dtype=torch.double),
            )
            self.xx = x.new_zeros(features, features, dtype=torch.double)
            self.xy = x.new_zeros(features, outputs, dtype=torch.double)
            self.yy = y.new_zeros(outputs, dtype=torch.double)
        x, y = x - self._shift[0], y - self._shift[1]
        self.rows += len(x)
        self._sum_x += x.sum(0)
        self._sum_y += y.sum(0)
        self.xy += x.T @ y
        self.yy += y.square().sum(0, dtype=torch.double)
        starts = range(0, x.shape[1], _PANEL)
        panels = on_threads(lambda start: x[:, start : start + _PANEL].T @ x[:, start:], starts)
        for start, panel in zip(starts, panels, strict=True):
            self.xx[start : start + _PANEL, start:] += panel

    def finish(self) -> "Moments":
        """Turn sums into means and covariances.

        Raises:
            InputError: an input or a target was not finite; the message names the layer.
        """
        self._flush()
        assert self._shift is not None
        offset_x, offset_y = self._sum_x / self.rows, self._sum_y / self.rows
        self.mean_x, self.mean_y = self._shift[0].double() + offset_x, self._shift[1].double() + offset_y
        self.xx = self.xx.triu()
        self.xx += self.xx.triu(1).T
        self.xx.div_(self.rows).addr_(offset_x, offset_x, alpha=-1)
        self.xy.div_(self.rows).addr_(offset_x, offset_y, alpha=-1)
        self.yy.div_(self.rows).sub_(offset_y.square())
        if not (self.xx.diagonal().isfinite().all() and self.xy.isfinite().all()):
            raise InputError(
                f"{self.name}: expected finite activations on the calibration images, got NaN or infinity; "
                "use intact weights, and the preprocessing they expect"
            )
        return self

    def uncentre(self) -> "Moments":
        """Second moments about zero, for a layer that has no bias to give the means."""
        self.xx.addr_(self.mean_x, self.mean_x)
        self.xy.addr_(self.mean_x, self.mean_y)
        self.yy.add_(self.mean_y.square())
        self.mean_x, self.mean_y = torch.zeros_like(self.mean_x), torch.zeros_like(self.mean_y)
        return self

    def ridge(self, share: float) -> float:
        """``share`` of the mean variance of the inputs: the weight of the prior in the fits."""
        return share * max(float(self.xx.diagonal().mean()), 1e-20)

    def least_squares(self, prior: Tensor, share: float) -> Tensor:
        """Weights (O, F) that minimise the error, drawn towards ``prior`` (O, F) where the data do not decide.

        Minimises ``E ||(y - mean) - W (x - mean)||^2 + ridge(share) ||W - prior||^2``, solved exactly.
        """
        ridge = self.ridge(share)
        system = self.xx.clone()
        system.diagonal().add_(ridge)
        right = self.xy + ridge * prior.double().T
        return torch.cholesky_solve(right, torch.linalg.cholesky(system)).T

    def error(self, weight: Tensor) -> float:
        """Squared error of ``W x`` with the best bias, for weights (O, F), relative to the variance of the targets."""
        weight = weight.double()
        fit = ((weight @ self.xx) * weight).sum() - 2 * (weight * self.xy.T).sum()
        return float(1 + fit / self.yy.sum().clamp_min(1e-300))

    def output_moments(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (O,) of ``W x`` for weights (O, F), as batch normalisation has them."""
        weight = weight.double()
        return weight @ self.mean_x, ((weight @ self.xx) * weight).sum(1).clamp_min(0.0)
