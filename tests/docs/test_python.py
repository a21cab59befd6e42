"""The Python blocks of README.md and docs/: those of a page run in order, in one namespace, in a folder of files."""

import pytest

from tests.process import run

from .pages import blocks

# what a page takes for granted, and says so beside the block: pictures of the user's, and a detector
BEFORE = """
import numpy as np, torch
torch.manual_seed(0)
images = torch.randn(4, 3, 64, 64)
pictures = [torch.rand(3, 64, 96) for _ in range(2)]
picture = np.zeros((64, 96, 3), np.uint8)
from torchvision.models.detection import fasterrcnn_resnet50_fpn
detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=64, max_size=96).eval()
"""
SECONDS = 280
PAGES = sorted({block.page for block in blocks() if block.language == "python"} - {"docs/extend.md"})  # its own test


@pytest.mark.parametrize("page", PAGES)
def test_page(page, folder):
    def main() -> None:
        namespace: dict[str, object] = {"__name__": "__main__"}
        exec(BEFORE, namespace)
        for block in blocks():
            if block.page == page and block.language == "python":
                code = "\n" * block.line + block.text  # so that a traceback tells the line of the page
                exec(compile(code, block.page, "exec"), namespace)

    found = run(main, folder, SECONDS)
    assert found.status == 0, f"{page}\n{found.out[-2000:]}\n{found.err[-4000:]}"
