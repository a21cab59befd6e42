"""How the tests of commands run one, and what several of them start from."""

import importlib.util
import json
import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

import torch

from tests import REPOSITORY
from tests.process import run, script

if importlib.util.find_spec("detectron2") is not None:
    importlib.import_module("norton_det.d2.trainer")  # here, so that the forks need not

LIGHT = "[0.]+[0.3]*19"


QUICK_TEST = ["MODEL.RPN.PRE_NMS_TOPK_TEST", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 20]


def command(name: str, *arguments: object, datasets: Path | None = None) -> CompletedProcess:
    """The same in a process of its own: a fork of this one, which has imported what takes long."""
    words, place = [str(REPOSITORY / name), *map(str, arguments)], os.getcwd()

    def main() -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
        if datasets:
            os.environ["DETECTRON2_DATASETS"] = str(datasets)
        if "detectron2" in sys.modules:
            _forget_detectron2()
        os.chdir(place)
        script(words)()

    with tempfile.TemporaryDirectory() as folder:
        ended = run(main, Path(folder), 300)
    return CompletedProcess(words, ended.status, ended.out, ended.err)


def _forget_detectron2() -> None:
    """What Detectron2 keeps of this process: data sets of the folder that was named when it was imported, and where
    its loggers write."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import builtin
    from detectron2.utils.logger import setup_logger

    DatasetCatalog.data.clear()
    MetadataCatalog.data.clear()
    importlib.reload(builtin)
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "norton_det"):
        logging.getLogger(name).handlers.clear()


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
