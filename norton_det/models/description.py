"""What a network is, apart from the file that may hold it: ranks and ratios, its input, its classes, its strides.

Networks of this package, their files and the detectors around them all say it by one ``NetworkInfo``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.errors import InputError
from .factorize import find_layout
from .keys import split_detector_state
from .preprocessing import TORCHVISION, Preprocessing
from .resnet import NortonResNet
from .spec import CompressionSpec
from .spec_from_state import spec_from_state
from .state import check_finite, check_state, load_state, match_counters

FORMAT_VERSION = 3  # that is written, and the newest that is read
_FIELDS = {"version", "spec", "preprocessing", "num_classes", "stride_in_1x1", "layout"}


@dataclass(frozen=True)
class NetworkInfo:
    """What a ResNet is, alone or in a detector.

    Attributes:
        spec: ranks and ratios.
        preprocessing: colour order and normalisation.
        num_classes: outputs of the classifier; 0 for a backbone.
        stride_in_1x1: whether a stage's stride sits in a 1x1 convolution.
        layout: ranks of a detector's factored layers outside the ResNet, by name (see ``factorize``).
    """

    spec: CompressionSpec
    preprocessing: Preprocessing = TORCHVISION
    num_classes: int = 1000
    stride_in_1x1: bool = False
    layout: dict[str, int] = field(default_factory=dict)

    def build(self) -> NortonResNet:
        """The ResNet with fresh weights."""
        model = NortonResNet(self.spec, self.num_classes, self.stride_in_1x1)
        model.preprocessing = self.preprocessing
        return model

    def expected_state(self) -> dict[str, Tensor]:
        """Names and shapes of the ResNet's tensors; they are on the meta device and take no memory."""
        with torch.device("meta"):
            return self.build().state_dict()

    def build_with(self, state: Mapping[str, Tensor], source: str) -> NortonResNet:
        """The ResNet with these weights, in eval mode; names and shapes are compared before it gets memory.

        Raises:
            InputError: they are of another network; see ``check_state``.
        """
        with torch.device("meta"):
            model = self.build()
        check_state(match_counters(state, model.state_dict()), model.state_dict(), source)
        model.to_empty(device="cpu")
        load_state(model, state, source)
        return model.eval()

    def to_fields(self) -> dict[str, Any]:
        """As JSON has them."""
        fields: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "spec": self.spec.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "num_classes": self.num_classes,
            "stride_in_1x1": self.stride_in_1x1,
        }
        return fields | ({"layout": self.layout} if self.layout else {})

    def to_json(self) -> str:
        """``to_fields`` as text."""
        return json.dumps(self.to_fields())

    @classmethod
    def from_json(cls, text: str) -> "NetworkInfo":
        """Of what ``to_json`` gives.

        Raises:
            InputError: no JSON, or see ``from_fields``.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError also for an integer of thousands of digits
            raise InputError(f"metadata: expected JSON ({error}); write the checkpoint again") from None
        return cls.from_fields(fields)

    @classmethod
    def from_fields(cls, fields: object) -> "NetworkInfo":
        """Of what ``to_fields`` gives.

        Raises:
            InputError: a field is missing, unknown or makes no sense.
        """
        version = fields.get("version") if isinstance(fields, dict) else fields
        if not isinstance(fields, dict) or isinstance(version, bool) or version not in range(1, FORMAT_VERSION + 1):
            raise InputError(f"metadata: version: expected 1 to {FORMAT_VERSION}, got {version!r}; update norton_det")
        if unknown := sorted(set(fields) - _FIELDS):
            raise InputError(f"metadata: unknown field {unknown[0][:40]!r}; update norton_det")
        classes, stride = fields.get("num_classes"), fields.get("stride_in_1x1")
        if isinstance(classes, bool) or not isinstance(classes, int) or not 0 <= classes <= 1_000_000:
            raise InputError(f"metadata: num_classes: expected 0 or more, got {classes!r}; write the checkpoint again")
        if not isinstance(stride, bool):
            raise InputError(f"metadata: stride_in_1x1: expected true or false, got {stride!r}; write it again")
        layout = fields.get("layout", {})
        if not isinstance(layout, dict) or not all(
            type(rank) is int and 1 <= rank <= 65536 for rank in layout.values()
        ):
            raise InputError(f"metadata: layout: expected layer names with ranks, got {layout!r:.80}; write it again")
        return cls(
            CompressionSpec.from_dict(fields.get("spec")),  # type: ignore[arg-type]
            Preprocessing.from_dict(fields.get("preprocessing")),  # type: ignore[arg-type]
            classes,
            stride,
            layout,
        )


def read_network(model: nn.Module | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], NetworkInfo]:
    """A dense ResNet's tensors, float32 on the CPU, and what it is; a state dict is taken for torchvision's.

    Args:
        model: torchvision's ResNet, a ``NortonResNet``, or a state dict with their names; it is left untouched.

    Raises:
        InputError: something else, another network, one that is compressed already, or weights that are not finite.
    """
    if isinstance(model, nn.Module):
        state: Mapping[str, Tensor] = model.state_dict()
        preprocessing = getattr(model, "preprocessing", TORCHVISION)
        stride = has_stride_in_1x1(dict(model.named_modules()).get("layer2.0.conv1"))
    elif isinstance(model, Mapping):
        state, preprocessing, stride = model, TORCHVISION, False
    else:
        raise InputError(f"model: expected a ResNet or its state dict, got {type(model).__name__}; pass nn.Module")
    if any(name.endswith(".pointwise.weight") for name in state):
        raise InputError("model: expected dense weights, got CP factors; compress the dense network it came from")
    clean: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"model: {name}: expected a tensor, got {type(tensor).__name__}; pass model.state_dict()")
        clean[name] = tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.detach().cpu()
    check_finite(clean, "model")
    classes = len(clean["fc.weight"]) if "fc.weight" in clean else 0
    return clean, NetworkInfo(spec_from_state(clean), preprocessing, classes, stride)


def has_stride_in_1x1(first: nn.Module | None) -> bool:
    """Whether a stage with that as the first convolution of its first block has its stride in a 1x1 convolution."""
    return isinstance(first, nn.Conv2d) and first.kernel_size == (1, 1) and first.stride != (1, 1)


def network_of(detector: nn.Module, preprocessing: Preprocessing) -> NetworkInfo:
    """What the ResNet of a detector is, and the factored layers around it, by its tensors and modules.

    Raises:
        InputError: there is no ResNet in it.
    """
    spec = spec_from_state(split_detector_state(detector.state_dict())[1])
    return NetworkInfo(spec, preprocessing, 0, detector_stride_in_1x1(detector), find_layout(detector))


def detector_stride_in_1x1(detector: nn.Module) -> bool:
    """Whether the ResNet of a detector has the strides of its stages in 1x1 convolutions."""
    firsts = (".res3.0.conv1", ".layer2.0.conv1")
    return any(has_stride_in_1x1(module) for name, module in detector.named_modules() if name.endswith(firsts))
