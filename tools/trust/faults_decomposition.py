"""Faults of weights, ranks and layers in the decomposition, and of the command that compresses a network."""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from norton_det.checkpoint.load import load_checkpoint, load_weights
from norton_det.checkpoint.save import save_checkpoint
from norton_det.compression.detector import choose_layout
from norton_det.compression.resnet import compress_detector_state
from norton_det.decomposition.cp import nmse
from norton_det.models.factorize import find_candidates
from norton_det.models.layers import CPConv2d
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec

from .cases import Fault, refused, tool

LAYER = "layer1.0.conv2"
QUICK = ("--rank", "[1]+[0]*15", "--ratios", "[0.]+[0.9]*19", "--input-size", "32", "32", "--quiet")  # LAYER alone
WHOLE = ("--rank", QUICK[1], "--ratios", "[0.]+[0.9]*3+[0.]+[0.9]*15", *QUICK[4:])  # all of its filters stay

Change = Callable[[Tensor], object]
"""Spoils the weight (64, 64, 3, 3) of ``LAYER`` in place."""


def dense_state() -> dict[str, Tensor]:
    """A random ResNet-50 of two classes."""
    numbers = torch.randn(512 * 512 * 9, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in NortonResNet(CompressionSpec.dense(), 2).state_dict().items()}
    state = {}
    for name, shape in shapes.items():
        if len(shape) == 4:
            state[name] = numbers[: shape.numel()].view(shape) * (2 / shape[0]) ** 0.5
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        else:
            state[name] = torch.full(shape, 1.0 if name.endswith(("norm.weight", "running_var")) else 0.5)
    return state


def write_dense(work: Path, change: Change | None = None, layer: str = LAYER) -> Path:
    """A file of ``dense_state`` with one weight changed."""
    state = dense_state()
    if change is not None:
        change(state[f"{layer}.weight"])
    save_file(state, work / "dense.safetensors")
    return work / "dense.safetensors"


def command(work: Path, weights: Path, *arguments: object) -> None:
    """``tools/compress.py`` to ``out.safetensors``; comes back only if it ended well."""
    try:
        tool("tools/compress.py", "--weights", weights, "--output", work / "out.safetensors", *arguments)
    except SystemExit as ended:
        if ended.code:
            raise


def kept_well(change: Change, limit: float, same_as: Change | None, work: Path) -> None:
    """Compress, and hold ``LAYER`` against what it was: finite, its error below ``limit`` or that of another weight."""
    weights = write_dense(work, change)
    command(work, weights, *WHOLE)
    model = load_checkpoint(work / "out.safetensors")
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values()), "expected finite weights"
    layer = model.get_submodule(LAYER)
    assert isinstance(layer, CPConv2d)
    weight = load_weights(weights).state[f"{LAYER}.weight"]
    error = nmse(weight, layer.factors())
    if same_as is not None:
        plain = dense_state()[f"{LAYER}.weight"]
        same_as(plain)
        expected = nmse(plain, CPConv2d.from_conv(conv_of(plain)).factors())
        assert abs(error - expected) < 1e-4, f"expected an error of {expected}, got {error}"
    assert error <= limit, f"expected an error up to {limit}, got {error}"
    print(f"relative error {error:.3g}")


def nothing(weight: Tensor) -> None:
    """Leave it as it is."""


def zero(weight: Tensor) -> None:
    weight[::2] = 0


def constant(weight: Tensor) -> None:
    weight[:] = torch.linspace(-1, 1, len(weight))[:, None, None, None]


def duplicate(weight: Tensor) -> None:
    weight[:] = weight[:1].clone()


def scaled(factor: float, weight: Tensor) -> None:
    weight *= factor


def spoiled(value: float, weight: Tensor) -> None:
    weight[3, 1, 0, 2] = value


def conv_of(weight: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], (weight.shape[2], weight.shape[3]))
    conv.weight.data = weight
    return conv


def asked(*arguments: str) -> Callable[[Path], None]:
    """The command with ranks or ratios that are refused before the weights are read."""
    return lambda work: command(work, work / "dense.safetensors", *arguments)


def ranked(rank: str) -> Callable[[Path], None]:
    return asked("--rank", rank)


def spoiled_file(value: float, layer: str) -> Callable[[Path], None]:
    """The command on weights with one number changed."""
    return lambda work: command(work, write_dense(work, partial(spoiled, value), layer), *QUICK)


