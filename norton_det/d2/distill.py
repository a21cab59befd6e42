"""Distillation from the dense detector: losses between the maps, objectness and classes of two R-CNNs.

Fine-tuning a compressed detector, the dense one that it was made from is run on the same images. Three losses are
added to those of the labels:

- features: squared distance of the FPN's maps relative to the teacher's energy, mean over levels (Romero et al., 2015);
- rpn: Kullback-Leibler divergence of the objectness, over all anchors, per expected object of the teacher's;
- box: that of the classes' probabilities, on the regions that the student samples (Hinton et al., 2015).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import FPN, GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from torch import Tensor, nn

from ..classification.losses import feature_distance
from ..utils.errors import InputError


@dataclass(frozen=True)
class DistillWeights:
    """Factors of the three losses; 0 leaves one out."""

    features: float = 1.0
    rpn: float = 1.0
    box: float = 1.0


class Distillation:
    """Losses that are added to those that a student returns while it trains, see ``install``.

    Args:
        student, teacher: R-CNNs of Detectron2 with FPN, of the same classes and anchors; the teacher is not trained.
        weights: of the losses.

    Raises:
        InputError: detectors that do not fit together.
    """

    def __init__(self, student: GeneralizedRCNN, teacher: GeneralizedRCNN, weights: DistillWeights) -> None:
        self.student, self.teacher, self.weights = student, teacher.eval().requires_grad_(False), weights
        for detector in (student, teacher):
            heads = getattr(detector, "roi_heads", None)
            if not (isinstance(heads, StandardROIHeads) and isinstance(detector.backbone, FPN)):
                raise InputError(f"expected an R-CNN with FPN, got {type(heads or detector).__name__}; leave it out")
            if not isinstance(heads.box_predictor, FastRCNNOutputLayers):
                raise InputError(f"expected one box head, got {type(heads.box_predictor).__name__}; leave it out")
        scores = [detector.roi_heads.box_predictor.cls_score for detector in (student, teacher)]
        classes, teacher_classes = (layer.out_features - 1 for layer in scores)
        if classes != teacher_classes:
            raise InputError(
                f"expected a teacher of {classes} classes, got {teacher_classes}; "
                "use the dense detector of the same data"
            )
        self.outputs: dict[str, Any] = {}

    def install(self) -> None:
        """Let the student return the losses too while it trains, by forward hooks."""
        heads = self.student.roi_heads
        for name, module in (
            ("features", self.student.backbone),
            ("rpn", self.student.proposal_generator.rpn_head),
            ("box", heads.box_predictor),
        ):
            module.register_forward_hook(self._keep_output(name))
        heads.box_pooler.register_forward_hook(self._keep_regions)
        self.student.register_forward_hook(self._add_losses)

    def _keep_output(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            self.outputs[name] = output

        return hook

    def _keep_regions(self, _: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
        self.outputs["regions"] = inputs[1]

    def _add_losses(self, student: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return output | self.losses(inputs[0]) if student.training else output

    def losses(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Losses by name for the images that the student has just seen."""
        teacher, outputs, weights, losses = self.teacher, self.outputs, self.weights, {}
        with torch.no_grad():
            maps = teacher.backbone(teacher.preprocess_image(inputs).tensor)
        if weights.features:
            levels = [feature_distance(outputs["features"][name], maps[name]) for name in maps]
            losses["loss_distill_features"] = weights.features * torch.stack(levels).mean()
        if weights.rpn:
            with torch.no_grad():
                objectness = teacher.proposal_generator.rpn_head(
                    [maps[name] for name in teacher.proposal_generator.in_features]
                )[0]
            losses["loss_distill_rpn"] = weights.rpn * objectness_divergence(outputs["rpn"][0], objectness)
        if weights.box:
            heads = teacher.roi_heads
            with torch.no_grad():
                pooled = heads.box_pooler([maps[name] for name in heads.box_in_features], outputs["regions"])
                classes = heads.box_predictor(heads.box_head(pooled))[0]
            losses["loss_distill_box"] = weights.box * class_divergence(outputs["box"][0], classes)
        outputs.clear()
        return losses


def objectness_divergence(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Kullback-Leibler divergence of objectness logits of all levels, summed, over the sum of the teacher's
    probabilities.
    """
    logits, target = (torch.cat([level.float().flatten() for level in levels]) for levels in (student, teacher))
    probability = target.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits, probability, reduction="sum")
    entropy = F.binary_cross_entropy_with_logits(target, probability, reduction="sum")
    return (cross - entropy) / probability.sum().clamp_min(1.0)


def class_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of class logits (P, C+1), mean over regions; 0 without any."""
    logits, target = student.float().log_softmax(1), teacher.float().log_softmax(1)
    return F.kl_div(logits, target, log_target=True, reduction="sum") / max(1, len(logits))
