"""Detectron2's trainer with norton checkpoints, COCO evaluation with AR, and training that is fast on a CPU."""

import functools
import logging
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, HookBase, defaults, hooks
from detectron2.utils import comm

from ..checkpoint.opened import reading_once
from ..data.dataset_labels import training_labels
from ..data.register import check_datasets
from ..models.labels import set_labels
from ..utils.errors import InputError, first_line
from ..utils.stop import StopOnSignal
from .agreement import follow_weights
from .build import build_detector, check_weights, load_as_it_is, with_weights
from .checkpoint import NortonCheckpointer
from .config_checks import check_model, number_of_classes
from .config_faults import naming_keys
from .datasets import known_labels, sigmas_of
from .distill import Distillation, DistillWeights
from .evaluation import NortonCOCOEvaluator, refusing_non_finite
from .hooks import Average, Guard, Reseed, guarded
from .loader import build_test_loader, build_train_loader, is_stream, set_seed
from .optimizer_state import apply_settings, check_optimizer, settings_of
from .pooling import vectorize_pooling
from .training_checks import check_training

logger = logging.getLogger(__name__)
QUIET = (InputError, FloatingPointError, RuntimeError, ConnectionError, EOFError)  # that ``guarded`` puts into words


class NortonTrainer(DefaultTrainer):
    """Detectron2's trainer; its checkpoints carry the spec, and evaluation reports AP and AR.

    Resumed, it goes on as if it had not been interrupted: images and random numbers follow from the seed (see
    ``loader``). The learning rate is scaled to the batch (SOLVER.REFERENCE_IMS_PER_BATCH), weights are averaged
    (SOLVER.EMA_DECAY), and a dense detector is learned from (SOLVER.DISTILL), where the config says so. On a CPU,
    SOLVER.AMP.ENABLED trains in bfloat16, the backbone is in channels_last, regions are pooled on all cores, and
    several processes work together too.
    """

    @reading_once()
    def __init__(self, cfg: CfgNode) -> None:
        cfg = follow_weights(cfg)
        check_model(cfg)
        check_weights(cfg)
        check_training(cfg, type(self))
        self.stop, self.precision = StopOnSignal(), ExitStack()
        trainer_cfg = scale_learning_rate(cfg).clone()
        trainer_cfg.defrost()
        self.seed_is_given = trainer_cfg.SEED >= 0
        if not self.seed_is_given:
            trainer_cfg.SEED = comm.shared_random_seed()
        self.seed = trainer_cfg.SEED
        on_cpu = cfg.MODEL.DEVICE == "cpu"
        trainer_cfg.SOLVER.AMP.ENABLED = cfg.SOLVER.AMP.ENABLED and not on_cpu  # Detectron2's own is for CUDA alone
        trainer_cfg.freeze()
        with _parallel_on(trainer_cfg.MODEL.DEVICE), naming_keys(RuntimeError):
            super().__init__(trainer_cfg)
        if on_cpu:
            # the backbone alone: Detectron2's heads use view
            self.detector.backbone.to(memory_format=torch.channels_last)
        if cfg.SOLVER.DISTILL.WEIGHTS:
            distillation_of(cfg, self.detector).install()
        if on_cpu and cfg.SOLVER.AMP.ENABLED:
            train_in_bfloat16(self.detector, self.precision)

    @property
    def detector(self) -> torch.nn.Module:
        """The model without DistributedDataParallel around it."""
        model: torch.nn.Module = self.model
        return getattr(model, "module", model)

    def build_hooks(self) -> list[HookBase]:
        # called at the end of DefaultTrainer.__init__; the hooks take the checkpointer from here
        self.checkpointer = NortonCheckpointer(
            self._trainer.model,
            self.cfg.OUTPUT_DIR,
            partial=self.cfg.MODEL.PARTIAL_WEIGHTS,
            trainer=weakref.proxy(self),
        )
        all_hooks = [Reseed(), *super().build_hooks()]
        before = next((i for i, hook in enumerate(all_hooks) if isinstance(hook, hooks.EvalHook)), len(all_hooks))
        images = len(self.data_loader.dataset) if is_stream(self.data_loader) else 0
        self.guard = Guard(self.detector, self.stop, images)
        all_hooks.insert(before, self.guard)
        if not self.cfg.SOLVER.EMA_DECAY:
            return all_hooks
        average = Average(self.detector, self.cfg.SOLVER.EMA_DECAY, self.cfg.OUTPUT_DIR)

        def test() -> Any:
            self._last_eval_results = self.test(self.cfg, average.model)
            return self._last_eval_results

        evaluation = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, test)
        reseed, *others = (evaluation if isinstance(hook, hooks.EvalHook) else hook for hook in all_hooks)
        return [reseed, average, *others]  # averaged before it is saved and tested

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's; batches that a run to resume has seen are passed over."""
        super().resume_or_load(resume)
        if is_stream(self.data_loader):
            self.data_loader.batch_sampler.start = self.start_iter
        elif self.start_iter:
            logger.warning("The loader is not of norton_det.d2.loader: the run goes on with other images than it had")

    def train(self) -> Any:
        """As Detectron2's; what ends it early is one line, and its last whole state is kept (see ``hooks.Guard``).

        Raises:
            Interrupted: by SIGINT or SIGTERM.
            InputError: bad data, a loss that is not finite, a process that reads images was killed.
        """
        log = logging.getLogger("detectron2.engine.train_loop")

        def is_worth_telling(record: logging.LogRecord) -> bool:
            return not (record.exc_info and isinstance(record.exc_info[1], QUIET))

        log.addFilter(is_worth_telling)
        try:
            return guarded(super().train, self.guard)
        finally:
            log.removeFilter(is_worth_telling)
            self.precision.close()

    def run_step(self) -> None:
        with naming_keys() if self.iter == self.start_iter else nullcontext():
            super().run_step()

    def after_train(self) -> None:
        if self.iter >= self.max_iter:
            super().after_train()
            return
        for hook in self._hooks:  # ended early: nothing is evaluated
            if not isinstance(hook, hooks.EvalHook):
                hook.after_train()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As Detectron2's; the rate, its schedule, momentum and decay are those of the config (``apply_settings``)."""
        optimizer = self._trainer.optimizer
        settings = settings_of(optimizer)
        try:
            super().load_state_dict(state_dict)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"state of a training: expected that of this network, got another ({first_line(error)}); resume with "
                "the same config"
            ) from None
        check_optimizer(optimizer)
        apply_settings(optimizer, self.scheduler, settings)
        seed = state_dict.get("seed", self.seed)
        if self.seed_is_given and seed != self.seed:
            logger.warning("SEED %d is not used: the run goes on with %d of its checkpoint", self.seed, seed)
        self.seed = seed
        if is_stream(self.data_loader):
            set_seed(self.data_loader, self.seed)

    def last_results(self) -> dict[str, Any]:
        """Metrics of the evaluation at the end of training; empty without one."""
        return getattr(self, "_last_eval_results", {})

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> Any:
        """As Detectron2's; classes of the model and of each data set meet by name, as far as names are known, and
        predictions that are not finite are refused."""
        check_datasets(name for name in cfg.DATASETS.TEST if name not in DatasetCatalog)
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
            labels = known_labels(cfg, model)
            for evaluator in evaluators:
                if isinstance(evaluator, NortonCOCOEvaluator):
                    for note in evaluator.match(labels, number_of_classes(cfg)[1]):
                        logger.warning("%s", note)
        with refusing_non_finite(model):
            return super().test(cfg, model, evaluators)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> NortonCOCOEvaluator:
        return NortonCOCOEvaluator(
            dataset_name,
            output_dir=str(Path(cfg.OUTPUT_DIR) / "inference"),
            kpt_oks_sigmas=sigmas_of(cfg, dataset_name),
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model = vectorize_pooling(build_detector(cfg))
        labels = training_labels(cfg.DATASETS.TRAIN)
        if len(labels.classes) == number_of_classes(cfg)[1]:
            set_labels(model, labels)
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in model.parameters())
        logger.info("Model: %.2f M parameters, %.2f M of them trained", total / 1e6, trainable / 1e6)
        return model


