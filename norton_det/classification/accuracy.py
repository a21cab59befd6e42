"""Accuracy of a classifier: Top-1 and Top-5."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..utils.errors import InputError


@dataclass(frozen=True)
class Accuracy:
    """Accuracy in percent, over ``images``.

    Attributes:
        top1, top5: share of images whose class is the first, or among the first five (all, where there are fewer).
        images: how many counted.
        skipped: places of those that could not be read (label -1).
    """

    top1: float
    top5: float
    images: int
    skipped: tuple[int, ...]


@torch.no_grad()  # not inference_mode: weights that change their memory format in it could not be trained any more
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Accuracy:
    """Accuracy of a model over batches of (images (N, 3, H, W), labels (N,)), in eval mode.

    Args:
        model: gives logits (N, classes); it comes back in the mode it had, on ``device``, channels last.
        batches: such as a ``DataLoader``; a label of -1 is an image that could not be read and does not count.
        device: where it runs.
        dtype: of autocast, such as ``torch.bfloat16``; none by default.
        progress: show a bar.

    Raises:
        InputError: no image that counts.
    """
    training = model.training
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    first, five, images, place = 0, 0, 0, 0
    skipped: list[int] = []
    for inputs, labels in tqdm(batches, desc="evaluate", unit="batch", disable=not progress, leave=False):
        with torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
            logits = model(inputs.to(device).contiguous(memory_format=torch.channels_last)).float().cpu()
        usable = labels >= 0
        skipped += (place + (~usable).nonzero()[:, 0]).tolist()
        ranked = logits[usable].topk(min(5, logits.shape[1])).indices == labels[usable, None]
        first += int(ranked[:, 0].sum())
        five += int(ranked.any(1).sum())
        images += int(usable.sum())
        place += len(labels)
    model.train(training)
    if images == 0:
        raise InputError("evaluation: expected images that can be read, got none; check the folder")
    return Accuracy(100 * first / images, 100 * five / images, images, tuple(skipped))
