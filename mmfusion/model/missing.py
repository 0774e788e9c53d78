"""How tables mark a missing value."""

from typing import Any

from PIL import Image


def is_missing(value: Any) -> bool:
    """Whether a value is missing: None, NaN, NaT, or the NA of pandas and the masked cells of NumPy."""
    if value is None or type(value).__name__ == "MaskedConstant":
        return True
    # Two photos are compared pixel by pixel.
    if hasattr(value, "__len__") or isinstance(value, Image.Image):
        return False
    try:
        return bool(value != value)
    except (TypeError, ArithmeticError):
        # Whether pandas' NA and a signalling NaN equal themselves is undefined.
        return True
