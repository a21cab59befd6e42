#!/usr/bin/env python3
"""A detector that answers in milliseconds, for the demo under load and under faults: fresh, norton-78, exported.

It is made by a process of its own, so that the engine's threads are not those of the process that asks for it.
"""

import subprocess
import sys
from pathlib import Path

CLASSES = ("background", "cat", "dog")


def make_detector(folder: Path) -> Path:
    """Write ``norton-78.xml`` into the folder; its scores are about 1/3.

    Raises:
        RuntimeError: it could not be made.
    """
    path = folder / "norton-78.xml"
    made = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"{path}: expected a detector, got: {made.stderr.strip()[-500:]}")
    return path


def main() -> None:
    import torch

    from norton_det.deploy import export
    from norton_det.tv import fasterrcnn_norton_resnet50_fpn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    options = {"weights_backbone": None, "num_classes": len(CLASSES), "box_score_thresh": 0.0}
    detector = fasterrcnn_norton_resnet50_fpn(
        weights=None, box_detections_per_img=8, rpn_post_nms_top_n_test=30, **options
    )
    export(detector.eval(), sys.argv[1], min_size=64, max_size=128, classes=CLASSES)


if __name__ == "__main__":
    main()
