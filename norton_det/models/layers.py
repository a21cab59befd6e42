"""The factored layers: CPConv2d, a convolution whose every filter is a CP decomposition, and LowRankLinear.

Train form of CPConv2d, three linear maps (the CPDBlock of NORTON, section III-A)::

    pointwise   1 x 1       I    -> O*R   factor A
    vertical    Kh x 1      depthwise     factor B, takes the vertical stride and padding
    horizontal  1 x Kw      depthwise     factor C, takes the horizontal stride and padding
    sum over the R parts of each filter, plus bias

Components are filter-major: channel ``o*R + r`` is component r of filter o. So the deploy form is exactly one
1x1 convolution and one grouped Kh x Kw convolution (O groups, R -> 1), for R = 1 a plain depthwise one.

Legend: ``O`` filters, ``I`` input channels, ``Kh``/``Kw`` kernel, ``R`` rank, ``N, H, W`` batch and image.
"""

import torch
from torch import Tensor, nn

from ..decomposition.cp import Factors, cp_decompose, khatri_rao, reconstruct
from ..utils.errors import InputError
from ..utils.threads import one_thread


class Factored(nn.Module):
    """A layer whose weight is kept as factors: what all factored layers share.

    Attributes:
        rank: R, how many components the weight, or each filter of it, has.
    """

    rank: int

    @property
    def input_factor(self) -> nn.Conv2d | nn.Linear:
        """The factor that reads the inputs; the weight is linear in it."""
        raise NotImplementedError

    def to_weight(self) -> Tensor:
        """The dense weight that this layer stands for."""
        raise NotImplementedError


