"""The contract of a detection stack: all that the package has to know of Detectron2's and of torchvision's R-CNNs.

``DetectionStack`` says it method by method; ``d2/adapter.py`` and ``tv/adapter.py`` implement it, once each. Nothing
outside of ``d2/`` and ``tv/`` looks at a detector's attributes to tell which stack it is of: ``stack_of`` does, and
loads the implementation when it is first asked for, so that only a stack that is used has to be installed.

Legend: ``N`` images, ``H, W`` their sides, ``P`` regions or boxes, ``C`` channels, ``S`` sides of a pooled region,
``K`` keypoints. Boxes are xyxy in pixels.
"""

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from ..utils.errors import InputError
from .description import NetworkInfo
from .preprocessing import Preprocessing
from .rcnn import FeatureMaps, ImageBatch, RCNNParts, TestSettings

HEADS = ("box", "mask", "keypoint")
STACKS = {"detectron2": "d2.adapter:Detectron2Stack", "torchvision": "tv.adapter:TorchvisionStack"}
"""Where a stack is implemented, by the name of the library that it adapts."""


class DetectionStack(Protocol):
    """What one detection stack does with its Faster, Mask and Keypoint R-CNNs; implementations hold no state.

    ``detector`` is one of this stack throughout. A method that changes it says so.
    """

    name: str
    """A key of ``STACKS``."""
    title: str
    """The stack's name as it is written."""
    first_label: int
    """The label of the first class: 0, or 1 after the background."""

    # Files

    @abstractmethod
    def load_detector(self, weights: str, config: str | None = None, opts: Sequence[str] = ()) -> nn.Module:
        """A detector in eval mode, from a file or fresh; nothing in the file is run.

        What it is, its labels and the sizes of its pictures are taken from the file, as far as it says them.

        Args:
            weights: path of its file; empty for a fresh detector of the config.
            config: path or name of a config, for a stack that has such; what it says comes before the file's word.
            opts: ``KEY VALUE`` pairs for the config.

        Raises:
            InputError: no such file, one that does not fit, or a config where the stack has none.
        """

    def file_fields(self, weights: str) -> dict[str, Any]:
        """What a detector's file says of it beside its network, else what its tensors and origin imply: see
        ``detector_fields``.

        Raises:
            InputError: it is no whole detector of this stack.
        """
        return self.detector_fields(self.load_detector(weights))

    @abstractmethod
    def detector_fields(self, detector: nn.Module, config: Any = None) -> dict[str, Any]:
        """What a file has to say of a detector beside its network, so that ``load_detector`` makes the same of it.

        Args:
            detector: to be written.
            config: of a detector that a stack built from one, where the detector itself does not know it.

        Returns:
            As JSON has them.

        Raises:
            InputError: something that a file cannot hold, or no config where one is needed.
        """

    # The network

    @abstractmethod
    def preprocessing_of(self, detector: nn.Module) -> Preprocessing:
        """Colour order and normalisation of the detector's input."""

    @abstractmethod
    def size_divisor(self, detector: nn.Module) -> int:
        """The number of pixels, 1 or more, to a multiple of which both sides of a batch are padded."""

    @abstractmethod
    def resnet_of(self, detector: nn.Module) -> nn.Module | None:
        """The network below the FPN; ``None`` where there is no FPN."""

    @abstractmethod
    def has_norton_resnet(self, detector: nn.Module) -> bool:
        """Whether the ResNet has this package's names, so that it need not be replaced where it stays as it is."""

    @abstractmethod
    def replace_resnet(self, detector: nn.Module, info: NetworkInfo) -> None:
        """Put a fresh ResNet of this package below the FPN, in place: the same normalisation, the same layers frozen.

        Raises:
            InputError: no FPN, or a normalisation without statistics.
        """

    @abstractmethod
    def network_info(self, detector: nn.Module) -> NetworkInfo:
        """What the ResNet and the factored layers around it are: as the detector says, else by its tensors.

        Raises:
            InputError: it has no ResNet.
        """

    @abstractmethod
    def attach_info(self, detector: nn.Module, info: NetworkInfo) -> None:
        """Note in the detector what its file will have to say of it, where the stack does not read that off it."""

    @abstractmethod
    def num_classes(self, detector: nn.Module) -> int:
        """Of the box head, without the background."""

    @abstractmethod
    def num_keypoints(self, detector: nn.Module) -> int:
        """Of the keypoint head; 0 without one."""

    @abstractmethod
    def heads_of(self, detector: nn.Module) -> tuple[str, ...]:
        """Which of ``HEADS`` the detector has, in this order."""

    # The steps of an inference

    @abstractmethod
    def check_image(self, image: object) -> str:
        """What is wrong with an image as an input of this stack's detectors; empty if nothing is."""

    @abstractmethod
    def noise_image(self, size: tuple[int, int, int]) -> Any:
        """An image of noise (3, H, W) as this stack's detectors take it; the same for every call."""

    @abstractmethod
    def to_input(self, detector: nn.Module) -> Callable[[np.ndarray], Any]:
        """What makes an image as the detector takes it of a picture (H, W, 3), RGB, uint8, as large as in tests."""

    @abstractmethod
    def preprocess(self, detector: nn.Module, images: Sequence[Any]) -> ImageBatch:
        """A batch of images as the detector takes them (see ``check_image``)."""

    @abstractmethod
    def feature_maps(self, detector: nn.Module, pixels: Tensor) -> FeatureMaps:
        """The maps that the backbone with its FPN gives for pixels (N, 3, H, W) of a batch."""

    def image_features(self, detector: nn.Module, images: Sequence[Any]) -> tuple[ImageBatch, FeatureMaps]:
        """The batch of images as the detector takes them, and its feature maps."""
        batch = self.preprocess(detector, images)
        return batch, self.feature_maps(detector, batch.pixels)

    @abstractmethod
    def rpn_outputs(self, detector: nn.Module, features: FeatureMaps) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits (N, A, H, W) and deltas (N, 4A, H, W) of each level, ``A`` anchors of a cell."""

    @abstractmethod
    def propose(self, detector: nn.Module, batch: ImageBatch, features: FeatureMaps) -> Tensor:
        """Proposals (P, 4) of a batch of one image, by falling score."""

    @abstractmethod
    def pooling_of(self, detector: nn.Module, head: str) -> tuple[tuple[str, ...], tuple[int, int]]:
        """Names of the maps that regions of a head are pooled from, and the size (S, S) of what is pooled."""

    @abstractmethod
    def pool(self, detector: nn.Module, head: str, batch: ImageBatch, features: FeatureMaps, boxes: Tensor) -> Tensor:
        """Features (P, C, S, S) of boxes (P, 4) of a batch of one image, for one of ``HEADS``."""

    @abstractmethod
    def head_layers(self, detector: nn.Module, head: str) -> Callable[[Tensor], Any]:
        """The layers of a head before its predictor, as a function of pooled features (P, C, S, S)."""

    @abstractmethod
    def head_outputs(self, detector: nn.Module, head: str, pooled: Tensor) -> list[Tensor]:
        """What a head with its predictor puts out for pooled features (P, C, S, S): of a box head scores and deltas, of
        each stage of a cascade; logits of the others."""

    @abstractmethod
    def detect_boxes(self, detector: nn.Module, batch: ImageBatch, features: FeatureMaps, proposals: Tensor) -> Tensor:
        """Boxes (P, 4) that the box head makes of proposals (P, 4) of a batch of one image, after NMS."""

    # Deployment

    @abstractmethod
    def parts_of(self, detector: nn.Module) -> RCNNParts:
        """The detector taken apart; layers are shared with it.

        Raises:
            InputError: another kind of RPN, anchors, heads or poolers than the graph of the deployment can stand for.
        """

    @abstractmethod
    def test_settings(self, detector: nn.Module) -> TestSettings:
        """Sizes of pictures and number of proposals, as far as the detector itself says; else the stack's defaults.

        Raises:
            InputError: pictures are resized in a way that two sizes cannot say.
        """

    @abstractmethod
    def resize(self, image: Tensor, min_size: int, max_size: int) -> Tensor:
        """An image (3, H, W), float32 in 0..255, as this stack resizes it, bit by bit; a ``min_size`` of 0 leaves it.

        Raises:
            InputError: the short side would vanish.
        """

    @abstractmethod
    def keypoints_from(self, heatmaps: Tensor, boxes: Tensor) -> Tensor:
        """Keypoints (P, K, 3) as x, y in pixels and a score, from logits (P, K, S, S) within boxes (P, 4)."""

    @abstractmethod
    def paste_masks(self, masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
        """Masks (P, H, W), bool, of a picture from probabilities (P, 1, S, S) within boxes (P, 4)."""

    @abstractmethod
    def detect_picture(
        self, detector: nn.Module, picture: np.ndarray, min_size: int, max_size: int
    ) -> dict[str, np.ndarray]:
        """What the detector's own forward finds in a picture (H, W, 3), uint8, in the detector's colour order.

        Returns:
            The fields of ``deploy.Detections``: boxes, scores, labels, and masks or keypoints where there is a head.
        """

    @abstractmethod
    def native_call(self, detector: nn.Module, picture: np.ndarray) -> Callable[[], Any]:
        """What runs a picture (H, W, 3), uint8, RGB, through the detector's own forward, at the picture's size."""

    @abstractmethod
    def native_parts(self, detector: nn.Module) -> dict[str, nn.Module]:
        """The modules that a frame goes through in the detector's own forward: backbone, rpn, roi_heads."""

    @abstractmethod
    def training_call(
        self, detector: nn.Module, images: Tensor, boxes: list[Tensor]
    ) -> Callable[[], Mapping[str, Tensor]]:
        """What computes the losses of images (N, 3, H, W) in 0..1 with boxes (P, 4) of each, all of the first class;
        the detector is in training mode by the time of the call."""


