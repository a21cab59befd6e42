"""The fit of one linear layer, the same everywhere: from the moments of its data to its weights and bias.

A layer ``y = W x + b`` is given what it really reads in the compressed network and is fitted to what the dense network
puts out there. Dense weights are solved by least squares, CP factors in the metric of the output (``cp_output``); both
are drawn to a prior, the dense weight, where the data do not decide.

Legend: ``O`` outputs, ``F = K*I`` features, kernel-major, ``rows`` samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..decomposition.cp import Factors
from ..decomposition.cp_output import fit_output, flatten_weight, unflatten_weight, weight_of
from ..decomposition.low_rank import output_directions
from ..decomposition.moments import Moments
from ..models.layers import CPConv2d, LowRankLinear, factors_to_state
from ..utils.errors import InputError

Rows = list[tuple[Tensor, Tensor]]
"""Inputs (rows, F) or (rows, I) and targets (rows, O) of a layer, in chunks."""


@dataclass(frozen=True)
class FitSettings:
    """How a layer is fitted.

    Attributes:
        ridge: how strongly the solution is drawn to the prior, as a share of the mean variance of the inputs.
        shrinkage: added to ``ridge`` for each feature per row: with few rows the fit would else be to these alone.
        sweeps: of the factors of a CP layer, of rank 1 and of higher ranks, where each costs ``rank`` times as much
            and less is to be gained.
        kernel: whether a CP layer's kernel factors B and C are fitted too; else A alone is.
    """

    ridge: float = 1e-2
    shrinkage: float = 0.0
    sweeps: tuple[int, int] = (3, 1)
    kernel: bool = True

    def share(self, moments: Moments) -> float:
        """The weight of the prior, see ``Moments.ridge``."""
        return self.ridge + self.shrinkage * moments.xx.shape[0] / moments.rows


@dataclass(frozen=True)
class LayerFit:
    """A fitted linear layer ``W x + b``.

    Attributes:
        moments: of the data it was fitted to.
        weight: W, (O, F), float64.
        factors: that ``weight`` is made of; ``None`` for a dense layer.
    """

    moments: Moments
    weight: Tensor
    factors: Factors | None = None

    @property
    def bias(self) -> Tensor:
        """The best bias, (O,), float64: what the means leave; zero after ``Moments.uncentre``."""
        return self.moments.mean_y - self.weight @ self.moments.mean_x

    @property
    def error(self) -> float:
        """Squared error that is left of the outputs, relative to the variance of the targets."""
        return self.moments.error(self.weight)

    @torch.no_grad()
    def write(self, layer: CPConv2d | nn.Conv2d | nn.Linear) -> None:
        """Set the weights of a layer of this kind and size and, if it has one, its bias."""
        if isinstance(layer, CPConv2d):
            assert self.factors is not None
            state = factors_to_state(self.factors)
            layer.load_state_dict(state if layer.bias is None else state | {"bias": self.bias})
            return
        kernel = layer.kernel_size if isinstance(layer, nn.Conv2d) else None
        layer.weight.copy_(self.weight if kernel is None else unflatten_weight(self.weight, kernel))
        if layer.bias is not None:
            layer.bias.copy_(self.bias)

    @torch.no_grad()
    def write_norm(self, norm: nn.Module) -> None:
        """Set the normalisation after the layer: true statistics, and the affine part that undoes them.

        So the two put out ``W x + b`` in eval mode, and training may go on with batch statistics.
        """
        mean, variance = self.moments.output_moments(self.weight)
        norm.running_mean.copy_(mean)  # type: ignore[operator]
        norm.running_var.copy_(variance)  # type: ignore[operator]
        norm.weight.copy_((variance + norm.eps).sqrt())  # type: ignore[operator]
        norm.bias.copy_(self.moments.mean_y)  # type: ignore[operator]


def fit_layer(moments: Moments, prior: Tensor, settings: FitSettings, start: Factors | None = None) -> LayerFit:
    """Fit a linear layer to moments of its data.

    Args:
        moments: finished; about zero (``Moments.uncentre``) for a layer without a bias.
        prior: dense weight (O, F) that the solution is drawn to.
        settings: how strongly, and how long.
        start: factors to begin with, of a CP layer; ``None`` for a dense one.
    """
    share = settings.share(moments)
    if start is None:
        return LayerFit(moments, moments.least_squares(prior, share))
    sweeps = settings.sweeps[min(start.rank, 2) - 1]
    factors = fit_output(moments, start, prior, share, sweeps=sweeps, kernel=settings.kernel)
    return LayerFit(moments, weight_of(factors), factors)


def fit_conv(conv: CPConv2d | nn.Conv2d, moments: Moments, prior: Tensor, settings: FitSettings) -> LayerFit:
    """Fit a convolution, CP or dense, in place.

    Args:
        conv: the layer; factors that it has are the start.
        moments: of its patches (``sampling.patches``) and targets.
        prior: dense weight (O, I, Kh, Kw).
        settings: how it is fitted.
    """
    fit = fit_layer(moments, flatten_weight(prior), settings, conv.factors() if isinstance(conv, CPConv2d) else None)
    fit.write(conv)
    return fit


@torch.no_grad()
def fit_low_rank(layer: LowRankLinear, name: str, dense: nn.Linear, rows: Rows, settings: FitSettings) -> LayerFit:
    """Fit both factors of a linear layer in place.

    The principal directions of the dense layer's outputs are the best subspace of its rank; the second factor is then
    solved from what the first puts out.

    Args:
        layer: to be fitted.
        name: of the layer, for errors.
        dense: the layer that it stands for.
        rows: what ``layer`` reads (rows, I), and what ``dense`` puts out (rows, O); two rows at least.
        settings: how it is fitted.

    Raises:
        InputError: activations that are not finite.
    """
    target = torch.cat([outputs for _, outputs in rows])  # (rows, O)
    if not target.isfinite().all():
        raise InputError(f"{name}: expected finite activations, got NaN or infinity; use intact weights")
    weight = dense.weight.double()
    basis = output_directions(target, weight, settings.ridge)[1][:, -layer.rank :]  # (O, r)
    layer.first.weight.copy_(basis.T @ weight)
    moments = Moments.of(name, ((layer.first(inputs), outputs) for inputs, outputs in rows))
    fit = fit_layer(moments, basis, settings)
    fit.write(layer.second)
    return fit