class CPConv2d(Factored):
    """Convolution (N, I, H, W) -> (N, O, H', W') with a rank-R CP decomposition per filter.

    Args:
        in_channels, out_channels: I and O.
        kernel_size, stride, padding: as in ``nn.Conv2d``, one number or (vertical, horizontal).
        rank: R, 1..Kh*Kw.
        bias: whether the output has one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        rank: int = 1,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        kh, kw = _pair(kernel_size)
        sh, sw = _pair(stride)
        ph, pw = _pair(padding)
        if not 1 <= rank <= kh * kw:
            raise InputError(f"rank: expected 1 to {kh * kw} (Kh*Kw), got {rank}; use 1 to {kh * kw}")
        self.in_channels, self.out_channels, self.rank = in_channels, out_channels, rank
        self.kernel_size, self.stride, self.padding = (kh, kw), (sh, sw), (ph, pw)
        components = out_channels * rank
        self.pointwise = nn.Conv2d(in_channels, components, 1, bias=False)
        self.vertical = nn.Conv2d(components, components, (kh, 1), (sh, 1), (ph, 0), groups=components, bias=False)
        self.horizontal = nn.Conv2d(components, components, (1, kw), (1, sw), (0, pw), groups=components, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, rank: int = 1, **options: object) -> "CPConv2d":
        """The CP decomposition of a convolution, a new layer; options go to ``cp_decompose_layers``.

        Raises:
            InputError: not a Conv2d, or a grouped, dilated or not zero-padded one.
        """
        check_supported(conv)
        factors = cp_decompose(conv.weight, rank, **options)
        return cls.from_factors(factors, conv.stride, conv.padding, conv.bias).train(conv.training)

    @classmethod
    def from_factors(
        cls,
        factors: Factors,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        bias: Tensor | None = None,
    ) -> "CPConv2d":
        """A layer with copies of the factors of O filters as weights."""
        outputs, inputs, rank = factors.a.shape
        kernel = (factors.b.shape[1], factors.c.shape[1])
        layer = cls(inputs, outputs, kernel, rank, _pair(stride), _pair(padding), bias is not None)
        layer.to(factors.a.device, factors.a.dtype)
        layer.load_state_dict(factors_to_state(factors) | ({} if bias is None else {"bias": bias.detach()}))
        return layer

    def factors(self) -> Factors:
        """Factor matrices (O, I, R), (O, Kh, R), (O, Kw, R); views of the weights, detached."""
        o, r = self.out_channels, self.rank
        return Factors(
            self.pointwise.weight.detach().view(o, r, -1).transpose(1, 2),
            self.vertical.weight.detach().view(o, r, -1).transpose(1, 2),
            self.horizontal.weight.detach().view(o, r, -1).transpose(1, 2),
        )

    @property
    def input_factor(self) -> nn.Conv2d:
        return self.pointwise

    def to_weight(self) -> Tensor:
        """The dense weight (O, I, Kh, Kw) that this layer stands for."""
        return reconstruct(self.factors())

    def fuse(self) -> nn.Sequential:
        """Deploy form, a new module with the same outputs: 1x1 convolution, grouped Kh x Kw convolution."""
        factors = self.factors()
        kernel = khatri_rao(factors.b, factors.c)  # (O, K, R)
        components = self.out_channels * self.rank
        pointwise = nn.Conv2d(self.in_channels, components, 1, bias=False)
        spatial = nn.Conv2d(
            components,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            groups=self.out_channels,
            bias=self.bias is not None,
        )
        fused = nn.Sequential(pointwise, spatial).to(kernel.device, kernel.dtype)
        with torch.no_grad():
            pointwise.weight.copy_(self.pointwise.weight)
            spatial.weight.copy_(kernel.transpose(1, 2).unflatten(2, self.kernel_size))  # (O, R, Kh, Kw)
            if self.bias is not None:
                spatial.bias.copy_(self.bias)  # type: ignore[union-attr]
        return fused.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        x = self.horizontal(self.vertical(self.pointwise(x)))  # (N, O*R, H', W')
        if self.rank > 1:
            x = x.unflatten(1, (self.out_channels, self.rank)).sum(2)  # (N, O, H', W')
        return x if self.bias is None else x + self.bias.view(-1, 1, 1)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}, "
            f"stride={self.stride}, padding={self.padding}, bias={self.bias is not None}"
        )


class LowRankLinear(Factored):
    """Linear layer (..., I) -> (..., O) of rank r: ``first`` I -> r without bias, ``second`` r -> O.

    It saves where ``r * (I + O) < I * O``.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        _check_matrix_rank(rank, in_features, out_features)
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.first = nn.Linear(in_features, rank, bias=False)
        self.second = nn.Linear(rank, out_features, bias)

    @classmethod
    @one_thread()
    def from_linear(cls, linear: nn.Linear, rank: int) -> "LowRankLinear":
        """The best approximation of the weight (Eckart and Young, 1936), a new layer; both parts of equal scale.

        Raises:
            InputError: a rank out of range, or NaN or infinity in the weight.
        """
        _check_matrix_rank(rank, linear.in_features, linear.out_features)
        weight = linear.weight.detach().double()
        if not weight.isfinite().all():
            raise InputError("linear: expected finite weights, got NaN or infinity; use an intact checkpoint")
        if linear.out_features <= linear.in_features:  # the small Gram matrix: quick, and as good at single precision
            values, left = torch.linalg.eigh(weight @ weight.T)
            left = left[:, -rank:]
            right = left.T @ weight  # (r, I), rows orthogonal
        else:
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            left, right = left[:, :rank] * values[:rank], right[:rank]
        scale = (left.norm(dim=0) / right.norm(dim=1).clamp_min(1e-150)).sqrt().clamp_min(1e-150)
        return cls.from_factors(left / scale, right * scale[:, None], linear.bias).train(linear.training)

    @classmethod
    def from_factors(cls, left: Tensor, right: Tensor, bias: Tensor | None = None) -> "LowRankLinear":
        """A layer with the weight ``left @ right``, (O, r) and (r, I), and a bias (O,)."""
        layer = cls(right.shape[1], left.shape[0], left.shape[1], bias is not None).to(left.device)
        with torch.no_grad():
            layer.first.weight.copy_(right)
            layer.second.weight.copy_(left)
            if bias is not None:
                layer.second.bias.copy_(bias)
        return layer

    @property
    def input_factor(self) -> nn.Linear:
        return self.first

    def to_weight(self) -> Tensor:
        """The dense weight (O, I) that this layer stands for."""
        return self.second.weight.detach() @ self.first.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def factors_to_state(factors: Factors) -> dict[str, Tensor]:
    """State dict entries of a ``CPConv2d`` (without bias) for the factors; contiguous copies."""
    return {
        "pointwise.weight": factors.a.transpose(1, 2).flatten(0, 1)[:, :, None, None].contiguous(),  # (O*R, I, 1, 1)
        "vertical.weight": factors.b.transpose(1, 2).flatten(0, 1)[:, None, :, None].contiguous(),  # (O*R, 1, Kh, 1)
        "horizontal.weight": factors.c.transpose(1, 2).flatten(0, 1)[:, None, None, :].contiguous(),  # (O*R, 1, 1, Kw)
    }


def check_supported(conv: nn.Conv2d, name: str = "conv") -> None:
    """Refuse what a CP decomposition per filter cannot stand for.

    Raises:
        InputError: not a Conv2d, grouped, dilated, or padded other than with zeros; the message names the layer.
    """
    if not isinstance(conv, nn.Conv2d):
        raise InputError(f"{name}: expected a Conv2d, got {type(conv).__name__}; leave this layer dense")
    if conv.groups != 1:
        raise InputError(f"{name}: expected groups=1, got {conv.groups}; leave this layer dense")
    if _pair(conv.dilation) != (1, 1):
        raise InputError(f"{name}: expected dilation=1, got {conv.dilation}; leave this layer dense")
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise InputError(
            f"{name}: expected numeric zero padding, got {conv.padding_mode} {conv.padding}; leave it dense"
        )


def _check_matrix_rank(rank: int, inputs: int, outputs: int) -> None:
    limit = min(inputs, outputs)
    if not 1 <= rank <= limit:
        raise InputError(f"rank: expected 1 to {limit} (of {inputs} -> {outputs}), got {rank}; lower it")


def _pair(value: int | tuple[int, ...] | str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, str) or len(value) != 2:
        raise InputError(f"expected one number or (vertical, horizontal), got {value!r}; give two numbers")
    return value[0], value[1]
