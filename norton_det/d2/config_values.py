"""What each value of a config may be: Detectron2 has a type for each key and asserts the rest where it uses it, some of
it after hours. Here it is one line, before anything starts.

A key without a row in ``RULES`` follows the type of its default: numbers are finite and 0 or more, lists hold what the
default's hold. How values have to agree with one another is in ``config_checks``.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from detectron2.config import CfgNode

from ..utils.errors import InputError

MOST = 10**9  # of any count


@dataclass(frozen=True)
class Rule:
    """What a value has to be: in words, and as a test of it."""

    expected: str
    holds: Callable[[Any], bool]


def whole(low: int = 0, high: int = MOST) -> Rule:
    """A whole number within bounds."""
    bounds = f"of {low} or more" if high == MOST else f"from {low} to {high}"
    return Rule(f"a whole number {bounds}", lambda value: _is(value, Integral) and low <= value <= high)


def real(low: float = 0, high: float = math.inf, above: bool = False) -> Rule:
    """A finite number within bounds; ``above``: more than ``low``."""
    first = f"more than {low:g}" if above else f"{low:g} or more"
    bounds = first if high == math.inf else f"{first}, {high:g} at most"

    def holds(value: Any) -> bool:
        return _is(value, Real) and math.isfinite(value) and low <= value <= high and not (above and value == low)

    return Rule(f"a number, {bounds}", holds)


def one_of(*names: str) -> Rule:
    """One of these words."""
    return Rule(f"one of {', '.join(name or '(empty)' for name in names)}", lambda value: value in names)


def many(rule: Rule, least: int = 0, most: float = math.inf) -> Rule:
    """A list of so many of these."""
    count = f"{least} values" if least == most else f"{least} values or more" if least else "any number of values"

    def holds(value: Any) -> bool:
        return isinstance(value, list | tuple) and least <= len(value) <= most and all(map(rule.holds, value))

    return Rule(f"a list of {count}, each {rule.expected}", holds)


def either(one: Rule, other: Rule) -> Rule:
    """One of two."""
    return Rule(f"{one.expected}, or {other.expected}", lambda value: one.holds(value) or other.holds(value))


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


TEXT = Rule("a text", lambda value: isinstance(value, str))
TRUTH = Rule("True or False", lambda value: isinstance(value, bool))
NONE = Rule("None", lambda value: value is None)
SHARE = real(0, 1)
NORM = one_of("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
BOX_LOSS = one_of("smooth_l1", "giou", "diou", "ciou")
POOLER = one_of("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated")
WEIGHTS = either(many(real(above=True), 4, 4), many(real(above=True), 5, 5))
ANCHORS = either(many(many(real(above=True), 1), 1), many(real(above=True), 1))
LABELS = many(Rule("-1, 0 or 1", lambda value: _is(value, Integral) and -1 <= value <= 1), 1)
THRESHOLDS = many(SHARE, 1)
RANK = either(whole(1), NONE)

RULES = {
    "MODEL.PIXEL_MEAN": many(real(-math.inf), 1),
    "MODEL.PIXEL_STD": many(real(above=True), 1),
    "MODEL.NORTON.NECK_RANK": RANK,
    "MODEL.NORTON.HEAD_RANK": RANK,
    "MODEL.NORTON.BOX_HEAD_RANK": RANK,
    "MODEL.FPN.IN_FEATURES": many(TEXT),
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": real(),
    "MODEL.ANCHOR_GENERATOR.SIZES": ANCHORS,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ANCHORS,
    "MODEL.ANCHOR_GENERATOR.ANGLES": either(many(many(real(-math.inf), 1), 1), many(real(-math.inf), 1)),
    "MODEL.ANCHOR_GENERATOR.OFFSET": Rule("0 to less than 1", lambda value: _is(value, Real) and 0 <= value < 1),
    "MODEL.RPN.BOUNDARY_THRESH": whole(-1),
    "MODEL.RPN.CONV_DIMS": many(Rule("-1 or a width", lambda value: _is(value, Integral) and value and value >= -1), 1),
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": many(WEIGHTS, 1),
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": many(SHARE, 1),
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": many(whole(1)),
    "MODEL.RETINANET.PRIOR_PROB": Rule("more than 0, less than 1", lambda value: _is(value, Real) and 0 < value < 1),
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": real(-1, 1),
    "MODEL.RESNETS.RES5_DILATION": whole(1, 2),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": many(TRUTH, 4, 4),
    "MODEL.BACKBONE.FREEZE_AT": whole(0, 5),
    "INPUT.MIN_SIZE_TRAIN": many(whole(), 1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.RANDOM_FLIP": one_of("horizontal", "vertical", "none"),
    "INPUT.CROP.TYPE": one_of("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": many(real(above=True), 2, 2),
    "INPUT.FORMAT": one_of("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": one_of("polygon", "bitmask"),
    "DATASETS.TRAIN": many(TEXT),
    "DATASETS.TEST": many(TEXT),
    "DATASETS.PROPOSAL_FILES_TRAIN": many(TEXT),
    "DATASETS.PROPOSAL_FILES_TEST": many(TEXT),
    "SOLVER.BASE_LR": real(above=True),
    "SOLVER.WEIGHT_DECAY_BIAS": either(real(), NONE),
    "SOLVER.WEIGHT_DECAY_NORM": either(real(), NONE),
    "SOLVER.BIAS_LR_FACTOR": either(real(), NONE),
    "SOLVER.EMA_DECAY": Rule("0 to less than 1", lambda value: _is(value, Real) and 0 <= value < 1),
    "SOLVER.STEPS": many(real(above=True)),
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": real(above=True),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Rule("more than 0", lambda value: _is(value, Real) and value > 0),
    "SEED": whole(-1, 2**31 - 1),
    "VERSION": whole(1, 2),
    "TEST.DETECTIONS_PER_IMAGE": whole(-1),
    "TEST.KEYPOINT_OKS_SIGMAS": many(real(above=True)),
    "TEST.EXPECTED_RESULTS": many(
        Rule("task, metric, value and tolerance", lambda value: isinstance(value, list | tuple) and len(value) == 4)
    ),
    "TEST.AUG.MIN_SIZES": many(whole(1), 1),
    "GLOBAL.HACK": real(-math.inf),
}
_ENDINGS = {  # of keys that several nodes have
    **dict.fromkeys(("NORM",), NORM),
    **dict.fromkeys(("BBOX_REG_LOSS_TYPE",), BOX_LOSS),
    **dict.fromkeys(("POOLER_TYPE",), POOLER),
    **dict.fromkeys(("BBOX_REG_WEIGHTS",), WEIGHTS),
    **dict.fromkeys(("IOU_LABELS",), LABELS),
    **dict.fromkeys(("IOU_THRESHOLDS",), THRESHOLDS),
    **dict.fromkeys(("IN_FEATURES", "OUT_FEATURES"), many(TEXT, 1)),
    **dict.fromkeys(("POSITIVE_FRACTION", "NMS_THRESH", "NMS_THRESH_TEST", "SCORE_THRESH_TEST"), SHARE),
    **dict.fromkeys(("NUM_FC", "NUM_CONV", "NUM_CONVS", "POOLER_SAMPLING_RATIO"), whole(0, 100)),
    **dict.fromkeys(
        (
            *("PRE_NMS_TOPK_TRAIN", "PRE_NMS_TOPK_TEST", "POST_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TEST"),
            *("TOPK_CANDIDATES_TEST", "BATCH_SIZE_PER_IMAGE", "NUM_CLASSES", "NUM_KEYPOINTS", "POOLER_RESOLUTION"),
            *("FC_DIM", "CONV_DIM", "CONVS_DIM", "OUT_CHANNELS", "NUM_GROUPS", "WIDTH_PER_GROUP", "DEFORM_NUM_GROUPS"),
            *("RES2_OUT_CHANNELS", "STEM_OUT_CHANNELS", "COMMON_STRIDE", "MAX_SIZE_TRAIN", "MAX_SIZE_TEST", "MAX_SIZE"),
            *("MAX_ITER", "IMS_PER_BATCH", "CHECKPOINT_PERIOD", "NUM_DECAYS", "NUM_ITER"),
        ),
        whole(1),
    ),
}


def check_values(cfg: CfgNode, defaults: CfgNode) -> None:
    """Refuse a value that no config can have: of another type, negative, endless, an unknown word, a wrong length.

    Args:
        cfg: of Detectron2; keys that it has besides are passed over.
        defaults: a config with the default of each key.

    Raises:
        InputError: one line with the key, what it may be, what came and the mend.
    """
    for key, default in leaves(defaults):
        value = cfg
        for name in key.split("."):
            value = value.get(name, default) if isinstance(value, CfgNode) else default
        rule = RULES.get(key) or _ENDINGS.get(key.rpartition(".")[2]) or _by_type(default)
        if rule is not None and not rule.holds(value):
            raise InputError(f"{key}: expected {rule.expected}, got {value!r}; {mend(value, rule, default)}")


def leaves(node: CfgNode, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of a config with its value."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value, or the section, of a config by its full key."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def same_value(one: Any, other: Any) -> bool:
    """Whether two values of a config are equal, numbers in them to float32's precision."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_value, one, other))
    numbers = all(isinstance(value, int | float) for value in (one, other))
    return math.isclose(one, other, rel_tol=1e-6) if numbers else bool(one == other)


