"""The model that goes to the Hub: configuration, towers, fusion networks and processor. It imports nothing else."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_mmfusion import MMFusionConfig
from .errors import MMFusionError
from .fusion import FUSIONS, Fused, Fusion, FusionSizes, ProductViews, register_fusion
from .heads import VIEWS
from .modeling_mmfusion import MMFusionModel, MMFusionOutput
from .processing_mmfusion import MMFusionProcessor

AutoConfig.register("mmfusion", MMFusionConfig, exist_ok=True)
AutoModel.register(MMFusionConfig, MMFusionModel, exist_ok=True)
AutoProcessor.register(MMFusionConfig, MMFusionProcessor, exist_ok=True)

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
