"""A trained or fresh detector of either stack from what a user names: a config, a file of weights, or both."""

import contextlib
from typing import Any

from torch import nn

from ..errors import InputError


def load_detector(
    weights: str = "", config: str | None = None, opts: list[str] | tuple[str, ...] = ()
) -> tuple[nn.Module, dict[str, Any]]:
    """A detector in eval mode, and what it does not know of itself.

    Args:
        weights: its file; empty for a fresh detector of ``config``.
        config: of a Detectron2 detector (a path, or a name in configs/); torchvision's need none.
        opts: ``KEY VALUE`` pairs for the config.

    Returns:
        The detector, and ``min_size``, ``max_size`` and ``classes`` as the config has them (empty for torchvision).

    Raises:
        InputError: neither, no such file, or one that does not fit.
    """
    if config is None:
        if opts:
            raise InputError(f"options: expected none without --config, got {opts[0]}; name the config")
        if not weights:
            raise InputError("expected a detector; give --config FILE, --weights FILE, or both")
        from ..tv.surgery import load_torchvision_detector

        return load_torchvision_detector(weights), {}
    from detectron2.data import MetadataCatalog

    from ..d2.engine import build_detector, load_config
    from ..d2.engine import load_detector as load_trained
    from ..data.register import check_datasets

    cfg = load_config(config, [*opts, "MODEL.WEIGHTS", weights])
    detector = load_trained(cfg) if weights else build_detector(cfg).eval()
    with contextlib.suppress(InputError):  # data that are not here: the names are not known then
        check_datasets(cfg.DATASETS.TEST)
    names = getattr(MetadataCatalog.get(cfg.DATASETS.TEST[0]), "thing_classes", ()) if cfg.DATASETS.TEST else ()
    known = len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    sizes = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
    return detector, sizes | ({"classes": tuple(names)} if known else {})
