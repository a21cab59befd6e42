"""The zoo's table: the paper's levels and the dense baselines, of the ResNet-50 classifier and of each R-CNN; and the
same levels of other ResNets, of which nothing is published.

Published: V. T. Pham, Y. Zniyed, T. P. Nguyen, IEEE TNNLS 36(3), 2025, doi 10.1109/TNNLS.2024.3370294; what is not in
its tables is ``None``. Measured: docs/results.md of this project, on other data sets than the published figures, so the
two must not be compared. Counted: ``count_complexity`` at 224x224 or, for detectors, 800x800 with 1000 proposals; as
published, mask heads are left out and keypoint heads count one detection.
"""

from dataclasses import dataclass
from typing import Any

LEVELS = ("dense", "norton-43", "norton-50", "norton-64", "norton-77", "norton-78")
NETWORKS = ("resnet50", "faster_rcnn", "mask_rcnn", "keypoint_rcnn")
OTHERS = ("resnet18", "resnet34", "resnet101", "resnet152")
ON_OTHERS = ("faster_rcnn_resnet18", "faster_rcnn_resnet34", "faster_rcnn_resnet101")  # dense and norton-78
DETECTIONS = {"resnet50": 0, "faster_rcnn": 0, "mask_rcnn": 0, "keypoint_rcnn": 1}  # that the published MACs hold


