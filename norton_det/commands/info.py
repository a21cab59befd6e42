"""The work of ``norton-det info``; ``options/info.py`` says what it is. Nothing optional has to be there."""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..checkpoint import zoo
from ..checkpoint.zoo_table import LEVELS, NETWORKS, ON_OTHERS, OTHERS
from ..utils.configs import FOLDER
from ..utils.extras import mend

DISTRIBUTIONS = {  # module -> names that it is installed under
    "detectron2": ("detectron2",),
    "cv2": (
        "opencv-python",
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "nncf": ("nncf",),
    "av": ("av",),
    "supervision": ("supervision",),
    "fastapi": ("fastapi",),
    "uvicorn": ("uvicorn",),
    "websockets": ("websockets",),
    "pytorch_grad_cam": ("grad-cam",),
    "matplotlib": ("matplotlib",),
}
REQUIRED = ("torchvision", "numpy", "safetensors", "pycocotools", "fvcore")
CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
)


def main(args: argparse.Namespace) -> None:
    installation = inventory()
    if args.json:
        print(json.dumps(installation | {"zoo": [entry.name for entry in zoo.entries()]}, indent=1))
        return
    print(text(installation))


def text(installation: dict[str, Any]) -> str:
    """The inventory in lines."""
    versions = ", ".join(f"{name} {version}" for name, version in installation["versions"].items())
    lines = [f"norton_det {installation['norton_det']}", f"  {versions}", "", "devices"]
    lines += [f"  {device}" for device in installation["devices"]]
    lines += ["", "optional packages"]
    width = max(map(len, installation["optional"]))
    for name, package in installation["optional"].items():
        lines.append(f"  {name:{width}}  {package['version'] or 'missing: ' + package['mend']}")
    lines += ["", "configs", *(f"  {folder}" for folder in installation["configs"] or ["none found; install it again"])]
    with_weights = [entry.name for entry in zoo.entries() if entry.weights is not None]
    lines += [
        "",
        "zoo (norton-det zoo)",
        f"  {', '.join(LEVELS)}",
        f"  of {', '.join((*NETWORKS, *OTHERS, *ON_OTHERS))}",
        f"  with weights to download: {', '.join(with_weights)}",
        f"  kept in {installation['zoo_folder']}",
    ]
    return "\n".join(lines)


def inventory() -> dict[str, Any]:
    """What this installation has, as JSON holds it; the version of a missing package is ``None``, its ``mend`` says how
    to install it."""
    versions = {"Python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: _version(name, (name,)) or "missing" for name in REQUIRED}
    optional = {
        name: {"version": _version(name, distributions), "mend": mend(name)}
        for name, distributions in DISTRIBUTIONS.items()
    }
    return {
        "norton_det": __version__,
        "versions": versions,
        "devices": [cpu(), *cuda(), *openvino_devices()],
        "optional": optional,
        "configs": [str(FOLDER)] if any(FOLDER.glob("*.yaml")) else [],
        "zoo_folder": str(zoo.folder_of_weights()),
    }


def cpu() -> str:
    """Threads, and the instructions that decide how fast a network is."""
    flags: set[str] = set()
    with contextlib.suppress(OSError):  # Linux alone has it
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.partition(":")[2].split())
                break
    known = [flag for flag in CPU_FLAGS if flag in flags]
    return f"CPU: {platform.machine()}, threads: {torch.get_num_threads()}, {' '.join(known) or 'flags unknown'}"


def cuda() -> list[str]:
    """A line for each GPU; one that says so where there is none."""
    if not torch.cuda.is_available():
        return ["CUDA: none"]
    lines = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(f"CUDA {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    return lines


def openvino_devices() -> list[str]:
    """A line of what OpenVINO runs on, where it is installed."""
    try:
        from openvino import Core

        return [f"OpenVINO: {', '.join(Core().available_devices) or 'none'}"]
    except ModuleNotFoundError:
        return []
    except Exception as error:  # a driver that is broken must not hide the rest
        return [f"OpenVINO: cannot be asked ({type(error).__name__})"]


def _version(module: str, distributions: tuple[str, ...]) -> str | None:
    """The version of a module, which is imported only if no distribution has it; ``None`` if it is not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    try:
        return str(getattr(importlib.import_module(module), "__version__", "of an unknown version"))
    except Exception as error:
        return f"cannot be imported ({type(error).__name__})"
