"""Libraries of the extras of mmfusion, imported where they are used."""

from importlib import import_module
from typing import Any

from mmfusion.model.errors import MMFusionError


class MissingLibraryError(MMFusionError, ImportError):
    """A library that is needed is not installed; names the extra that brings it."""


def library(name: str, extra: str) -> Any:
    """A module of a library that comes with an extra.

    Args:
        name: Name of the module, e.g. "onnxruntime".
        extra: Extra of mmfusion, e.g. "onnx".

    Raises:
        MissingLibraryError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingLibraryError(
            f"this needs the library {name} ({error}); install it with: pip install 'mmfusion[{extra}]'"
        ) from error
