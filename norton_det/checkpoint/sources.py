"""Addresses of weights: ``torchvision://NAME`` and ``zoo://NAME``, which become a download or a file."""

import re
from pathlib import Path
from typing import Any

from ..models.architecture import ARCHITECTURES
from ..utils.errors import InputError

DEFAULT_VERSION = "IMAGENET1K_V1"  # the dense network of the paper, and the backbone of both stacks' detectors


def is_download(source: str | Path) -> bool:
    """Whether it names torchvision's weights; a ``Path`` has folded the two slashes into one."""
    return re.match(r"torchvision:/{1,2}[^/]", str(source)) is not None


def local(source: str | Path) -> str | Path:
    """``zoo://NAME`` as the file of the zoo, downloaded where it is not there yet; others as they are.

    Raises:
        InputError: the zoo has no such weights, they cannot be downloaded, or it is another kind of address.
    """
    if match := re.match(r"zoo:/{1,2}(?=[^/])(.+)", str(source)):  # a ``Path`` has folded the slashes
        from .zoo import weights_path  # not above: with it comes what downloads

        return weights_path(match[1])
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(source)) and not (is_download(source) or Path(source).exists()):
        raise InputError(
            f"{source}: expected a file, torchvision://NAME or zoo://NAME, got another address; download it to a file"
        )
    return source


def download(source: str | Path) -> tuple[str, dict[Any, Any]]:
    """torchvision's ImageNet weights, kept in torch's cache folder.

    Args:
        source: ``torchvision://resnet50`` or, with the name of the weights, ``torchvision://resnet50/IMAGENET1K_V2``.

    Returns:
        the full name; the state dict.

    Raises:
        InputError: no such network or weights, torchvision is missing, or there is no network connection.
    """
    arch, _, version = re.sub(r"^torchvision:/+", "", str(source)).partition("/")
    if arch not in ARCHITECTURES:
        raise InputError(f"{source}: expected torchvision:// and one of {', '.join(ARCHITECTURES)}, got {arch!r}")
    try:
        from torchvision.models import get_model_weights
    except ImportError:
        raise InputError(f"{source}: expected torchvision, found none; install it or pass a file") from None
    known = {weights.name: weights for weights in get_model_weights(arch)}
    version = version or DEFAULT_VERSION
    if version not in known:
        raise InputError(f"{source}: expected weights {', '.join(known)}, got {version!r}; choose one of them")
    name = f"torchvision://{arch}/{version}"
    try:
        state = known[version].get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
    except Exception as error:  # of the connection, of a changed file, of the cache folder
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        url_name = known[version].url.rpartition("/")[2]
        raise InputError(
            f"{name}: expected to download it, got {reason}; download {url_name} elsewhere and pass the file"
        ) from None
    return name, state
