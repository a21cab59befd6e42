"""Grad-CAM (Selvaraju et al., ICCV 2017): where a classifier looks, beside where its compressed forms look.

The maps come from pytorch-grad-cam, which is imported by the functions. ``agreement`` puts a number to "features
preserved".
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.preprocessing import Preprocessing
from ..utils.errors import InputError
from ..utils.extras import mend

_LABEL = 22  # pixels of the line above a column


def require_library() -> None:
    """Refuse early where pytorch-grad-cam, or what it needs, is not installed.

    Raises:
        InputError: one line with what installs it.
    """
    try:
        importlib.import_module("pytorch_grad_cam")
    except ImportError as error:
        raise InputError(f"expected pytorch-grad-cam, found none ({error}); {mend('pytorch_grad_cam')}") from None


def grad_cam(model: nn.Module, images: Tensor, classes: Sequence[int] | None = None, batch_size: int = 16) -> Tensor:
    """Class activation maps of the last residual block.

    Args:
        model: a ResNet with ``layer4``, in eval mode.
        images: (N, 3, H, W), preprocessed.
        classes: index of the class to explain, for each image; by default the one predicted.
        batch_size: images at a time.

    Returns:
        Maps (N, H, W) in 0..1, float32, on the CPU.

    Raises:
        InputError: pytorch-grad-cam is not installed.
    """
    require_library()
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    maps = []
    with GradCAM(model, [model.get_submodule("layer4")[-1]]) as cam:  # type: ignore[index]
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            targets = None
            if classes is not None:
                targets = [ClassifierOutputTarget(index) for index in classes[start : start + batch_size]]
            maps.append(torch.from_numpy(cam(batch, targets)))
    return torch.cat(maps).float()


def agreement(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson correlation of two maps, for each image: (N, H, W), (N, H, W) -> (N,) in -1..1.

    A constant map, which looks nowhere, agrees with nothing: 0.
    """
    first, second = (batch.flatten(1) - batch.flatten(1).mean(1, keepdim=True) for batch in (maps, others))
    norms = first.norm(dim=1) * second.norm(dim=1)
    return torch.where(norms > 0, (first * second).sum(1) / norms.clamp_min(1e-20), 0.0)


def to_pixels(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Preprocessed images (N, 3, H, W) back to RGB in 0..1."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    pixels = (images * std + mean) / 255
    return (pixels.flip(1) if preprocessing.color == "BGR" else pixels).clamp(0, 1)


def draw_grid(pixels: Tensor, columns: Mapping[str, Tensor], first: str = "input") -> Any:
    """A picture: one row per image, the image and then a heat map over it per column.

    Args:
        pixels: RGB (N, 3, H, W) in 0..1.
        columns: maps (N, H, W) in 0..1 by the text above them.
        first: the text above the images.

    Returns:
        A Pillow image.
    """
    import numpy as np
    from PIL import Image, ImageDraw
    from pytorch_grad_cam.utils.image import show_cam_on_image

    count, _, height, width = pixels.shape
    plain = pixels.permute(0, 2, 3, 1).numpy().astype(np.float32)
    sheet = Image.new("RGB", ((1 + len(columns)) * (width + 4), count * (height + 4) + _LABEL), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (name, maps) in enumerate([(first, None), *columns.items()]):
        draw.text((column * (width + 4) + 4, 5), name, fill="black")
        for row in range(count):
            picture = np.uint8(255 * plain[row])
            if maps is not None:
                picture = show_cam_on_image(plain[row], maps[row].numpy(), use_rgb=True)
            sheet.paste(Image.fromarray(picture), (column * (width + 4), row * (height + 4) + _LABEL))
    return sheet
