"""The work of ``norton-det compress``; ``options/compress.py`` says what it is."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint.load import load_weights
from ..checkpoint.opened import open_weights, reading_once
from ..checkpoint.save import save_checkpoint, save_detector, save_tensors
from ..checkpoint.sources import local
from ..compression.calibration import Calibration
from ..compression.detector import compress_detector, resnet_spec
from ..compression.detector_report import DetectorReport
from ..compression.report import CompressionReport
from ..compression.resnet import compress, compress_detector_state
from ..compression.search.measured_latency import measure_whole
from ..compression.search.result import SearchResult
from ..compression.search.search import search
from ..compression.search.target import TARGETS, parse_target
from ..data.images import load_images, load_pictures
from ..deploy.loading import load_detector
from ..models.architecture import ARCHITECTURES
from ..models.description import NetworkInfo
from ..models.preprocessing import Preprocessing
from ..models.spec import CompressionSpec
from ..models.stacks import stack_named, stack_of
from ..utils.device import check_device
from ..utils.errors import InputError
from ..utils.files import require_writable, write_text
from .options.compress import IMAGES, PICTURES
from .parser import tell_skipped

AROUND = ("neck_rank", "head_rank", "box_head_rank")


def check_flags(args: argparse.Namespace) -> None:
    """Refuse what does not go together, and a level that no ResNet has."""
    ranks = [name for name in ("preset", "rank", "ratios", *AROUND) if getattr(args, name) is not None]
    targets = [name for name in TARGETS if getattr(args, name) is not None]
    if targets and (ranks or len(targets) > 1):
        flags = [f"--{name.replace('_', '-')}" for name in targets + ranks]
        raise InputError(f"expected one target and no ranks or ratios, got {', '.join(flags)}; drop all but one")
    if args.preset and (args.rank or args.ratios):
        raise InputError(f"expected --preset or --rank and --ratios, got both; drop --preset {args.preset}")
    refused: list[InputError] = []
    for arch in ("resnet50", *ARCHITECTURES):  # what no ResNet can have is refused before its weights are read
        try:
            spec_from(args, arch)
            return
        except InputError as error:
            refused.append(error)
    raise refused[0]  # as of ResNet-50


def spec_from(args: argparse.Namespace, arch: str) -> CompressionSpec | None:
    """The spec that the flags ask for, of a ResNet; ``None`` without any."""
    if args.preset:
        return CompressionSpec.preset(args.preset, arch)
    if args.rank or args.ratios:
        return CompressionSpec.parse(args.rank or 1, args.ratios, arch)
    return None


def target_from(args: argparse.Namespace) -> dict[str, str]:
    """The target that the flags ask for, as ``search`` takes it."""
    targets = {name: getattr(args, name) for name in TARGETS if getattr(args, name) is not None}
    for name, value in targets.items():
        parse_target(value, name.removeprefix("target_"))
    return targets


def size_from(args: argparse.Namespace, side: int) -> tuple[int, int, int]:
    """The shape (3, H, W) of the input that costs are counted for."""
    height, width = args.input_size or (side, side)
    if min(height, width) < 32:
        raise InputError(f"--input-size: expected 32 pixels or more, got {height} {width}; enlarge it")
    return 3, height, width


def read_calibration(args: argparse.Namespace, preprocessing: Preprocessing) -> Calibration | None:
    """The images and switches that the flags ask for; what cannot be read is named."""
    if args.calibrate is None:
        return None
    images, broken, shape = load_images(
        args.calibrate,
        preprocessing,
        count=IMAGES if args.images is None else args.images,
        size=args.image_size,
        resize=args.resize,
        seed=args.seed,
        progress=not args.quiet,
    )
    tell_skipped(broken)
    print(f"{args.calibrate}: {len(images)} images, {shape}")
    return Calibration(
        images,
        batch_norm=not args.no_batch_norm,
        compensate=not (args.no_compensate or args.no_batch_norm),
        decomposition="weight" if args.no_batch_norm else args.decomposition or "output",
        seed=args.seed,
        device=args.device,
    )


def read_pictures(args: argparse.Namespace, convert: Callable[[Any], Any]) -> list[Any] | None:
    """The images that the flags ask for, as a detector takes them; what cannot be read is named."""
    if args.calibrate is None:
        return None
    count = PICTURES if args.images is None else args.images
    pictures, broken = load_pictures(args.calibrate, convert, count=count, seed=args.seed, progress=not args.quiet)
    tell_skipped(broken)
    print(f"{args.calibrate}: {len(pictures)} images, resized as the detector is tested")
    return pictures


def compress_whole(args: argparse.Namespace, target: dict[str, str]) -> None:
    """Compress a whole detector, or write one that is compressed with all that a file says."""
    for name in ("no_compensate", "no_batch_norm", "decomposition", "image_size", "resize"):
        if getattr(args, name):
            flag = name.replace("_", "-")
            raise InputError(f"--{flag}: expected a ResNet alone, got a whole detector; drop --{flag}")
    if "://" in args.weights:
        raise InputError(f"--weights: expected the file of a detector, got {args.weights}; drop the ranks or --config")
    detector = load_detector(args.weights, args.config_file)
    spec = spec_from(args, resnet_spec(detector).arch)
    size, search_result = size_from(args, 800), None
    pictures = read_pictures(args, stack_of(detector).to_input(detector))
    options: dict[str, Any] = {name: getattr(args, name) for name in AROUND}
    if target:
        search_result = run_search(args, detector, target, pictures, size)
        spec, options["layout"] = search_result.spec, search_result.layout
    if pictures is not None:
        pictures = [picture.to(args.device) if isinstance(picture, Tensor) else picture for picture in pictures]
    options |= {"seed": args.seed, "criterion": args.criterion, "progress": not args.quiet, "input_size": size}
    result = compress_detector(detector.to(args.device), spec, calibration=pictures, **options)
    save_detector(args.output, result.model.to("cpu"))
    print(result.report.summary() if args.quiet else result.report.table())
    finish(args, result.report, search_result, (detector.to("cpu"), result.model))
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e6:.1f} MB (whole detector)")


def run_search(
    args: argparse.Namespace, model: Any, target: dict[str, str], images: Any, size: tuple[int, int, int]
) -> SearchResult:
    """Find ranks and ratios, and say so."""
    options: dict[str, Any] = dict(target)
    search_result = search(model, **options, calibration=images, input_size=size, progress=not args.quiet)
    print(search_result.summary() if args.quiet else search_result.table())
    return search_result


def finish(
    args: argparse.Namespace,
    report: CompressionReport | DetectorReport,
    search_result: SearchResult | None,
    models: tuple[Any, Any] | None = None,
) -> None:
    """Measure both networks where a latency was asked for, and write the report."""
    fields = report.to_dict()
    if search_result is not None:
        fields["search"] = search_result.to_dict()
    if search_result is not None and models is not None and search_result.kind == "latency_ms":
        fields["latency_ms"] = measure_whole(*models, search_result.input_size, progress=not args.quiet)
        print(
            "whole call, fused, in turns: dense {dense:.1f} ms, compressed {small:.1f} ms".format(
                **fields["latency_ms"]
            )
        )
    if args.json:
        write_text(args.json, json.dumps(fields, indent=1) + "\n")


@reading_once()
def main(args: argparse.Namespace) -> None:
    if not args.output.endswith(".safetensors"):
        raise InputError(f"--output: expected a name ending in .safetensors, got {args.output}; add the ending")
    check_device(args.device)
    args.weights = str(local(args.weights))
    for path in filter(None, (args.output, args.json)):
        require_writable(path)
    if Path(args.output).exists() and Path(args.weights).exists() and Path(args.output).samefile(args.weights):
        raise InputError(f"--output: expected another file than --weights, got {args.output}; choose another name")
    check_flags(args)
    target = target_from(args)
    around = args.config_file or any(getattr(args, name) is not None for name in AROUND)
    opened = open_weights(args.weights)
    if around or (target and opened.stack):
        compress_whole(args, target)
        return
    loaded = load_weights(opened)
    print(f"{args.weights}: {loaded.source}")
    spec = spec_from(args, loaded.spec.arch)
    requested = spec is not None or bool(target)
    if not loaded.spec.is_dense or not requested:
        if requested:
            raise InputError(f"{args.weights}: expected dense weights, got {loaded.spec}; drop the ranks or the target")
        if loaded.spec.is_dense:
            raise InputError("expected what to compress to; give --preset norton-78, --rank and --ratios, or a target")
        save_checkpoint(args.output, load_detector(args.weights) if opened.stack else loaded.build())
        print(f"{args.output}: converted, {loaded.spec}")
        return
    fields = stack_named(opened.stack).file_fields(args.weights) if opened.stack else None  # it is whole
    size, search_result, models = size_from(args, 224), None, None
    options: dict[str, Any] = {
        "criterion": args.criterion,
        "calibration": read_calibration(args, loaded.preprocessing),
        "seed": args.seed,
        "preprocessing": loaded.preprocessing,
        "stride_in_1x1": loaded.stride_in_1x1,
        "input_size": size,
        "progress": not args.quiet,
    }
    if target:
        dense = loaded.build()
        search_result = run_search(args, dense, target, options["calibration"], size)
        spec = search_result.spec
    assert spec is not None
    if not opened.stack:
        result = compress(loaded.state, spec, **options)
        report = result.report
        save_checkpoint(args.output, result.model)
        models = (dense, result.model) if target else None
    else:
        state, report = compress_detector_state(opened.detector, spec, **options)
        info = NetworkInfo(spec, loaded.preprocessing, 0, loaded.stride_in_1x1)
        save_tensors(args.output, state, info, fields)
    print(report.summary() if args.quiet else report.table())
    finish(args, report, search_result, models)
    whole = " (whole detector)" if opened.stack else " (the backbone alone)" if opened.family else ""
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e6:.1f} MB{whole}")
