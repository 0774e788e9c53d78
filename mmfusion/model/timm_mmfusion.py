"""Encoders of timm, which transformers wraps where timm and torchvision are installed."""

from importlib.util import find_spec
from typing import Any

from .errors import HubError


def is_timm(config: dict[str, Any]) -> bool:
    """Whether the fields of a config.json are those of a timm model, as timm or transformers writes them."""
    return config.get("model_type") == "timm_wrapper" or ("architecture" in config and "model_type" not in config)


def check_timm(name: str) -> None:
    """Raises a HubError where timm, or torchvision that it imports, is not installed."""
    lacking = [package for package in ("timm", "torchvision") if find_spec(package) is None]
    if lacking:
        raise HubError(
            f"{name} is a timm model, for which {' and '.join(lacking)} must be installed (timm imports torchvision); "
            "install the build of torchvision that belongs to your torch, or use an encoder of transformers."
        )
