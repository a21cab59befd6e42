"""Deployment of whole detectors: one graph for both stacks, ONNX and OpenVINO files of it, one predictor for all."""

from .export import export
from .graph import DetectorGraph, to_graph
from .info import DeployInfo
from .predictor import Detections, Predictor

__all__ = ["DeployInfo", "Detections", "DetectorGraph", "Predictor", "export", "to_graph"]
