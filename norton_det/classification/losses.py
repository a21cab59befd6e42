"""The losses of a classifier's fine-tuning: labels, and the dense network as a teacher.

The teacher gives its logits (Hinton et al., 2015) and, at the end of every stage, its features where the channels are
the same and their spatial attention where channels were pruned (Zagoruyko and Komodakis, ICLR 2017).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.resnet import NortonResNet
from .recipe import Recipe


def losses(
    recipe: Recipe,
    teacher: NortonResNet | None,
    logits: Tensor,
    features: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
) -> dict[str, Tensor]:
    """The terms of the loss by name, each times its weight; that of the labels is 0 where no image could be read.

    Args:
        recipe: weights, label smoothing and temperature.
        teacher: dense network; without one there are labels alone.
        logits: (N, classes) in float32.
        features: of each stage by name, (N, C, H, W).
        images: (N, 3, H, W), for the teacher.
        labels: (N,); -1 does not count.
    """
    smoothing = recipe.label_smoothing
    entropy = F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    terms = {"labels": (1 - recipe.distill) * entropy / (labels >= 0).sum().clamp_min(1)}
    if teacher is None or not (recipe.distill or recipe.features):
        return terms
    with torch.no_grad():
        teacher_features = teacher.forward_features(images)
        teacher_logits = teacher.classify(teacher_features["res5"]).float()
    if recipe.distill:
        student, target = (F.log_softmax(values / recipe.temperature, 1) for values in (logits, teacher_logits))
        divergence = F.kl_div(student, target, log_target=True, reduction="batchmean")
        terms["logits"] = recipe.distill * recipe.temperature**2 * divergence
    if recipe.features:
        stages = [name for name in features if name != "stem"]
        distances = [feature_distance(features[name], teacher_features[name]) for name in stages]
        terms["features"] = recipe.features * torch.stack(distances).mean()
    return terms


class WithFeatures(nn.Module):
    """Logits and stage features in one forward, so that gradients of both are synchronised."""

    def __init__(self, model: NortonResNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.model.forward_features(images)
        return self.model.classify(features["res5"]), features


def feature_distance(features: Tensor, target: Tensor) -> Tensor:
    """Distance of feature maps (N, C, H, W) from the teacher's (N, C', H, W), a scalar of order 1.

    With equal channels it is the squared error relative to the teacher's energy; else that of the attention maps, the
    mean square over channels, each scaled to norm 1.
    """
    features, target = features.float(), target.float()
    if features.shape == target.shape:
        return (features - target).square().sum() / target.square().sum().clamp_min(1e-12)
    maps = [F.normalize(values.square().mean(1).flatten(1), dim=1) for values in (features, target)]
    return (maps[0] - maps[1]).square().sum(1).mean()