def same_outputs(inputs: int, kernel: tuple[int, int], work: Path) -> None:
    """A layer at its full rank, and its deploy form, put out what the convolution does."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(inputs, 6, kernel, stride=(2, 1), padding=(kernel[0] // 2, kernel[1] // 2)).requires_grad_(False)
    conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
    layer = CPConv2d.from_conv(conv, kernel[0] * kernel[1]).requires_grad_(False)
    image = torch.randn(2, inputs, 13, 10, generator=generator)
    expected = conv(image)
    for found in (layer(image), layer.fuse()(image)):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    print("same outputs")


def unsupported(expects: str, work: Path, **options: object) -> None:
    """A layer of a neck that cannot be factored: ordered it is refused, else it stays dense."""
    net = nn.Module()
    net.backbone = nn.Module()
    net.backbone.fpn_output2 = nn.Conv2d(8, 8, 3, **options)  # type: ignore[arg-type]
    candidates = find_candidates(net)
    layout, dense = choose_layout(candidates, 1, 1, 1, {})
    assert not layout and expects in dense["backbone.fpn_output2"], dense
    refused(lambda: CPConv2d.from_conv(net.backbone.fpn_output2), expects)  # type: ignore[arg-type]
    choose_layout(candidates, 1, 1, 1, {"backbone.fpn_output2": 1})


def detector_with_nan(work: Path) -> None:
    """NaN in a detector outside its ResNet."""
    state = {f"backbone.body.{name}": tensor for name, tensor in dense_state().items() if not name.startswith("fc.")}
    state["roi_heads.box_head.fc6.weight"] = torch.full((4, 4), torch.nan)
    compress_detector_state(state, CompressionSpec.parse(None, "[0.]+[0.9]*19"))


def forked(work: Path, weights: Path) -> int:
    """The command in a process of its own; its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            command(work, weights, *QUICK)
            status = 0
        finally:
            os._exit(status)
    return pid


def whole_file(file: Path) -> CompressionSpec:
    """The spec of a checkpoint that is whole."""
    model = load_checkpoint(file)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    return model.spec


def killed(work: Path) -> None:
    """SIGKILL while the output is written: what was there before stays, and the next run ends well."""
    weights, output = write_dense(work), work / "out.safetensors"
    save_checkpoint(output, NortonResNet(CompressionSpec.preset("norton-78"), 2))
    before = output.read_bytes()
    pid = forked(work, weights)
    while not list(work.glob("*.part")) and not os.waitpid(pid, os.WNOHANG)[0]:
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert output.read_bytes() == before, "expected the earlier file"
    command(work, weights, *QUICK)
    assert whole_file(output).rank == (1, *[0] * 15)
    print("the earlier file stayed")


def at_once(work: Path) -> None:
    """Two runs on one output."""
    weights = write_dense(work)
    pids = [forked(work, weights) for _ in range(2)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert statuses in ([0, 0], [0, 2], [2, 0]), f"expected one or both to end well, got {statuses}"
    whole_file(work / "out.safetensors")
    print(f"a whole file, statuses {statuses}")


def _well(name: str, provoke: Callable[[Path], None], expects: str) -> Fault:
    return Fault("decomposition", name, provoke, expects, 0)


def _bad(name: str, provoke: Callable[[Path], None], expects: str) -> Fault:
    return Fault("decomposition", name, provoke, expects)


ERROR, SAME = r"relative error [\d.e+-]+", "same outputs"
FAULTS = [
    _well("filters of zeros", partial(kept_well, zero, 1.0, zero), ERROR),
    _well("only zeros", partial(kept_well, Tensor.zero_, 0.0, None), ERROR),
    _well("constant filters", partial(kept_well, constant, 1e-10, None), ERROR),
    _well("equal filters", partial(kept_well, duplicate, 1.0, duplicate), ERROR),
    _well("filters of 1e30", partial(kept_well, partial(scaled, 1e30), 1.0, nothing), ERROR),
    _well("filters of 1e-30", partial(kept_well, partial(scaled, 1e-30), 1.0, nothing), ERROR),
    _bad("rank 0", ranked("0"), r"rank: expected 1 to 9"),
    _bad("rank -1", ranked("-1"), r"rank: expected 1 to 9"),
    _bad("rank 1.5", ranked("1.5"), r"rank: expected .*1\.5"),
    _bad("rank above the maximum", ranked("10"), r"rank: expected 1 to 9"),
    _bad("rank that is no number", ranked("nan"), r"rank"),
    _bad("too few ranks", ranked("[1]*3"), r"rank: expected one number or 16"),
    _bad("a ratio that leaves no channel", asked("--ratios", "[0.999]*20"), r"ratios\[0\]: 0\.999 leaves none of 64"),
    _bad("a NaN in a filter", spoiled_file(torch.nan, LAYER), rf"{LAYER}\.weight: .*NaN"),
    _bad(
        "infinity in a filter that stays dense",
        spoiled_file(torch.inf, "layer3.2.conv2"),
        r"layer3\.2\.conv2\.weight: .*infinite",
    ),
    _bad("a NaN in a detector's head", detector_with_nan, r"roi_heads\.box_head\.fc6\.weight: .*NaN"),
    _well("a single input channel", partial(same_outputs, 1, (3, 3)), SAME),
    _well("a 1x1 convolution", partial(same_outputs, 5, (1, 1)), SAME),
    _well("a 7x7 convolution", partial(same_outputs, 3, (7, 7)), SAME),
    _well("a 3x1 convolution", partial(same_outputs, 4, (3, 1)), SAME),
    _bad("a grouped convolution", partial(unsupported, "groups=1", groups=2), r"backbone\.fpn_output2: .*group"),
    _bad(
        "a dilated convolution",
        partial(unsupported, "dilation=1", dilation=2),
        r"layout: backbone\.fpn_output2: .*dilation",
    ),
    _bad(
        "a convolution padded to the same size",
        partial(unsupported, "numeric zero padding", padding="same"),
        r"layout: backbone\.fpn_output2: .*padding",
    ),
    _well("killed while it writes", killed, "the earlier file stayed"),
    _well("two runs on one output", at_once, "a whole file"),
]