def scale_learning_rate(cfg: CfgNode) -> CfgNode:
    """A config whose SOLVER.BASE_LR is that of SOLVER.REFERENCE_IMS_PER_BATCH scaled to its own batches."""
    reference, size, rate = cfg.SOLVER.REFERENCE_IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR
    if reference < 0:
        raise InputError(f"SOLVER.REFERENCE_IMS_PER_BATCH: expected 0 or more images, got {reference}; use 0 for none")
    if reference in (0, size):
        logger.info("Learning rate: %g for batches of %d images", rate, size)
        return cfg
    scaled = cfg.clone()
    scaled.defrost()
    scaled.SOLVER.BASE_LR = rate * size / reference
    scaled.SOLVER.REFERENCE_IMS_PER_BATCH = size
    scaled.freeze()
    logger.info(
        "Learning rate: %g for batches of %d images, scaled from %g for %d (SOLVER.REFERENCE_IMS_PER_BATCH)",
        scaled.SOLVER.BASE_LR,
        size,
        rate,
        reference,
    )
    return scaled


def distillation_of(cfg: CfgNode, student: torch.nn.Module) -> Distillation:
    """The losses of SOLVER.DISTILL, with the detector of its weights as teacher."""
    node = cfg.SOLVER.DISTILL
    try:
        teacher = vectorize_pooling(load_as_it_is(with_weights(cfg, node.WEIGHTS)))
        return Distillation(student, teacher, DistillWeights(node.FEATURES, node.RPN, node.BOX))
    except InputError as error:
        raise InputError(f"SOLVER.DISTILL.WEIGHTS: {error}") from None


@contextmanager
def _parallel_on(device: str) -> Iterator[None]:
    """Let Detectron2 make DistributedDataParallel for a CPU: it would ask for a GPU's number there."""
    create = defaults.create_ddp_model
    if device == "cpu":
        defaults.create_ddp_model = functools.partial(create, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = create


def train_in_bfloat16(model: torch.nn.Module, contexts: ExitStack) -> None:
    """Have a model in training run in bfloat16 on the CPU, with the forward hooks that it has by now, under autocast.

    Args:
        model: gets hooks that enter autocast before its forward and leave it afterwards.
        contexts: what was entered; to be closed by the caller where a signal has cut a forward off.
    """

    def enter(module: torch.nn.Module, _: Any) -> None:
        if module.training:
            contexts.enter_context(torch.autocast("cpu", torch.bfloat16))

    def leave(*_: Any) -> None:
        contexts.close()

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)
