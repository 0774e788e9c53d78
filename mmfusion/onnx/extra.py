"""The libraries of the extra `mmfusion[onnx]`, imported when they are needed."""

from importlib import import_module
from typing import Any

from mmfusion.model.errors import MMFusionError


class OnnxError(MMFusionError):
    """A query tower that cannot be exported, or a folder that holds none that can be used."""


def library(name: str) -> Any:
    """The module `onnx`, `onnxscript` or `onnxruntime`.

    Raises:
        OnnxError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise OnnxError(
            f"ONNX query towers need the library {name} ({error}); install it with: pip install 'mmfusion[onnx]'"
        ) from error


def first_line(error: BaseException) -> str:
    """What an exception of another library says, as far as it fits into a line of ours."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
