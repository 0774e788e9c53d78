"""Fusion networks of the product tower: one class per kind, one small interface.

A fusion network reads the views of a product and returns one vector per product and how much each modality gave.
A new kind is a subclass of [`Fusion`], an entry in `FUSIONS`, its name in `FUSION_KINDS`, and a test.
"""

from .fusion_attention_mmfusion import CrossAttention
from .fusion_base_mmfusion import IMAGE, TEXT, Fused, Fusion, FusionSizes, ProductViews
from .fusion_experts_mmfusion import MixtureOfExperts
from .fusion_pooled_mmfusion import Bilinear, Concat, Gated
from .fusion_views_mmfusion import ImageOnly, TextOnly, WeightedMean

FUSIONS: dict[str, type[Fusion]] = {
    "text_only": TextOnly,
    "image_only": ImageOnly,
    "weighted_mean": WeightedMean,
    "concat": Concat,
    "gated": Gated,
    "bilinear": Bilinear,
    "moe": MixtureOfExperts,
    "cross_attention": CrossAttention,
}

__all__ = ["FUSIONS", "IMAGE", "TEXT", "Fused", "Fusion", "FusionSizes", "ProductViews"]
