"""Packages that norton_det runs without until something needs them, and how to get them."""

from .errors import InputError

TOGETHER = (  # packages that are needed together: those of an extra
    "openvino nncf onnx",
    "onnx onnxruntime",
    "av supervision",
    "fastapi uvicorn websockets",
    *("matplotlib", "tensorly", "scipy"),
)
PACKAGES = {module: packages for packages in TOGETHER for module in packages.split()}  # of onnx the smaller set
MENDS = {  # where that alone will not do
    "cv2": "run pip install opencv-python, or opencv-python-headless on a machine without a display",
    "detectron2": "PyPI has no wheel of it: run tools/setup_env.py --detectron2-wheel DIR in a clone of norton_det, "
    "and pip install what it makes",
    "pytorch_grad_cam": "run pip install scikit-learn ttach matplotlib and pip install --no-deps grad-cam",
}


def mend(module: str) -> str | None:
    """How to get an optional module; ``None`` for others."""
    return MENDS.get(module) or (f"run pip install {PACKAGES[module]}" if module in PACKAGES else None)


def explained(error: ModuleNotFoundError) -> InputError | None:
    """One line for an optional module that is missing; ``None`` for any other, which is a fault of the set-up."""
    module = (error.name or "").partition(".")[0]
    remedy = mend(module)
    return InputError(f"expected {module} to be installed, found none; {remedy}") if remedy else None
