"""The data sets of a config: checked before anything starts, brought to the same classes, read for training."""

import logging
from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from torch import nn

from ..data.class_match import listed, match_classes, match_names
from ..data.dataset_labels import (
    check_keypoints,
    check_training_classes,
    dataset_labels,
    dataset_sigmas,
    training_labels,
)
from ..data.register import check_datasets, class_names
from ..models.labels import Labels, labels_of
from ..utils.errors import InputError
from .config_checks import number_of_classes

logger = logging.getLogger(__name__)


def check_config_datasets(cfg: CfgNode, *, training: bool = True) -> None:
    """Refuse data sets of a config that are not there, would crash a run or make its result wrong.

    Args:
        cfg: of Detectron2.
        training: those of DATASETS.TRAIN are used; else those of DATASETS.TEST alone.

    Raises:
        InputError: names the data set or the key, and the mend.
    """
    points = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0
    train, test = cfg.DATASETS.TRAIN if training else (), cfg.DATASETS.TEST
    check_datasets(train, keypoints=points)
    check_training_sets(cfg, train)
    for name in test if train else ():
        _check_shared_class(cfg, train, name)
    check_datasets(test, masks=cfg.MODEL.MASK_ON, keypoints=points)
    for name in test:
        sigmas_of(cfg, name)
    if points and train:
        check_keypoints(training_labels(train), train[0], test)


def check_training_sets(cfg: CfgNode, names: tuple[str, ...]) -> None:
    """Refuse training sets that do not have the classes of the heads of a config, or other keypoints than the first.

    Raises:
        InputError: names the sets, and the first class or keypoint that differs.
    """
    key, count = number_of_classes(cfg)
    check_training_classes(names, count, key)
    if cfg.MODEL.KEYPOINT_ON:
        check_keypoints(training_labels(names), names[0] if names else "", names[1:])


def _check_shared_class(cfg: CfgNode, train: tuple[str, ...], name: str) -> None:
    """Refuse a test set without any class of the training sets, whether its files are there or not; tell the rest."""
    trained, tested = training_labels(train), class_names(name)
    if not trained.classes or not tested:
        return
    if all(place is None for place in match_names(trained.classes, tested)):
        raise InputError(
            f"DATASETS.TEST: expected classes of {' and '.join(train)} ({listed(trained.classes)}), got {name} "
            f'({listed(tested)}); set DATASETS.TEST "(\'NAME\',)" to a data set of these classes, or "()" for none'
        )
    for note in match_classes(trained, len(trained.classes), Labels(tested), name).notes:
        logger.warning("%s", note)


def known_labels(cfg: CfgNode, model: nn.Module) -> Labels:
    """What is known of a model's outputs: what was noted on it, else the classes of the training sets of its config, if
    they are as many, and the test sets have some of them."""
    labels = labels_of(getattr(model, "module", model))
    if (labels.classes or labels.category_ids) and not labels.assumed:
        return labels
    trained = training_labels(cfg.DATASETS.TRAIN)
    if len(trained.classes) != number_of_classes(cfg)[1]:
        return labels
    for name in cfg.DATASETS.TEST:
        if all(place is None for place in match_names(trained.classes, dataset_labels(name).classes)):
            return labels
    return trained if cfg.MODEL.KEYPOINT_ON else replace(trained, keypoints=())


def sigmas_of(cfg: CfgNode, dataset_name: str) -> list[float] | None:
    """What AP of keypoints is measured with; ``None`` for COCO's own.

    Raises:
        InputError: neither TEST.KEYPOINT_OKS_SIGMAS nor the data set has one for each keypoint.
    """
    if not cfg.MODEL.KEYPOINT_ON:
        return None
    key = "TEST.KEYPOINT_OKS_SIGMAS"
    return list(dataset_sigmas(dataset_name, cfg.TEST.KEYPOINT_OKS_SIGMAS, key) or ()) or None


def mapper_config(cfg: CfgNode) -> CfgNode:
    """The config that training pictures are read by: of the keypoints of the first training set, and mirroring none
    where the names of keypoints do not say what a mirror swaps, which is told."""
    if not cfg.MODEL.KEYPOINT_ON:
        return cfg
    names = cfg.DATASETS.TRAIN
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = names[:1]  # the others have the same ones, perhaps in another spelling
    lonely = MetadataCatalog.get(names[0]).get("keypoints_lonely", ())
    if lonely and cfg.INPUT.RANDOM_FLIP != "none":
        logger.warning(
            "%s: pictures are not mirrored (INPUT.RANDOM_FLIP none): by name %s have a side, and it is not clear which "
            "keypoints are on the other one; name both alike in the JSON (left_..., right_...), or both without a side "
            "to mirror all the same",
            names[0],
            listed(lonely, 5),
        )
        cfg.INPUT.RANDOM_FLIP = "none"
    cfg.freeze()
    return cfg


def training_records(cfg: CfgNode) -> list[dict[str, Any]]:
    """Records of all training sets, as Detectron2 reads and filters them; classes of later sets are met by name.

    Raises:
        InputError: sets without classes in common, or without images to train on.
    """
    names = cfg.DATASETS.TRAIN
    parts = [list(DatasetCatalog.get(name)) for name in names]  # Detectron2 may learn of the classes by this
    labels = training_labels(names)
    records: list[dict[str, Any]] = []
    for name, part in zip(names, parts, strict=True):
        classes = dataset_labels(name).classes
        if classes != labels.classes[: len(classes)]:
            targets = match_classes(Labels(classes), len(classes), labels, name).targets
            logger.info("%s: its classes have the numbers of %s", name, names[0])
            for record in part:
                for annotation in record.get("annotations", ()):
                    annotation["category_id"] = targets[annotation["category_id"]]
        records += part
    with_objects = bool(records) and "annotations" in records[0]
    least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    if with_objects and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    if with_objects and least > 0:
        records = filter_images_with_few_keypoints(records, least)
    if not records:
        raise InputError(f"DATASETS.TRAIN {names}: expected images with objects, found none; annotate some images")
    if with_objects and labels.classes:
        print_instances_class_histogram(records, list(labels.classes))
    return records
