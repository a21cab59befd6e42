"""Annotations and predictions of a data set as ``Detections``: what was there, and what a results file says."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as mask_utils

from ..deploy.predictor import Detections
from ..errors import InputError
from ..files import require_file


def annotations_of(record: Mapping[str, Any]) -> Detections:
    """The objects of a Detectron2 record (crowds left out), with a score of 1."""
    objects = [each for each in record.get("annotations", ()) if not each.get("iscrowd", 0)]
    boxes = [BoxMode.convert(each["bbox"], each["bbox_mode"], BoxMode.XYXY_ABS) for each in objects]
    labels = [each["category_id"] for each in objects]
    return _detections(objects, boxes, labels, [1.0] * len(objects), (record["height"], record["width"]))


def read_predictions(file: str | Path, dataset: str) -> dict[Any, Detections]:
    """Predictions in COCO's result format by ``image_id``, by falling score; labels are those of the data set.

    Args:
        file: JSON, such as Detectron2's ``coco_instances_results.json``.
        dataset: registered with Detectron2.

    Raises:
        InputError: no such file, not that format, or images, categories or places that are not in the data set.
    """
    path = require_file(file, "predictions in COCO's result format (JSON)")
    wrong = f"{path}: expected a list of objects with image_id, category_id, bbox and score, as COCO has it"
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise InputError(f"{wrong}; got text that does not parse") from None
    needed = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(content, list) or not all(isinstance(each, dict) and needed <= set(each) for each in content):
        raise InputError(f"{wrong}; got something else")
    metadata = MetadataCatalog.get(dataset)
    sizes = {record["image_id"]: (record["height"], record["width"]) for record in DatasetCatalog.get(dataset)}
    names = getattr(metadata, "thing_dataset_id_to_contiguous_id", None) or {
        index: index for index in range(len(metadata.thing_classes))
    }
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for each in content:
        for key, known in (("image_id", sizes), ("category_id", names)):
            if not isinstance(each[key], int | str) or each[key] not in known:
                raise InputError(f"{path}: {key} {each[key]!r} is not in {dataset}; name the data set it is of")
        by_image[each["image_id"]].append(each)
    found = {}
    for image, objects in by_image.items():
        try:
            ordered = sorted(objects, key=lambda each: -each["score"])
            boxes = [BoxMode.convert(each["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for each in ordered]
            labels, scores = [names[each["category_id"]] for each in ordered], [each["score"] for each in ordered]
            found[image] = _detections(ordered, boxes, labels, scores, sizes[image])
        except (ValueError, TypeError, AssertionError, KeyError, IndexError):
            raise InputError(f"{wrong}; got boxes, masks or keypoints of another form in image {image}") from None
        height, width = sizes[image]
        if not (found[image].boxes.reshape(-1, 2, 2).mean(axis=1) <= (width, height)).all():
            raise InputError(
                f"{path}: expected boxes within image {image} of {dataset} ({width}x{height}), got one outside; "
                "name the data set it is of"
            )
    return found


def _detections(
    objects: Sequence[Mapping[str, Any]],
    boxes: Sequence[Any],
    labels: Sequence[int],
    scores: Sequence[float],
    size: tuple[int, int],
) -> Detections:
    """Detections with masks and keypoints where all objects have them."""
    masks = keypoints = None
    if objects and all(each.get("segmentation") for each in objects):
        masks = np.stack([_mask(each["segmentation"], *size) for each in objects])
    if objects and all(each.get("keypoints") for each in objects):
        keypoints = np.array([each["keypoints"] for each in objects], np.float32).reshape(len(objects), -1, 3)
    places = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(places, np.array(scores, np.float32), np.array(labels, np.int64), masks, keypoints)


def _mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons or runs, compressed or not, as (H, W) bool."""
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_utils.frPyObjects(segmentation, height, width)
    return mask_utils.decode(segmentation).astype(bool)
