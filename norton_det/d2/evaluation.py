"""COCO evaluation with the columns of the published table: AP, AP50, AP75 and AR."""

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator
from torch import Tensor, nn
from tqdm import tqdm

from ..data.class_match import match_classes
from ..data.dataset_labels import check_keypoints, dataset_labels, dataset_sigmas
from ..data.keypoints import USUAL_SIGMA
from ..deploy import Detections
from ..deploy.info import DeployInfo
from ..models.input_size import ThinPicture
from ..models.labels import Labels
from ..utils.errors import InputError, naming
from ..utils.hooks import hooked
from .mapper import TOO_THIN, read_file

logger = logging.getLogger(__name__)
COLUMNS = {
    # task -> (name, position in COCOeval.stats)
    "bbox": {"AR1": 6, "AR10": 7, "AR100": 8},
    "segm": {"AR1": 6, "AR10": 7, "AR100": 8},
    "keypoints": {"AR": 5, "AR50": 6, "AR75": 7},
}


class NortonCOCOEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator (pycocotools) that also reports average recall, in %.

    Boxes and masks: AR1, AR10, AR100 (at most so many detections an image). Keypoints: AR, AR50, AR75.

    Attributes:
        tell: takes what the user has to know, a line at a time.
        unmeasured: tasks that the data set's annotations do not suffice for: segm where some have no mask, keypoints
            where none has any.
    """

    tell: Callable[[str], object] = staticmethod(logger.warning)

    def __init__(self, dataset_name: str, output_dir: str | None = None, **options: Any) -> None:
        self._targets: Tensor | None = None
        # the fast implementation is compiled C++, which a pure Python Detectron2 lacks
        super().__init__(dataset_name, output_dir=output_dir, use_fast_impl=False, **options)
        annotations = list(self._coco_api.anns.values())
        points = next((len(annotation["keypoints"]) for annotation in annotations if annotation.get("keypoints")), 0)
        self.unmeasured = {"keypoints"} if annotations and not points else set()
        if not all(annotation.get("segmentation") for annotation in annotations):
            self.unmeasured.add("segm")
        for annotation in annotations:  # an object of a class without keypoints counts neither way, as COCOeval has it
            if points and not annotation.get("keypoints"):
                annotation |= {"keypoints": [0] * points, "num_keypoints": 0}
        if 0 in self._coco_api.anns:  # COCOeval takes an object that is matched for a missed one where its id is 0
            for number, annotation in enumerate(self._coco_api.dataset["annotations"], start=1):
                annotation["id"] = number
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco_api.createIndex()

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        return [task for task in super()._tasks_from_predictions(predictions) if task not in self.unmeasured]

    def match(self, labels: Labels, num_classes: int) -> tuple[str, ...]:
        """Take what is processed from now on as of a detector that numbers classes in its own way.

        Args:
            labels: what is known of its classes, and its keypoints.
            num_classes: how many it has, without the background; 0 if it is not known.

        Returns:
            What the user has to know of it, in lines (see ``data.class_match``).

        Raises:
            InputError: it has no class in common with the data set, or other keypoints.
        """
        name = self._metadata.name
        dataset = dataset_labels(name)
        if not dataset.classes:
            return ()
        check_keypoints(labels, "the detector", [name])
        matched = match_classes(labels, num_classes, dataset, name)
        self._targets = torch.tensor([-1 if target is None else target for target in matched.targets])
        return matched.notes

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """As Detectron2's; COCOeval would take a box that is NaN for a match.

        Raises:
            InputError: predictions that are not finite; names the image.
        """
        for record, output in zip(inputs, outputs, strict=True):
            fields = output["instances"].get_fields().values() if "instances" in output else ()
            tensors = [getattr(value, "tensor", value) for value in fields]
            if not all(bool(tensor.isfinite().all()) for tensor in tensors if isinstance(tensor, Tensor)):
                raise InputError(
                    f"{record.get('file_name', record['image_id'])}: expected finite predictions, got NaN or infinity; "
                    "use intact weights"
                )
        pairs = zip(inputs, outputs, strict=True)
        outputs = [_nothing(output) if TOO_THIN in record else output for record, output in pairs]
        for record in inputs:
            if TOO_THIN in record:
                self.tell(f"{record['file_name']}: {record[TOO_THIN]}, so that nothing is found in it, which counts")
        super().process(inputs, [self._renumbered(output) for output in outputs])

    def _renumbered(self, output: dict[str, Any]) -> dict[str, Any]:
        """An output with the data set's classes, without what it has no class for.

        Raises:
            InputError: a label that the detector is not known to have.
        """
        if self._targets is None or "instances" not in output:
            return output
        instances = output["instances"].to("cpu")
        labels = instances.pred_classes
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self._targets):
            raise InputError(
                f"{self._metadata.name}: expected {len(self._targets)} classes, got label {int(labels.max())}; use its "
                "data set"
            )
        targets = self._targets[labels]
        known = instances[targets >= 0]
        known.pred_classes = targets[targets >= 0]
        return output | {"instances": known}

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is None:  # no predictions at all: nothing is found, whatever Detectron2 calls it (nan)
            nothing = 0.0 if self._coco_api.anns else math.nan  # where there is nothing to find either
            return dict.fromkeys([*results, *COLUMNS[iou_type]], nothing)
        for name, position in COLUMNS[iou_type].items():
            value = float(coco_eval.stats[position])  # -1: there are no such objects
            results[name] = value * 100 if value >= 0 else math.nan
        return results


def evaluate_predictor(
    predict: Callable[[np.ndarray], Any],
    dataset_name: str,
    read: Callable[[str], np.ndarray] = read_file,
    *,
    info: DeployInfo | None = None,
    first_label: int = 0,
    oks_sigmas: Sequence[float] = (),
    tell: Callable[[str], object] = logger.warning,
    output_dir: str | None = None,
    progress: bool = False,
) -> dict[str, dict[str, float]]:
    """COCO metrics of anything that finds objects in pictures, such as ``norton_det.deploy.Predictor``.

    Args:
        predict: picture (H, W, 3), uint8 -> ``Detections``.
        dataset_name: registered with Detectron2.
        read: file -> the picture as ``predict`` takes it; by default in RGB.
        info: of the detector, by default that of ``predict``: its classes are matched with those of the data set.
        first_label: without ``info``: the label of the first class of the data set, whose others follow in order.
        oks_sigmas: one for each keypoint, or one for all; by default those of the data set, COCO's, or 0.05.
        tell: takes what the user has to know, a line at a time.
        output_dir: where Detectron2's evaluator keeps the detections, in COCO's result format.
        progress: show a bar.

    Returns:
        As Detectron2's evaluators do: task -> metric -> per cent.

    Raises:
        InputError: a detector that has no class in common with the data set, a label that it has no class for, a
            picture of another size than its annotations say, or predictions that are not finite.
    """
    info = info or getattr(predict, "info", None)
    points = info is None or "heatmaps" in info.outputs
    sigmas = _sigmas_or_usual(dataset_name, oks_sigmas, tell) if points else ()
    evaluator = NortonCOCOEvaluator(dataset_name, output_dir=output_dir, kpt_oks_sigmas=sigmas)
    evaluator.tell = tell
    evaluator.reset()
    for task, output in (("segm", "masks"), ("keypoints", "heatmaps")):
        if info is not None and output in info.outputs and task in evaluator.unmeasured:
            lacking = "some objects have no mask" if task == "segm" else "no object has keypoints"
            tell(f"{dataset_name}: {lacking}: AP of boxes alone")
    if info is None:
        evaluator.match(Labels(), 0)
    else:
        first_label = info.first_label
        for note in evaluator.match(info.labels, info.num_classes):
            tell(note)
    for record in tqdm(DatasetCatalog.get(dataset_name), "evaluate", unit="image", disable=not progress):
        picture = read(record["file_name"])
        if picture.shape[:2] != (record["height"], record["width"]):
            raise InputError(
                f"{record['file_name']}: expected {record['width']} x {record['height']} pixels, as annotated, got "
                f"{picture.shape[1]} x {picture.shape[0]}; put the annotated image there"
            )
        with naming(record["file_name"]):
            try:
                detections = predict(picture)
            except ThinPicture as error:
                record, detections = record | {TOO_THIN: error.reason}, Detections.none()
        instances = detections.to_instances(*picture.shape[:2])
        instances.pred_classes -= first_label
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()


def _nothing(output: dict[str, Any]) -> dict[str, Any]:
    """An output without what was found."""
    return output | {"instances": output["instances"][:0]}


def _sigmas_or_usual(name: str, asked: Sequence[float], tell: Callable[[str], object]) -> list[float]:
    """Sigmas of a data set's keypoints; where nobody gives any, the usual one for all, which is told."""
    count = len(dataset_labels(name).keypoints)
    sigmas = dataset_sigmas(name, list(asked) * (count if len(asked) == 1 else 1), "--oks-sigmas" if asked else "")
    if sigmas is None:
        tell(f"{name}: AP of keypoints is measured with a sigma of {USUAL_SIGMA} for each; --oks-sigmas sets others")
        return [USUAL_SIGMA] * count
    return list(sigmas)


