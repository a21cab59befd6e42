"""Running statistics of batch normalisation from a few images: precise BN (Wu and Johnson, 2021), frozen BN too."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..utils.errors import InputError
from ..utils.hooks import OutputHook, hooked


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set running means and variances to those of the images, in place; scale and shift stay.

    Within a pass every layer normalises with the statistics of its batch, so that a layer sees what those before it
    will give; means and variances are pooled over batches. Frozen normalisation (torchvision's, Detectron2's), whose
    statistics training never updates, is included.

    Args:
        model: with BatchNorm2d or Frozen* layers; its mode does not matter and stays.
        batches: inputs, each as the model takes it; 32 images or more at a time.

    Returns:
        How many layers were set.

    Raises:
        InputError: no batch, or activations that are not finite; the layer is named.
    """
    norms = {name: module for name, module in model.named_modules() if _has_statistics(module)}
    sums: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}

    def listen(name: str) -> OutputHook:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            mean = x.mean((0, 2, 3), dtype=torch.double)
            centred = x - mean.to(x.dtype).view(1, -1, 1, 1)
            variance = centred.square().mean((0, 2, 3), dtype=torch.double)
            if not (mean.isfinite().all() and variance.isfinite().all()):
                raise InputError(f"{name}: expected finite activations, got NaN or infinity; use intact weights")
            values = x.numel() // x.shape[1]
            part = [mean * values, (variance + mean.square()) * values]
            sums[name] = [old + new for old, new in zip(sums[name], part, strict=True)] if name in sums else part
            counts[name] = counts.get(name, 0) + values
            weight, bias = module.weight, module.bias
            assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
            scale = weight * (variance + module.eps).rsqrt().to(x.dtype)  # type: ignore[operator]
            return centred * scale.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)

        return hook

    training = model.training
    model.eval()
    try:
        with hooked(outputs=[(module, listen(name)) for name, module in norms.items()]):
            for batch in batches:
                model(batch)
    finally:
        model.train(training)
    if norms and not sums:
        raise InputError("batch normalisation: expected images, got none; give at least one batch")
    for name, (total, squares) in sums.items():
        mean = total / counts[name]
        norms[name].running_mean.copy_(mean)
        norms[name].running_var.copy_((squares / counts[name] - mean.square()).clamp_min(0.0))
    return len(sums)


def _has_statistics(module: nn.Module) -> bool:
    fields = ("running_mean", "running_var", "weight", "bias")
    return all(isinstance(getattr(module, field, None), Tensor) for field in fields)