def _by_type(default: Any) -> Rule | None:
    if isinstance(default, bool):
        return TRUTH
    for kind, rule in ((int, whole()), (float, real()), (str, TEXT)):
        if isinstance(default, kind):
            return rule
    return None


def mend(value: Any, rule: Rule, default: Any) -> str:
    """What to write instead: the nearest word, or the default."""
    names = [name for name in rule.expected.removeprefix("one of ").split(", ") if name]
    if rule.expected.startswith("one of ") and (near := nearest(value, names)):
        return f"did you mean {near}?"
    return f"the default is {default!r}"


def nearest(value: Any, names: Iterable[str]) -> str:
    """The name that a mistyped one is most like; empty where none is."""
    by_lower, word = {name.lower(): name for name in names if name}, str(value).lower()
    within = [name for name in by_lower if word and (word in name or name in word)]
    close = difflib.get_close_matches(word, by_lower, 1, 0.6) or within
    return by_lower[close[0]] if close else ""


def require_name(key: str, value: Any, names: Sequence[Any], hint: str = "") -> None:
    """Refuse a name that is not one of these.

    Raises:
        InputError: with the names, and the nearest.
    """
    if value not in names:
        near = nearest(value, names) if isinstance(value, str) else ""
        text = f"did you mean {near}?" if near else hint or f"set it to {names[0]}"
        raise InputError(f"{key}: expected one of {', '.join(map(str, names))}, got {value!r}; {text}")
