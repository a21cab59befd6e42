"""The work of ``norton-det grad-cam``; ``options/grad_cam.py`` says what it is."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..checkpoint.load import LoadedWeights, load_weights
from ..classification.grad_cam import agreement, draw_grid, grad_cam, require_library, to_pixels
from ..compression.calibration import Calibration
from ..compression.resnet import compress
from ..data.decode import read_image
from ..data.images import choose_size, load_images, make_transform
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..utils.errors import InputError, naming
from ..utils.files import atomic_path, require_file, require_writable
from .parser import tell_skipped


def candidates(args: argparse.Namespace, loaded: LoadedWeights, dense: NortonResNet) -> dict[str, NortonResNet]:
    """Compressed networks by the text above their column."""
    models = {}
    if args.compressed:
        for path in args.compressed:
            compressed = load_weights(path)
            if compressed.num_classes != loaded.num_classes or compressed.preprocessing != loaded.preprocessing:
                raise InputError(
                    f"{path}: expected a compressed form of {args.weights}, got another network's; leave it out"
                )
            models[compressed.spec.name or Path(path).stem] = compressed.build()
        return models
    specs = [CompressionSpec.preset(name, loaded.spec.arch) for name in args.presets]
    calibration = None
    if args.calibrate:
        shape = {"size": args.image_size, "resize": args.resize}
        images, broken, _ = load_images(args.calibrate, loaded.preprocessing, progress=True, **shape)
        tell_skipped(broken)
        calibration = Calibration(images)
    for spec in specs:
        models[spec.name] = compress(dense, spec, calibration=calibration, progress=True).model
    return models


def main(args: argparse.Namespace) -> None:
    if not args.output.endswith(".png"):
        raise InputError(f"--output: expected a name ending in .png, got {args.output}; add the ending")
    require_writable(args.output)
    paths = [require_file(path, "an image") for path in args.images]
    require_library()
    loaded = load_weights(args.weights)
    if not loaded.spec.is_dense or not loaded.num_classes:
        raise InputError(f"{args.weights}: expected a dense classifier with fc; give the weights before compression")
    sample = None
    if args.folder:
        size = {"size": args.image_size, "resize": args.resize}
        sample, _, _ = load_images(args.folder, loaded.preprocessing, count=args.count, **size)
    shape = choose_size(paths, args.image_size, args.resize)
    transform = make_transform(loaded.preprocessing, shape)
    images = torch.stack([look(path, transform) for path in paths])
    dense = loaded.build()
    models = {"CR 0 %": dense} | {_column(name): model for name, model in candidates(args, loaded, dense).items()}
    classes = predict(dense, images)
    columns = {name: grad_cam(model, images, classes) for name, model in models.items()}
    with atomic_path(args.output) as temporary:
        draw_grid(to_pixels(images, loaded.preprocessing), columns).save(temporary, format="png", optimize=True)
    report = {"images": [str(path) for path in paths], "output": args.output}
    if sample is not None:
        classes = predict(dense, sample)
        dense_maps = grad_cam(dense, sample, classes)
        report["correlation_images"] = len(sample)
        report["correlation"] = {
            name: float(agreement(grad_cam(model, sample, classes), dense_maps).mean())
            for name, model in models.items()
            if model is not dense
        }
    if args.json:
        print(json.dumps(report, indent=1))
        return
    for name, value in report.get("correlation", {}).items():
        print(f"{name}: correlation with the dense maps {value:.3f} (mean of {report['correlation_images']} images)")
    print(args.output)


def look(path: Path, transform: Callable[[np.ndarray], torch.Tensor]) -> torch.Tensor:
    """A picture as the classifier takes it (3, H, W); errors name it."""
    picture = read_image(path)
    with naming(path):
        return transform(picture)


@torch.inference_mode()
def predict(model: NortonResNet, images: torch.Tensor) -> list[int]:
    """The class that is predicted for each image (N, 3, H, W)."""
    return torch.cat([model(batch).argmax(1) for batch in images.split(32)]).tolist()


def _column(name: str) -> str:
    """The text above a column: norton-78 saves 78 % of the MACs."""
    return f"CR {name.removeprefix('norton-')} %" if name.startswith("norton-") else name
