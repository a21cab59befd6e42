"""The same input gives the same file on any number of threads.

Each run that writes a file is a process of its own, with OMP_NUM_THREADS from its start:
``python -m tests.reliability.test_determinism CASE FILE``.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from norton_det.checkpoint.opened import open_weights
from norton_det.checkpoint.save import save_checkpoint
from norton_det.compression.resnet import compress
from norton_det.models.preprocessing import TORCHVISION
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from tests import REPOSITORY, find_shared

from .promises import Row

THREADS = (1, 1, 2)  # the first two tell whether a run can be repeated at all
SECONDS = 1800


def real_or_random() -> dict[str, Tensor]:
    """The trained ResNet-50 where it is at hand, else a random one."""
    folder = find_shared()
    if folder is None:
        torch.manual_seed(0)
        return NortonResNet(CompressionSpec.dense(), 2).state_dict()
    return dict(open_weights(folder / "weights" / "resnet50_imagenette.safetensors").state)


def photographs(count: int, size: int) -> Tensor:
    """Preprocessed images (N, 3, S, S), of noise where no photographs are at hand."""
    folder = find_shared()
    if folder is None:
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    from norton_det.data.images import load_images

    found = load_images(folder / "data" / "imagenette" / "val", TORCHVISION, count=count, size=size, progress=False)
    return found[0]


def write_resnet(preset: str, images: int, size: int, file: Path) -> None:
    """Compress the ResNet, on images if there are to be some."""
    calibration = photographs(images, size) if images else None
    result = compress(real_or_random(), CompressionSpec.preset(preset), calibration=calibration)
    save_checkpoint(file, result.model)


def write_detector(pictures: int, side: int, file: Path) -> None:
    """Compress all of a random Faster R-CNN of Detectron2 on pictures of noise."""
    from detectron2.modeling import build_model

    from norton_det.checkpoint.save import save_detector
    from norton_det.compression.detector import compress_detector
    from norton_det.d2.build import load_config

    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    }
    cfg = load_config("dense_faster_rcnn.yaml", [str(word) for pair in options.items() for word in pair])
    torch.manual_seed(0)
    detector = build_model(cfg).eval()
    generator = torch.Generator().manual_seed(0)
    images = [{"image": 255 * torch.rand(3, side, side + 32, generator=generator)} for _ in range(pictures)]
    result = compress_detector(detector, "norton-78", box_head_rank=16, calibration=images)
    save_detector(file, result.model, config=cfg)


CASES: dict[str, Callable[[Path], None]] = {
    "norton-78": lambda file: write_resnet("norton-78", 0, 0, file),
    "norton-78 on 40 images": lambda file: write_resnet("norton-78", 40, 64, file),
    "norton-43": lambda file: write_resnet("norton-43", 0, 0, file),
    "a detector on 4 pictures": lambda file: write_detector(4, 128, file),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_file_each_time(case, tmp_path, keep):
    hashes = [_hash_of(case, threads, tmp_path) for threads in THREADS]
    kept = sum(each == hashes[0] and len(each) == 64 for each in hashes)
    weights = "random weights" if find_shared() is None or "detector" in case else "trained weights"
    told = hashes[0][:12] if kept == len(hashes) else ", ".join(each[:60] for each in hashes)
    detail = f"{weights}; SHA-256 on {', '.join(map(str, THREADS))} threads: {told}"
    keep(Row(f"the same file each time: {case}", kept, len(hashes), detail))


def _hash_of(case: str, threads: int, folder: Path) -> str:
    """SHA-256 of the file that a process on so many threads writes; what went wrong instead, if it did."""
    file = folder / "determinism.safetensors"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.reliability.test_determinism", case, str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    try:
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"took longer than {SECONDS} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    CASES[sys.argv[1]](Path(sys.argv[2]))
