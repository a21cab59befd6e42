"""How the tests of commands run one, and what several of them start from."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests import REPOSITORY

LIGHT = "[0.]+[0.3]*19"


QUICK_TEST = ["MODEL.RPN.PRE_NMS_TOPK_TEST", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 20]


def command(name: str, *arguments: object, datasets: Path | None = None) -> subprocess.CompletedProcess:
    """The same in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"DETECTRON2_DATASETS": str(datasets)} if datasets else {})
    words = [sys.executable, str(REPOSITORY / name), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment, check=False)


def one_error(status: int, err: str, pattern: str) -> None:
    """Status 2 and one line ``error: ...``."""
    assert status == 2 and re.fullmatch(r"error: [^\n]+\n", err) and re.search(pattern, err), err


def subset(source: Path, target: Path, count: int) -> Path:
    """The first ``count`` images of a COCO file that have objects."""
    content = json.loads(source.read_text())
    used = [annotation["image_id"] for annotation in content["annotations"] if annotation.get("num_keypoints", 1)]
    content["images"] = [image for image in content["images"] if image["id"] in used][:count]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    target.write_text(json.dumps(content))
    return target