@dataclass(frozen=True)
class Weights:
    """A published file.

    Attributes:
        url: of the file.
        owner: who publishes it.
        sha256: hexadecimal digits, all 64 or as many of the first as are known; empty: unknown.
        md5: the same of its MD5, where the owner gives that; it tells damage, not forgery.
    """

    url: str
    owner: str
    sha256: str = ""
    md5: str = ""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
        level: dense, or a preset.
        network: a ResNet, or the R-CNN on ResNet-50 or on the one that it names.
        origin: empty, or detectron2 for Detectron2's own baselines (BGR, stride in the 1x1, 80 classes).
        config: file in ``configs/``; empty where there is none.
        macs, params: as counted here.
        published_macs, published_params: in the paper, rounded as there.
        published: metric -> value in the paper, in %; AP is COCO's. Of Detectron2's baselines: in its model zoo.
        measured: what docs/results.md has, with data set and training.
        weights: a file of trained weights; ``None``: nobody publishes one of a known name.
        page: where else weights may be found.
    """

    level: str
    network: str
    config: str
    macs: int
    params: int
    published_macs: float | None = None
    published_params: float | None = None
    published: tuple[tuple[str, float], ...] = ()
    measured: tuple[str, ...] = ()
    weights: Weights | None = None
    page: str = ""
    origin: str = ""

    @property
    def name(self) -> str:
        return f"{self.level}{f'-{self.origin}' if self.origin else ''}/{self.network}"


RELEASE = "https://github.com/pvti/NORTON/releases/tag/v0.1.0"
_TORCH = "https://download.pytorch.org/models/"
_D2 = "https://dl.fbaipublicfiles.com/detectron2/"
_PASCAL = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")
_METRICS = {
    "resnet50": ("Top-1", "Top-5"),
    "faster_rcnn": _PASCAL,
    "mask_rcnn": _PASCAL,
    "keypoint_rcnn": ("AP", "AP50", "AP75", "AR", "AR50", "AR75"),
}
# (network, level) -> MACs and parameters as counted
# fmt: off
_COUNTED: dict[tuple[str, str], tuple[int, int]] = {
    ("resnet50", "dense"): (4_089_184_256, 25_557_032),
    ("resnet50", "norton-43"): (2_324_774_077, 14_506_078),
    ("resnet50", "norton-50"): (2_082_559_825, 13_505_980),
    ("resnet50", "norton-64"): (1_473_518_000, 10_525_342),
    ("resnet50", "norton-77"): (962_849_947, 7_960_930),
    ("resnet50", "norton-78"): (899_619_808, 5_885_736),
    ("faster_rcnn", "dense"): (134_379_721_216, 41_808_406),
    ("faster_rcnn", "norton-43"): (111_551_929_341, 30_725_196),
    ("faster_rcnn", "norton-50"): (108_462_461_841, 29_725_098),
    ("faster_rcnn", "norton-64"): (99_727_031_216, 26_647_948),
    ("faster_rcnn", "norton-77"): (92_428_768_091, 24_005_456),
    ("faster_rcnn", "norton-78"): (93_034_741_216, 22_012_182),
    ("mask_rcnn", "dense"): (134_379_721_216, 44_454_513),
    ("mask_rcnn", "norton-43"): (111_551_929_341, 33_371_303),
    ("mask_rcnn", "norton-50"): (108_462_461_841, 32_371_205),
    ("mask_rcnn", "norton-64"): (99_727_031_216, 29_294_055),
    ("mask_rcnn", "norton-77"): (92_428_768_091, 26_651_563),
    ("mask_rcnn", "norton-78"): (93_034_741_216, 24_658_289),
    ("keypoint_rcnn", "dense"): (137_419_502_080, 59_190_378),
    ("keypoint_rcnn", "norton-43"): (114_591_710_205, 48_107_168),
    ("keypoint_rcnn", "norton-50"): (111_502_242_705, 47_107_070),
    ("keypoint_rcnn", "norton-64"): (102_766_812_080, 44_029_920),
    ("keypoint_rcnn", "norton-77"): (95_468_548_955, 41_387_428),
    ("keypoint_rcnn", "norton-78"): (96_074_522_080, 39_394_154),
    ("resnet18", "dense"): (1_814_073_344, 11_689_512),
    ("resnet18", "norton-43"): (1_031_913_980, 5_260_504),
    ("resnet18", "norton-50"): (899_178_468, 4_797_300),
    ("resnet18", "norton-64"): (654_841_144, 3_573_365),
    ("resnet18", "norton-77"): (419_325_780, 2_415_025),
    ("resnet18", "norton-78"): (404_566_784, 2_355_096),
    ("resnet34", "dense"): (3_663_761_408, 21_797_672),
    ("resnet34", "norton-43"): (2_083_531_743, 11_148_914),
    ("resnet34", "norton-50"): (1_848_335_124, 9_681_689),
    ("resnet34", "norton-64"): (1_314_220_081, 7_041_655),
    ("resnet34", "norton-77"): (835_637_914, 4_592_354),
    ("resnet34", "norton-78"): (803_971_958, 4_464_726),
    ("resnet101", "dense"): (7_801_405_440, 44_549_160),
    ("resnet101", "norton-43"): (4_447_964_461, 25_220_727),
    ("resnet101", "norton-50"): (3_907_757_640, 22_629_281),
    ("resnet101", "norton-64"): (2_811_998_374, 17_348_497),
    ("resnet101", "norton-77"): (1_790_068_339, 12_228_757),
    ("resnet101", "norton-78"): (1_721_521_798, 11_875_213),
    ("resnet152", "dense"): (11_513_626_624, 60_192_808),
    ("resnet152", "norton-43"): (6_511_455_744, 33_951_912),
    ("resnet152", "norton-50"): (5_773_727_963, 30_592_819),
    ("resnet152", "norton-64"): (4_142_146_249, 23_066_128),
    ("resnet152", "norton-77"): (2_664_831_823, 16_047_745),
    ("resnet152", "norton-78"): (2_513_016_789, 15_319_501),
    ("faster_rcnn_resnet18", "dense"): (101_693_641_216, 28_739_606),
    ("faster_rcnn_resnet18", "norton-78"): (83_428_521_216, 19_376_518),
    ("faster_rcnn_resnet34", "dense"): (125_286_601_216, 38_847_766),
    ("faster_rcnn_resnet34", "norton-78"): (88_631_134_966, 21_497_156),
    ("faster_rcnn_resnet101", "dense"): (181_729_481_216, 60_800_534),
    ("faster_rcnn_resnet101", "norton-78"): (102_262_504_966, 27_934_843),
}
# (network, level) -> G MACs, M parameters, and the columns of _METRICS in %, all of the paper
_PUBLISHED: dict[tuple[str, str], tuple[Any, ...]] = {
    ("resnet50", "dense"): (4.09, 25.50, 76.15, 92.87),
    ("resnet50", "norton-43"): (2.32, 14.51, 76.91, 93.57),
    ("resnet50", "norton-50"): (2.08, 13.51, 76.58, 93.43),
    ("resnet50", "norton-64"): (1.49, 10.52, 75.95, 92.91),
    ("resnet50", "norton-77"): (0.96, 7.96, 74.00, 92.00),
    ("resnet50", "norton-78"): (0.92, 5.88, 73.65, 91.64),
    ("faster_rcnn", "dense"): (134.85, 41.81, 37, 58, 39, 31, 48, 51),
    ("faster_rcnn", "norton-43"): (111.47, 30.72, 37, 58, 39, 31, 49, 51),
    ("faster_rcnn", "norton-78"): (93.39, 22.01, 32, 52, 34, 29, 46, 48),
    ("mask_rcnn", "dense"): (134.85, 44.46, 34, 55, 36, 29, 45, 47),
    ("mask_rcnn", "norton-43"): (111.47, 33.36, 35, 57, 37, 30, 46, 48),
    ("mask_rcnn", "norton-78"): (93.39, 24.65, 32, 52, 33, 28, 44, 46),
    ("keypoint_rcnn", "dense"): (137.42, 59.19, 65, 86, 71, 71, 90, 77),
    ("keypoint_rcnn", "norton-43"): (114.04, 48.10, 65, 86, 71, 71, 91, 77),
    ("keypoint_rcnn", "norton-78"): (95.97, 39.39, 63, 85, 69, 69, 90, 75),
}
_IMAGENETTE = "% of the dense Top-1 kept on ten ImageNet classes (Imagenette), 512 unlabelled images, no training"
_BCCD, _SHAPES = "on BCCD (blood cells), 520 iterations", "on generated shapes"
_MEASURED: dict[tuple[str, str], tuple[str, ...]] = {
    ("resnet50", "norton-43"): (f"99.5 {_IMAGENETTE}",),
    ("resnet50", "norton-50"): (f"99.8 {_IMAGENETTE}",),
    ("resnet50", "norton-64"): (f"99.5 {_IMAGENETTE}",),
    ("resnet50", "norton-77"): (f"99.2 {_IMAGENETTE}",),
    ("resnet50", "norton-78"): (f"99.2 {_IMAGENETTE}",),
    ("faster_rcnn", "dense"): (f"56.0 AP {_BCCD}, two seeds",),
    ("faster_rcnn", "norton-43"): ("54.8 AP on BCCD (blood cells), fitted to a dense detector of 53.5 AP, fine-tuned",),
    ("faster_rcnn", "norton-78"): (f"54.1 AP {_BCCD}, one seed",),
    ("mask_rcnn", "dense"): (f"43.6 box AP, 32.8 mask AP {_SHAPES}, 250 iterations",),
    ("mask_rcnn", "norton-78"): (
        f"50.6 box AP, 35.2 mask AP {_SHAPES}, 450 iterations, which take no longer; neck and heads compressed too",
    ),
    ("keypoint_rcnn", "dense"): (f"48.3 box AP, 46.3 keypoint AP {_SHAPES}, 150 iterations",),
    ("keypoint_rcnn", "norton-78"): (
        f"57.7 box AP, 60.7 keypoint AP {_SHAPES}, 450 iterations, which take no longer; neck and heads compressed too",
    ),
}
# fmt: on
_WEIGHTS = {  # of dense networks; torchvision's names hold the first digits of the SHA-256
    "resnet50": Weights(f"{_TORCH}resnet50-0676ba61.pth", "torchvision", "0676ba61"),
    "resnet18": Weights(f"{_TORCH}resnet18-f37072fd.pth", "torchvision", "f37072fd"),
    "resnet34": Weights(f"{_TORCH}resnet34-b627a593.pth", "torchvision", "b627a593"),
    "resnet101": Weights(f"{_TORCH}resnet101-63fe2227.pth", "torchvision", "63fe2227"),
    "resnet152": Weights(f"{_TORCH}resnet152-394f9c45.pth", "torchvision", "394f9c45"),
    "faster_rcnn": Weights(f"{_TORCH}fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "torchvision", "258fb6c6"),
    "mask_rcnn": Weights(f"{_TORCH}maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "torchvision", "bf2d0c1e"),
    "keypoint_rcnn": Weights(f"{_TORCH}keypointrcnn_resnet50_fpn_coco-fc266e95.pth", "torchvision", "fc266e95"),
}


def _entry(level: str, network: str) -> Entry:
    key = network, level
    macs, params, *published = _PUBLISHED.get(key, (None, None))
    classifier = network.startswith("resnet")
    config = "" if classifier else f"{'norton' if level == 'norton-78' else level}_{network}.yaml"
    return Entry(
        level,
        network,
        config,
        *_COUNTED[key],
        macs,
        params,
        tuple(zip(_METRICS.get(network, ()), published, strict=False)),
        measured=_MEASURED.get(key, ()),
        weights=_WEIGHTS.get(network) if level == "dense" else None,
        page=RELEASE if network == "resnet50" and level != "dense" else "",
    )


def _detectron2(network: str, path: str, macs: int, params: int, ap: dict[str, float]) -> Entry:
    """A baseline of Detectron2's model zoo (3x schedule): file names hold the first digits of the MD5, and the figures
    of AP are Detectron2's own."""
    weights = Weights(f"{_D2}{path}", "Detectron2", md5=path.rpartition("_")[2].removesuffix(".pkl"))
    results = tuple(ap.items())
    return Entry("dense", network, "", macs, params, published=results, weights=weights, origin="detectron2")


ENTRIES: tuple[Entry, ...] = (
    *(_entry(level, network) for network in NETWORKS for level in LEVELS),
    *(_entry(level, network) for network in OTHERS for level in LEVELS),
    *(_entry(level, network) for network in ON_OTHERS for level in ("dense", "norton-78")),
    _detectron2(
        "faster_rcnn",
        "COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl",
        131_375_305_216,
        41_753_056,
        {"AP": 40.2},
    ),
    _detectron2(
        "mask_rcnn",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl",
        131_375_305_216,
        44_396_336,
        {"box AP": 41.0, "AP": 37.2},
    ),
    _detectron2(
        "keypoint_rcnn",
        "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x/137849621/model_final_a6e10b.pkl",
        134_466_286_080,
        59_186_278,
        {"box AP": 55.4, "AP": 65.5},
    ),
)