def is_detector(model: object) -> bool:
    """Whether a model is an R-CNN of a known stack; nothing is imported."""
    return _name_of(model) is not None


def stack_of(detector: nn.Module) -> DetectionStack:
    """The stack of a detector.

    Raises:
        InputError: no R-CNN of a known stack.
    """
    name = _name_of(detector)
    if name is None:
        got = type(detector).__name__
        raise InputError(
            f"detector: expected an R-CNN of Detectron2 or torchvision, got {got}; give the detector itself"
        )
    return stack_named(name)


@functools.cache
def stack_named(name: str) -> DetectionStack:
    """The stack of a name in ``STACKS``.

    Raises:
        InputError: an unknown name, or the stack is not installed.
    """
    if name not in STACKS:
        raise InputError(f"stack: expected {' or '.join(STACKS)}, got {name!r}; use one of them")
    module, _, implementation = STACKS[name].partition(":")
    package = __name__.partition(".")[0]
    try:
        return getattr(import_module(f"{package}.{module}"), implementation)()
    except ModuleNotFoundError as error:
        raise InputError(f"expected {error.name} to be installed, found none; run make setup") from None


def _name_of(model: object) -> str | None:
    if not hasattr(model, "roi_heads") or not (hasattr(model, "rpn") or hasattr(model, "proposal_generator")):
        return None
    libraries = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    return next((name for name in STACKS if name in libraries), None)
