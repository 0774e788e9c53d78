"""Late fusions: one pooled vector of each modality, put together by a small network."""

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
    PooledInput,
    ProductViews,
    masked_softmax,
    weighted_views,
    zero_unless,
)


class Concat(Fusion):
    """Late fusion: concatenated pooled features through a two-layer perceptron.

    A learned vector stands for a missing modality. Weights are the shares of the two modalities in what the network
    does with them: how far its output moves when that vector takes the modality's place.
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
        has_text, has_image = views.present.unbind(1)
        text = self.text_norm(zero_unless(views.text_pooled, has_text))
        image = self.image_norm(zero_unless(views.image_pooled, has_image))
        text = self.text_in(torch.where(has_text.unsqueeze(-1), text, self.missing_text))
        image = self.image_in(torch.where(has_image.unsqueeze(-1), image, self.missing_image))
        embeds = self.out(self.dropout(F.gelu(text + image)))
        return Fused(embeds, self._weights(text, image, views.present))

    @torch.no_grad()
    def _weights(self, text: Tensor, image: Tensor, present: Tensor) -> Tensor:
        whole = self.out(F.gelu(text + image))
        without_text = self.out(F.gelu(self.text_in(self.missing_text) + image))
        without_image = self.out(F.gelu(text + self.image_in(self.missing_image)))
        moved = torch.stack([(whole - without_text).norm(dim=-1), (whole - without_image).norm(dim=-1)], dim=1).float()
        # If nothing moves it, the present modalities share alike.
        moved = (moved + torch.finfo(moved.dtype).tiny) * present
        return (moved / moved.sum(1, keepdim=True)).to(text.dtype)


class Gated(Fusion):
    """Residual on the text view: what the photo adds, behind gates that look at both modalities.

    embedding = text view + w * (image view - text view) + channel gates * correction(photo). The share w and the gates
    of the D channels are computed from both pooled features, as in a gated multimodal unit (arXiv:1702.01992). w and
    the correction start at the mean of the views. A product with one modality is represented by its view.
    """

    zero_start = ("gated_weights", "gated_correction")

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        width = config.fusion_hidden_size
        self.gated_text = PooledInput(sizes.text, width)
        self.gated_image = PooledInput(sizes.image, width)
        self.gated_weights = nn.Linear(width, 2)
        self.gated_channels = nn.Linear(width, config.embedding_dim)
        self.gated_correction = nn.Linear(width, config.embedding_dim)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(self, views: ProductViews) -> Fused:
        text = self.gated_text(views.text_pooled, views.present[:, TEXT])
        image = self.gated_image(views.image_pooled, views.present[:, IMAGE])
        both = self.dropout(F.gelu(text + image))
        weights = masked_softmax(self.gated_weights(both), views.present)
        correction = self.gated_correction(self.dropout(F.gelu(image))) * self.gated_channels(both).sigmoid()
        return Fused(weighted_views(views, weights) + zero_unless(correction, views.present.all(1)), weights)


class Bilinear(Fusion):
    """Low-rank bilinear pooling as a correction of the weighted views.

    embedding = w_text * text view + w_image * image view + P (tanh(U text) * tanh(V photo)), of rank
    `fusion_hidden_size`, after multimodal low-rank bilinear pooling (arXiv:1610.04325). The weights are a softmax over
    the same two projections and their product. Training starts at the mean of the views. A product with one modality
    is represented by its view.
    """

    zero_start = ("bilinear_weights", "bilinear_correction")

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        rank = config.fusion_hidden_size
        self.bilinear_text = PooledInput(sizes.text, rank)
        self.bilinear_image = PooledInput(sizes.image, rank)
        self.bilinear_weights = nn.Linear(3 * rank, 2)
        self.bilinear_correction = nn.Linear(rank, config.embedding_dim)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(self, views: ProductViews) -> Fused:
        text = self.bilinear_text(views.text_pooled, views.present[:, TEXT]).tanh()
        image = self.bilinear_image(views.image_pooled, views.present[:, IMAGE]).tanh()
        product = self.dropout(text * image)
        logits = self.bilinear_weights(torch.cat([self.dropout(text), self.dropout(image), product], dim=-1))
        weights = masked_softmax(logits, views.present)
        correction = self.bilinear_correction(product)
        return Fused(weighted_views(views, weights) + zero_unless(correction, views.present.all(1)), weights)
