"""Packages that norton_det runs without until something needs them, and how to get them."""

from .errors import InputError

EXTRAS = {  # module -> extra of this package that has it
    "cv2": "opencv",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "nncf": "openvino",
    "av": "demo",
    "supervision": "demo",
    "fastapi": "serve",
    "uvicorn": "serve",
    "websockets": "serve",
    "matplotlib": "dev",
    "tensorly": "dev",
    "scipy": "dev",
}
MENDS = {  # where an extra alone will not do
    "cv2": "run pip install norton_det[opencv], or norton_det[opencv-headless] on a machine without a display",
    "detectron2": "PyPI has no wheel of it: run tools/setup_env.py --detectron2-wheel DIR in a clone of norton_det, "
    "and pip install what it makes",
    "pytorch_grad_cam": "run pip install norton_det[cam] and pip install --no-deps grad-cam",
}


def mend(module: str) -> str | None:
    """How to get an optional module; ``None`` for others."""
    return MENDS.get(module) or (f"run pip install norton_det[{EXTRAS[module]}]" if module in EXTRAS else None)


def explained(error: ModuleNotFoundError) -> InputError | None:
    """One line for an optional module that is missing; ``None`` for any other, which is a fault of the set-up."""
    module = (error.name or "").partition(".")[0]
    how = mend(module)
    return InputError(f"expected {module} to be installed, found none; {how}") if how else None
