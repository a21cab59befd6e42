"""Detectron2's trainer with norton checkpoints, COCO evaluation with AR, and training that is fast on a CPU."""

import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase

from ..errors import InputError
from .checkpoint import NortonCheckpointer
from .engine import build_detector, check_weights, one_line
from .evaluation import NortonCOCOEvaluator

logger = logging.getLogger(__name__)


class NortonTrainer(DefaultTrainer):
    """Detectron2's trainer; its checkpoints carry the spec, and evaluation reports AP and AR.

    On a CPU, ``SOLVER.AMP.ENABLED`` trains in bfloat16, and the backbone is in channels_last: both are faster.
    """

    def __init__(self, cfg: CfgNode) -> None:
        check_weights(cfg)
        on_cpu = cfg.MODEL.DEVICE == "cpu"
        plain = cfg.clone()
        if on_cpu and cfg.SOLVER.AMP.ENABLED:  # Detectron2's own mixed precision is for CUDA alone
            plain.defrost()
            plain.SOLVER.AMP.ENABLED = False
            plain.freeze()
        super().__init__(plain)
        if on_cpu:
            model = self._trainer.model
            # the backbone alone: Detectron2's heads use view
            getattr(model, "module", model).backbone.to(memory_format=torch.channels_last)
            if cfg.SOLVER.AMP.ENABLED:
                model.forward = _in_bfloat16(model, model.forward)

    def build_hooks(self) -> list[HookBase]:
        # called at the end of DefaultTrainer.__init__; the hooks take the checkpointer from here
        self.checkpointer = NortonCheckpointer(self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        return super().build_hooks()

    def last_results(self) -> dict[str, Any]:
        """Metrics of the evaluation at the end of training; empty without one."""
        return getattr(self, "_last_eval_results", {})

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> NortonCOCOEvaluator:
        return NortonCOCOEvaluator(
            dataset_name,
            output_dir=str(Path(cfg.OUTPUT_DIR) / "inference"),
            kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS or None,
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        try:
            return super().build_train_loader(cfg)
        except AssertionError as error:  # Detectron2's own check for images with objects
            raise InputError(f"DATASETS.TRAIN {cfg.DATASETS.TRAIN}: {one_line(error)} Annotate some images") from None

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model = build_detector(cfg)
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in model.parameters())
        logger.info("Model: %.2f M parameters, %.2f M of them trained", total / 1e6, trainable / 1e6)
        return model


def _in_bfloat16(model: torch.nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward in bfloat16 (autocast) while the model trains."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
            return forward(*args, **kwargs)

    return run
