"""The query tower without PyTorch: as a graph for ONNX Runtime, with its tokenizer."""

import os

# From 1.29 on, ONNX Runtime reports models and machine to its makers unless this is set before it is imported, and
# keeps an id of the machine and what it has not sent yet in the user's cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from mmfusion.onnx.export import export_query_tower
from mmfusion.onnx.query_tower import OnnxDescription, OnnxError, OnnxQueryTower

__all__ = ["OnnxDescription", "OnnxError", "OnnxQueryTower", "export_query_tower"]
