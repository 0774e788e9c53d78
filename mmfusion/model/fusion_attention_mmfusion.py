"""Token-level fusion: attention between the words of a text and the positions of its photos."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_mmfusion import MMFusionConfig
from .fusion_base_mmfusion import (
    IMAGE,
    TEXT,
    Fused,
    Fusion,
    FusionSizes,
    ProductViews,
    masked_softmax,
    weighted_views,
    zero_unless,
)


class CrossAttention(Fusion):
    """Token-level fusion: both token sequences attend to each other; latent queries pool them into a correction.

    Each layer is attention over both sequences at once, which is attention in all four directions with one softmax:
    words attend to the photos and to each other, photo positions to the words and to each other.

    embedding = w_text * text view + w_image * image view + correction, with the weights a softmax over the present
    modalities. Output layers start at zero, so training starts from the mean of the views that stage 1 aligned and
    learns what to change. After `p = Attention(t, v) W` of arXiv:2603.04836; latent queries as in Perceiver
    (arXiv:2103.03206).
    """

    zero_start = ("correction", "gate")

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        width = config.fusion_hidden_size
        self.text_in = nn.Sequential(nn.LayerNorm(sizes.text_token), nn.Linear(sizes.text_token, width))
        self.image_in = nn.Sequential(nn.LayerNorm(sizes.image_token), nn.Linear(sizes.image_token, width))
        self.modality = nn.Parameter(torch.empty(2, width))
        self.layers = nn.ModuleList(AttentionLayer(config) for _ in range(config.fusion_layers))
        self.latents = nn.Parameter(torch.empty(config.fusion_latents, width))
        self.pool = AttentionLayer(config)
        self.norm = nn.LayerNorm(config.fusion_latents * width)
        self.correction = nn.Linear(config.fusion_latents * width, config.embedding_dim)
        self.gate = nn.Linear(config.fusion_latents * width, 2)

    def init_weights(self, std: float) -> None:
        super().init_weights(std)
        init.normal_(self.modality, std=std)
        init.normal_(self.latents, std=std)

    def forward(self, views: ProductViews) -> Fused:
        # Attention multiplies a masked token by 0, which would keep NaN.
        text = self.text_in(zero_unless(views.text_tokens, views.text_mask)) + self.modality[TEXT]
        image = self.image_in(zero_unless(views.image_tokens, views.image_mask)) + self.modality[IMAGE]
        tokens = torch.cat([text, image], dim=1)
        mask = torch.cat([views.text_mask, views.image_mask], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, tokens, mask)
        latents = self.pool(self.latents.expand(len(tokens), -1, -1), tokens, mask)
        pooled = self.norm(latents.flatten(1))
        weights = masked_softmax(self.gate(pooled), views.present)
        return Fused(weighted_views(views, weights) + self.correction(pooled), weights)


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
