"""Packages that norton_det runs without until something needs them, and how to get them."""

from .errors import InputError

PACKAGES = {  # module -> packages that are needed together: those of the extra that has it
    "onnx": "onnx onnxruntime",
    "onnxruntime": "onnx onnxruntime",
    "openvino": "openvino nncf onnx",
    "nncf": "openvino nncf onnx",
    "av": "av supervision",
    "supervision": "av supervision",
    "fastapi": "fastapi uvicorn websockets",
    "uvicorn": "fastapi uvicorn websockets",
    "websockets": "fastapi uvicorn websockets",
    "matplotlib": "matplotlib",
    "tensorly": "tensorly",
    "scipy": "scipy",
}
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
    how = mend(module)
    return InputError(f"expected {module} to be installed, found none; {how}") if how else None
