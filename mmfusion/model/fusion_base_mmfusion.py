"""What all fusion networks share: what they read, what they return, and how views are weighted."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_mmfusion import MMFusionConfig

TEXT, IMAGE = 0, 1


@dataclass
class ProductViews:
    """What the encoders have to say about P products; masks are True where something is there.

    Attributes:
        text_embeds, image_embeds: (P, D) L2-normalised views in the embedding space; arbitrary where missing.
        text_pooled, image_pooled: (P, text) and (P, image) before projection; arbitrary where missing.
        text_tokens, image_tokens: (P, T, text token), (P, V, image token); all photos of a product are one sequence;
            arbitrary where masked.
        text_mask, image_mask: (P, T), (P, V) bool.
        present: (P, 2) bool, columns text and image; at least one is True in each row.
    """

    text_embeds: Tensor
    image_embeds: Tensor
    text_pooled: Tensor
    image_pooled: Tensor
    text_tokens: Tensor
    image_tokens: Tensor
    text_mask: Tensor
    image_mask: Tensor
    present: Tensor


class FusionSizes(NamedTuple):
    """Widths of what a fusion network reads: pooled texts and photos, and the tokens of both."""

    text: int
    image: int
    text_token: int
    image_token: int


class Fused(NamedTuple):
    """What a fusion network makes of P products.

    Attributes:
        embeds: (P, D), not yet normalised.
        weights: (P, 2), >= 0, rows sum to 1, exactly 0 for a missing modality.
        penalty: Scalar to add to the loss, with its weight (a mixture of experts balances its load), or None.
        expert_load: (experts,) share of the products that each expert serves, sums to 1, or None.
    """

    embeds: Tensor
    weights: Tensor
    penalty: Tensor | None = None
    expert_load: Tensor | None = None


class Fusion(nn.Module):
    """Base of all fusion networks.

    Parameters of two kinds never share a name, so that a checkpoint of one kind loads as another without a clash of
    shapes and without quietly starting from weights that were trained for something else.

    Attributes:
        reads: Modalities that the kind looks at while both are present; the model skips the vision encoder for products
            with a text if it reads text alone.
        zero_start: Linear layers, by name, that start at zero: training starts from what the kind does without them.
    """

    reads: ClassVar[tuple[int, ...]] = (TEXT, IMAGE)
    zero_start: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__()

    def forward(self, views: ProductViews) -> Fused:
        raise NotImplementedError

    def init_weights(self, std: float) -> None:
        """Initialises parameters that belong to this module itself, and the layers that start at zero."""
        for name in self.zero_start:
            layer = self.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            init.zeros_(layer.weight)
            init.zeros_(layer.bias)


class PooledInput(nn.Module):
    """Layer norm and linear map of one modality's pooled features; where they are missing, those of a zero vector."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features)
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, pooled: Tensor, present: Tensor) -> Tensor:
        """(P, in_features), (P,) bool -> (P, out_features)."""
        return self.linear(self.norm(zero_unless(pooled, present)))


def weighted_views(views: ProductViews, weights: Tensor) -> Tensor:
    """Weighted sum of the two views (P, D); a missing view is masked out, as multiplying by 0 would keep NaN."""
    stacked = torch.stack([views.text_embeds, views.image_embeds], dim=1)
    return (zero_unless(stacked, views.present) * weights.unsqueeze(-1)).sum(1)


def masked_softmax(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax over the present modalities, (P, 2) and (P, 2) bool -> (P, 2): exactly 0 for a missing one."""
    return at_least_float32(logits).masked_fill(~present, float("-inf")).softmax(-1).to(logits.dtype)


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32, in which a softmax is exact enough; anything else as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def zero_unless(values: Tensor, there: Tensor) -> Tensor:
    """`values` (…, width) with zeros where `there` (…) is False, whatever was there, NaN included."""
    return values.masked_fill(~there.unsqueeze(-1), 0.0)
