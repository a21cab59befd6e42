"""Annotations and predictions of a data set as ``Detections``: what was there, and what a results file says."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as mask_utils

from ..data.coco_values import box_problem, is_number, keypoints_problem, mask_problem, short
from ..deploy.predictor import Detections
from ..utils.errors import InputError
from ..utils.files import require_file

MAX_SCORE = 1e9


def annotations_of(record: Mapping[str, Any]) -> Detections:
    """The objects of a Detectron2 record (crowds left out), with a score of 1."""
    objects = [annotation for annotation in record.get("annotations", ()) if not annotation.get("iscrowd", 0)]
    boxes = [BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS) for annotation in objects]
    labels = [annotation["category_id"] for annotation in objects]
    return _detections(objects, boxes, labels, [1.0] * len(objects), (record["height"], record["width"]))


class Predictions(Mapping[Any, Detections]):
    """Predictions by ``image_id``, by falling score; masks are decoded when an image is asked for: those of a whole
    data set may be more than memory holds.

    Args:
        by_image: checked objects in COCO's result format.
        labels: from a category's id to the data set's label.
        sizes: height and width of each image.
    """

    def __init__(
        self,
        by_image: Mapping[Any, Sequence[Mapping[str, Any]]],
        labels: Mapping[int, int],
        sizes: Mapping[Any, tuple[int, int]],
    ) -> None:
        self.by_image, self.labels, self.sizes = by_image, labels, sizes

    def __getitem__(self, image: Any) -> Detections:
        objects = sorted(self.by_image[image], key=lambda item: -item["score"])
        boxes = [BoxMode.convert(item["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for item in objects]
        labels, scores = [self.labels[item["category_id"]] for item in objects], [item["score"] for item in objects]
        return _detections(objects, boxes, labels, scores, self.sizes[image])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.by_image)

    def __len__(self) -> int:
        return len(self.by_image)


def read_predictions(file: str | Path, dataset: str) -> Predictions:
    """Predictions in COCO's result format, each value checked; labels are those of the data set.

    Args:
        file: JSON, such as Detectron2's ``coco_instances_results.json``.
        dataset: registered with Detectron2.

    Raises:
        InputError: no such file, not that format, images or categories that are not in the data set, values that
            are not finite, or places outside the image; names the object and the field.
    """
    path = require_file(file, "predictions in COCO's result format (JSON)")
    wrong = f"{path}: expected a list of objects with image_id, category_id, bbox and score, as COCO has it"
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise InputError(f"{wrong}; got text that does not parse") from None
    needed = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(content, list) or not all(isinstance(item, dict) and needed <= item.keys() for item in content):
        raise InputError(f"{wrong}; got something else")
    metadata = MetadataCatalog.get(dataset)
    sizes = {record["image_id"]: (record["height"], record["width"]) for record in DatasetCatalog.get(dataset)}
    labels = getattr(metadata, "thing_dataset_id_to_contiguous_id", None) or {
        index: index for index in range(len(metadata.thing_classes))
    }
    points = len(metadata.get("keypoint_names") or ())
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for index, item in enumerate(content):
        for key, known in (("image_id", sizes), ("category_id", labels)):
            if type(item[key]) not in (int, str) or item[key] not in known:
                raise InputError(f"{path}: {key} {short(item[key])} is not in {dataset}; name the data set it is of")
        if problem := _problem(item, *sizes[item["image_id"]], points):
            raise InputError(f"{path}: object {index} (image {item['image_id']}): {problem}")
        by_image[item["image_id"]].append(item)
    return Predictions(by_image, labels, sizes)


def _problem(prediction: Mapping[str, Any], height: int, width: int, points: int) -> str:
    """What is wrong with a prediction in an image of that size; empty where it will do."""
    if not is_number(prediction["score"], -MAX_SCORE, MAX_SCORE):
        return f"score: expected a finite number, got {short(prediction['score'])}; evaluate intact weights anew"
    problem = box_problem(prediction["bbox"])
    if not problem:
        left, top, box_width, box_height = prediction["bbox"]
        if left + box_width / 2 > width or top + box_height / 2 > height:
            problem = f"bbox: expected a box within {width}x{height}, got one outside; name the data set it is of"
    if not problem and prediction.get("segmentation"):
        problem = mask_problem(prediction["segmentation"], height, width)
    if not problem and prediction.get("keypoints"):
        problem = keypoints_problem(prediction["keypoints"], points, visibility=False)
    return problem


def _detections(
    objects: Sequence[Mapping[str, Any]],
    boxes: Sequence[Any],
    labels: Sequence[int],
    scores: Sequence[float],
    size: tuple[int, int],
) -> Detections:
    """Detections with masks and keypoints where all objects have them."""
    masks = keypoints = None
    if objects and all(item.get("segmentation") for item in objects):
        masks = np.stack([_mask(item["segmentation"], *size) for item in objects])
    if objects and all(item.get("keypoints") for item in objects):
        keypoints = np.array([item["keypoints"] for item in objects], np.float32).reshape(len(objects), -1, 3)
    places = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(places, np.array(scores, np.float32), np.array(labels, np.int64), masks, keypoints)


def _mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons or runs, compressed or not, as (H, W) bool."""
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_utils.frPyObjects(segmentation, height, width)
    return mask_utils.decode(segmentation).astype(bool)