def published_columns(results: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Rows of the published table from ``trainer.test`` results: task, AP, AP50, AP75 and the task's AR columns."""
    rows = []
    for task, metrics in results.items():
        if task in COLUMNS:
            names = ["AP", "AP50", "AP75", *COLUMNS[task]]
            rows.append({"task": task} | {name: metrics.get(name, math.nan) for name in names})
    return rows


def without_nan(value: Any) -> Any:
    """NaN, a metric that has no objects to measure, as ``None``: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def class_rows(results: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """AP of each class: task, class, AP; none where a data set has but one."""
    rows = []
    for task, metrics in results.items():
        classes = {name.removeprefix("AP-"): value for name, value in metrics.items() if name.startswith("AP-")}
        if len(classes) > 1:
            rows += [{"task": task, "class": name, "AP": value} for name, value in classes.items()]
    return rows


def format_classes(rows: list[dict[str, Any]]) -> str:
    """Rows of ``class_rows`` as aligned text."""
    width = max((len(row["class"]) for row in rows), default=0)
    return "\n".join(f"{row['task']:10}{row['class']:{width}}{row['AP']:8.2f}" for row in rows)


@contextmanager
def refusing_non_finite(detector: nn.Module) -> Iterator[None]:
    """Refuse scores and boxes that are NaN or infinite: Detectron2 drops those without a word.

    Raises:
        InputError: of the part that gave them, where the block runs the detector.
    """

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensors = [leaf for item in output for leaf in (item if isinstance(item, list | tuple) else [item])]
            if not all(bool(tensor.isfinite().all()) for tensor in tensors if isinstance(tensor, Tensor)):
                raise InputError(f"{name}: expected finite predictions, got NaN or infinity; use intact weights")

        return hook

    heads = [
        (module, hook_of(name))
        for name, module in detector.named_modules()
        if name.rpartition(".")[2] in ("rpn_head", "box_predictor")
    ]
    with hooked(outputs=heads):
        yield


def format_rows(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text, a header line before each set of columns."""
    lines: list[str] = []
    header = ""
    for row in rows:
        names = [name for name in row if name != "task"]
        line = f"{'task':10}" + "".join(f"{name:>8}" for name in names)
        if line != header:
            lines.append(header := line)
        lines.append(f"{row['task']:10}" + "".join(f"{row[name]:8.2f}" for name in names))
    return "\n".join(lines)
