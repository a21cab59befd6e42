"""Objects that trainings save beside the tensors, such as their options, by the names of their classes.

None of them is imported or made: ``Ignored`` stands for those whose content does not matter, a plain dict for those
that are dicts. Only names in these lists are let through; a file that asks for another is refused.
"""

from collections import OrderedDict
from typing import Any

from .safe_pickle import Ignored

_IGNORED = {
    "pathlib": ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "datetime": ("datetime", "date", "timedelta"),
    "types": ("SimpleNamespace",),
    "typing": ("Any",),
    "__builtin__": ("dict", "list", "tuple", "str", "int", "float", "bool"),
    "builtins": ("dict", "list", "tuple", "str", "int", "float", "bool"),
    "mmengine.logging.history_buffer": ("HistoryBuffer",),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.nodes": ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "PathNode"),
}
_DICTS = {
    "collections": ("defaultdict",),
    "addict.addict": ("Dict",),
    "easydict": ("EasyDict",),
    "yacs.config": ("CfgNode",),
    "fvcore.common.config": ("CfgNode",),
    "detectron2.config.config": ("CfgNode",),
    "mmcv.utils.config": ("ConfigDict",),
    "mmengine.config.config": ("ConfigDict",),
    "pytorch_lightning.utilities.parsing": ("AttributeDict",),
    "lightning.pytorch.utilities.parsing": ("AttributeDict",),
    "lightning_fabric.utilities.data": ("AttributeDict",),
    "lightning.fabric.utilities.data": ("AttributeDict",),
}


class _AsDict:
    """Stand-in for a class of dicts: what is made of it is one that may be filled."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


BYSTANDERS: list[tuple[Any, str]] = [
    (stand_in, f"{module}.{name}")
    for stand_in, table in ((Ignored, _IGNORED), (_AsDict, _DICTS))
    for module, names in table.items()
    for name in names
]
"""For ``torch.serialization.safe_globals``."""
