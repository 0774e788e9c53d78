"""The query tower without PyTorch: as a graph for ONNX Runtime, with its tokenizer."""

from mmfusion.onnx.export import export_query_tower
from mmfusion.onnx.query_tower import OnnxDescription, OnnxError, OnnxQueryTower

__all__ = ["OnnxDescription", "OnnxError", "OnnxQueryTower", "export_query_tower"]
