"""Names that a command line offers (criteria, forms of a detector, precisions), apart from the code they stand for,
whose import takes seconds."""

TORCH_FORMS = ("eager", "fused", "deploy", "deploy-bf16", "deploy-fp16")
FILE_FORMS = {  # form that a detector is timed in -> ending, precision, module
    "onnxruntime": (".onnx", "f32", "onnxruntime"),
    "openvino": (".xml", "f32", "openvino"),
    "openvino-bf16": (".xml", "bf16", "openvino"),
    "openvino-int8": (".xml", "int8", "nncf"),
}
FORMS = (*TORCH_FORMS, *FILE_FORMS)
FILE_PRECISIONS = ("f32", "bf16", "int8")  # of exported files
DETECTORS = ("faster", "mask", "keypoint")
CRITERIA = ("css", "norm", "pabs", "pabs_sum", "random")  # of pruning, those of the package in order
