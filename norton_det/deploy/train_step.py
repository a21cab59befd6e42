"""One training step of a detector on made-up targets, for timing: forward, backward and optimiser."""

from collections.abc import Callable

import torch
from torch import nn

from ..models.stacks import stack_of

OBJECTS = 8  # in an image


def make_step(detector: nn.Module, height: int, width: int, batch: int = 2) -> Callable[[], None]:
    """A call that takes one step of SGD on noise of that size; the detector changes, so give a copy.

    Args:
        detector: of either stack; it is put into training mode.
        height, width: pixels.
        batch: images.
    """
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(batch):
        sides = torch.rand(OBJECTS, 2, generator=generator) * 0.3 + 0.1
        start = torch.rand(OBJECTS, 2, generator=generator) * (1 - sides)
        boxes = torch.cat([start, start + sides], 1) * torch.tensor([width, height, width, height])
        targets.append(boxes)
    images = torch.rand(batch, 3, height, width, generator=generator)
    losses_of = stack_of(detector).training_call(detector, images, targets)
    detector.train()
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9)

    def step() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            loss = torch.stack(list(losses_of().values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return step
