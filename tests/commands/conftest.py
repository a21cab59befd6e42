"""Weights, pictures and data sets that the tests of several commands start from."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torchvision

from .shared import command


@pytest.fixture(scope="session")
def half(tmp_path_factory) -> Path:
    """torchvision's ResNet-50 in half precision, random."""
    state = torchvision.models.resnet50(num_classes=10).state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """train/ and val/ of an ImageNet-style folder: 10 classes of 2 noisy pictures, 40 x 40."""
    import numpy as np
    from PIL import Image

    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part in ("train", "val"):
        for index in range(10):
            folder = root / part / f"class{index}"
            folder.mkdir(parents=True)
            for number in range(2):
                noise = random.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def calibrated(half, pictures, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A checkpoint that tools/compress.py calibrated, and what it printed; one of the pictures is damaged."""
    output = tmp_path_factory.mktemp("calibrated") / "small.safetensors"
    folder = output.parent / "images"
    shutil.copytree(pictures / "train", folder)
    (folder / "class3" / "1.png").write_bytes(b"cut off")
    words = ["--weights", half, "--rank", 1, "--ratios", "[0.]+[0.3]*3+[0.9]*16", "--calibrate", folder]
    done = command("tools/compress.py", *words, "--output", output, "--image-size", 32, "--resize", 36)
    return output, done


@pytest.fixture(scope="session")
def datasets(tmp_path_factory, shared) -> Path:
    """A folder for DETECTRON2_DATASETS with links to the real data."""
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "coco").symlink_to(shared / "data" / "coco-mini")
    (folder / "bccd").symlink_to(shared / "data" / "bccd")
    return folder
