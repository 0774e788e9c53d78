"""The model that goes to the Hub: configuration, towers, fusion networks and processor. It imports nothing else.

Classes are loaded when they are first used, and registered with transformers then: what needs an error or a photo alone
does not wait for torch.
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import MMFusionError

if TYPE_CHECKING:
    from .configuration_mmfusion import MMFusionConfig
    from .fusion import FUSIONS, Fused, Fusion, FusionSizes, ProductViews, register_fusion
    from .heads import VIEWS
    from .modeling_mmfusion import MMFusionModel, MMFusionOutput
    from .processing_mmfusion import MMFusionProcessor

_LATER = {
    "FUSIONS": "fusion",
    "VIEWS": "heads",
    "Fused": "fusion",
    "Fusion": "fusion",
    "FusionSizes": "fusion",
    "MMFusionConfig": "configuration_mmfusion",
    "MMFusionModel": "modeling_mmfusion",
    "MMFusionOutput": "modeling_mmfusion",
    "MMFusionProcessor": "processing_mmfusion",
    "ProductViews": "fusion",
    "register_fusion": "fusion",
}

__all__ = [
    "FUSIONS",
    "VIEWS",
    "Fused",
    "Fusion",
    "FusionSizes",
    "MMFusionConfig",
    "MMFusionError",
    "MMFusionModel",
    "MMFusionOutput",
    "MMFusionProcessor",
    "ProductViews",
    "register_fusion",
]


@cache
def register() -> None:
    """Has `AutoConfig`, `AutoModel` and `AutoProcessor` of transformers know the model."""
    from transformers import AutoConfig, AutoModel, AutoProcessor

    from .configuration_mmfusion import MMFusionConfig
    from .modeling_mmfusion import MMFusionModel
    from .processing_mmfusion import MMFusionProcessor

    AutoConfig.register("mmfusion", MMFusionConfig, exist_ok=True)
    AutoModel.register(MMFusionConfig, MMFusionModel, exist_ok=True)
    AutoProcessor.register(MMFusionConfig, MMFusionProcessor, exist_ok=True)


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return getattr(import_module(f".{_LATER[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
