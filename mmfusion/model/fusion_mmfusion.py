"""Fusion networks of the product tower: one class per kind, one small interface.

A fusion network reads the views of a product and returns one vector per product and how much each modality gave.
A new kind is a subclass of [`Fusion`], an entry in `FUSIONS`, its name in `FUSION_KINDS`, and a test.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_mmfusion import MMFusionConfig

TEXT, IMAGE = 0, 1


@dataclass
class ProductViews:
    """What the encoders have to say about P products; masks are True where something is there.

    Attributes:
        text_embeds, image_embeds: (P, D) L2-normalised views in the embedding space; arbitrary where missing.
        text_pooled, image_pooled: (P, text) and (P, image) before projection; arbitrary where missing.
        text_tokens, image_tokens: (P, T, text), (P, V, image token); all photos of a product are one sequence.
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
    """Widths of what a fusion network reads: text states and pooled texts, pooled photos, and photo tokens."""

    text: int
    image: int
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

    Attributes:
        reads: Modalities that the kind looks at while both are present; the model skips the vision encoder for products
            with a text if it reads text alone.
    """

    reads: ClassVar[tuple[int, ...]] = (TEXT, IMAGE)

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__()

    def forward(self, views: ProductViews) -> Fused:
        raise NotImplementedError

    def init_weights(self, std: float) -> None:
        """Initialises parameters that belong to this module itself rather than to a layer inside it."""


class _SingleView(Fusion):
    """Reads one modality; a product without it is represented by the other, which stage 1 aligned with it."""

    def forward(self, views: ProductViews) -> Fused:
        own = self.reads[0]
        weights = F.one_hot(torch.where(views.present[:, own], own, 1 - own), 2).to(views.text_embeds.dtype)
        return Fused(_weighted_views(views, weights), weights)


class TextOnly(_SingleView):
    """The text view alone: the text-only two-tower that fusion has to beat."""

    reads = (TEXT,)


class ImageOnly(_SingleView):
    """The photo view alone."""

    reads = (IMAGE,)


class Concat(Fusion):
    """Late fusion: concatenated pooled features through a two-layer perceptron.

    A learned vector stands for a missing modality. Weights are the shares of the two modalities in the norm of the
    hidden layer's input, which is linear in them.
    """

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        self.text_norm = nn.LayerNorm(sizes.text)
        self.image_norm = nn.LayerNorm(sizes.image)
        self.missing_text = nn.Parameter(torch.empty(sizes.text))
        self.missing_image = nn.Parameter(torch.empty(sizes.image))
        self.text_in = nn.Linear(sizes.text, 2 * config.fusion_hidden_size)
        self.image_in = nn.Linear(sizes.image, 2 * config.fusion_hidden_size, bias=False)
        self.out = nn.Linear(2 * config.fusion_hidden_size, config.embedding_dim)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def init_weights(self, std: float) -> None:
        init.normal_(self.missing_text, std=std)
        init.normal_(self.missing_image, std=std)

    def forward(self, views: ProductViews) -> Fused:
        has_text, has_image = views.present.unsqueeze(-1).unbind(1)
        text = self.text_in(torch.where(has_text, self.text_norm(views.text_pooled), self.missing_text))
        image = self.image_in(torch.where(has_image, self.image_norm(views.image_pooled), self.missing_image))
        hidden = self.dropout(F.gelu(text + image))
        norms = torch.stack([text.norm(dim=-1), image.norm(dim=-1)], dim=1).detach() * views.present
        return Fused(self.out(hidden), norms / norms.sum(1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny))


class CrossAttention(Fusion):
    """Token-level fusion: both token sequences attend to each other; latent queries pool them into a correction.

    embedding = w_text * text view + w_image * image view + correction, with the weights a softmax over the present
    modalities. Output layers start at zero, so training starts from the mean of the views that stage 1 aligned and
    learns what to change. After `p = Attention(t, v) W` of arXiv:2603.04836; latent queries as in Perceiver
    (arXiv:2103.03206).
    """

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        width = config.fusion_hidden_size
        self.text_in = nn.Sequential(nn.LayerNorm(sizes.text), nn.Linear(sizes.text, width))
        self.image_in = nn.Sequential(nn.LayerNorm(sizes.image_token), nn.Linear(sizes.image_token, width))
        self.modality = nn.Parameter(torch.empty(2, width))
        self.layers = nn.ModuleList(AttentionLayer(config) for _ in range(config.fusion_layers))
        self.latents = nn.Parameter(torch.empty(config.fusion_latents, width))
        self.pool = AttentionLayer(config)
        self.norm = nn.LayerNorm(config.fusion_latents * width)
        self.correction = nn.Linear(config.fusion_latents * width, config.embedding_dim)
        self.gate = nn.Linear(config.fusion_latents * width, 2)

    def init_weights(self, std: float) -> None:
        init.normal_(self.modality, std=std)
        init.normal_(self.latents, std=std)
        for layer in (self.correction, self.gate):
            init.zeros_(layer.weight)
            init.zeros_(layer.bias)

    def forward(self, views: ProductViews) -> Fused:
        text = self.text_in(views.text_tokens) + self.modality[TEXT]
        image = self.image_in(views.image_tokens) + self.modality[IMAGE]
        tokens = torch.cat([text, image], dim=1)
        mask = torch.cat([views.text_mask, views.image_mask], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, tokens, mask)
        latents = self.pool(self.latents.expand(len(tokens), -1, -1), tokens, mask)
        pooled = self.norm(latents.flatten(1))
        weights = _masked_softmax(self.gate(pooled), views.present)
        return Fused(_weighted_views(views, weights) + self.correction(pooled), weights)


class AttentionLayer(nn.Module):
    """Pre-norm attention of `queries` over masked `tokens`, then a feed-forward layer, both with residuals."""

    def __init__(self, config: MMFusionConfig) -> None:
        super().__init__()
        width = config.fusion_hidden_size
        self.heads = config.fusion_heads
        self.query_norm = nn.LayerNorm(width)
        self.token_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(P, Q, width), (P, T, width), (P, T) bool with at least one True in each row -> (P, Q, width)."""
        query = self._split(self.query(self.query_norm(queries)))
        key, value = (self._split(x) for x in self.key_value(self.token_norm(tokens)).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        queries = queries + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return queries + self.dropout(self.feed_forward(queries))

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


FUSIONS: dict[str, type[Fusion]] = {
    "text_only": TextOnly,
    "image_only": ImageOnly,
    "concat": Concat,
    "cross_attention": CrossAttention,
}


def _weighted_views(views: ProductViews, weights: Tensor) -> Tensor:
    """Weighted sum of the two views (P, D); a missing view is masked out, as multiplying by 0 would keep NaN."""
    stacked = torch.stack([views.text_embeds, views.image_embeds], dim=1)
    return (stacked.masked_fill(~views.present.unsqueeze(-1), 0.0) * weights.unsqueeze(-1)).sum(1)


def _masked_softmax(logits: Tensor, present: Tensor) -> Tensor:
    return logits.float().masked_fill(~present, float("-inf")).softmax(-1).to(logits.dtype)
