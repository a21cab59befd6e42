"""Records of a data set as a detector takes them: Detectron2's mapper, with pictures read by ``data.decode``."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_image_size, convert_PIL_to_numpy, transform_proposals
from detectron2.data.detection_utils import read_image as read_labels
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..data.decode import UnreadableImage, read_image
from ..models.input_size import ThinPicture, input_size
from ..utils.errors import InputError, first_line

TOO_THIN = "too_thin"  # of a record: that nothing is looked for, and why


def read_file(name: str) -> np.ndarray:
    """A picture (H, W, 3), RGB, uint8, of a record's ``file_name``, from wherever Detectron2 can fetch it.

    Raises:
        UnreadableImage: it is missing, damaged, or no picture.
    """
    try:
        path = PathManager.get_local_path(name)
    except OSError as error:
        raise UnreadableImage.of(name, error) from None
    return read_image(path, name=name)


class ImageMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper`` whose pictures are read as everywhere in norton_det: also those of 16 bits, which
    Detectron2 makes white."""

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes.

        Args:
            dataset_dict: a record of Detectron2's; it is not changed.

        Returns:
            The record with ``image`` (3, h, w), and ``instances`` in training.

        Raises:
            UnreadableImage: the picture is missing, damaged, or no picture.
            SizeMismatchError: it is of another size than its annotations say.
            ThinPicture: no pixel of its short side would be left.
        """
        record = dict(copy.deepcopy(dataset_dict))
        image = convert_PIL_to_numpy(Image.fromarray(read_file(record["file_name"])), self.image_format)
        check_image_size(record, image)
        for step in self.augmentations.augs:
            if isinstance(step, T.ResizeShortestEdge):
                input_size(image.shape[0], image.shape[1], min(step.short_edge_length), step.max_size)
        segmented = "sem_seg_file_name" in record
        labels = read_labels(record.pop("sem_seg_file_name"), "L").squeeze(2) if segmented else None
        augmented = T.AugInput(image, sem_seg=labels)
        transforms = self.augmentations(augmented)
        size = augmented.image.shape[:2]
        record["image"] = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if segmented:
            record["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            transform_proposals(record, size, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, size)
        return record


class EvaluationMapper(ImageMapper):
    """The mapper for evaluation: a picture that cannot be read ends it, as an AP over the others would be another
    figure. One that is too thin for a detector is one in which nothing is found: it becomes a black one, and
    ``NortonCOCOEvaluator`` counts it so."""

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes.

        Raises:
            InputError: the picture is missing, damaged, or of another size than its annotations say; names it.
        """
        try:
            return super().__call__(dataset_dict)
        except ThinPicture as error:
            return dict(dataset_dict) | {"image": torch.zeros(3, 32, 32), TOO_THIN: error.reason}
        except ValueError as error:
            reason = error.reason if isinstance(error, UnreadableImage) else first_line(error, 160)
            raise InputError(
                f"{dataset_dict['file_name']}: expected the image of the annotations, got a damaged or other file "
                f"({reason}); replace it, or drop it from the annotations"
            ) from None
