"""The images of an evaluation: one that cannot be read ends it, as an AP over the others would be another figure."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader
from torch.utils.data import DataLoader

from ..utils.errors import InputError, first_line
from .loader import UNREADABLE


class EvaluationMapper:
    """Detectron2's mapper for evaluation, whose errors name the image in one line.

    Args:
        cfg: of Detectron2.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.mapper = DatasetMapper(cfg, is_train=False)

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes.

        Args:
            record: Detectron2's dict.

        Raises:
            InputError: the image is missing, damaged, or of another size than its annotations say.
        """
        try:
            return self.mapper(record)
        except (*UNREADABLE, ValueError) as error:
            raise InputError(
                f"{record['file_name']}: expected the image of the annotations, got a damaged or other file "
                f"({first_line(error, 160)}); replace it, or drop it from the annotations"
            ) from None


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Detectron2's loader of a data set to evaluate on, with ``EvaluationMapper``."""
    return build_detection_test_loader(cfg, dataset_name, mapper=EvaluationMapper(cfg))
