"""Mixture of experts: a router decides from both modalities which expert corrects the views, and how they weigh."""

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
    at_least_float32,
    masked_softmax,
    weighted_views,
    zero_unless,
)


class MixtureOfExperts(Fusion):
    """embedding = w_text * text view + w_image * image view + correction; experts give the weights and the correction.

    Experts and router read both modalities and their bilinear term (the product of two projections). All experts are
    mixed by the router's probabilities (arXiv:1312.4314) instead of choosing the best: a product between two experts
    would jump from one to the other with the rounding of half precision, and experts this small cost little. An
    expert's load is its mean probability over the products that have both modalities. Output layers start at zero, so
    training starts at the mean of the views. A product with one modality is represented by its view.
    """

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        width = config.fusion_hidden_size
        self.balance_weight = config.fusion_balance_weight
        self.moe_text = PooledInput(sizes.text, width)
        self.moe_image = PooledInput(sizes.image, width)
        self.router = nn.Linear(3 * width, config.fusion_experts)
        self.experts = nn.ModuleList(
            Expert(3 * width, width, 2 + config.embedding_dim, config.fusion_dropout)
            for _ in range(config.fusion_experts)
        )
        self.dropout = nn.Dropout(config.fusion_dropout)

    def init_weights(self, std: float) -> None:
        for expert in self.experts:
            assert isinstance(expert, Expert)
            init.zeros_(expert.output.weight)
            init.zeros_(expert.output.bias)

    def forward(self, views: ProductViews) -> Fused:
        text = self.moe_text(views.text_pooled, views.present[:, TEXT])
        image = self.moe_image(views.image_pooled, views.present[:, IMAGE])
        both = torch.cat([text, image, text * image], dim=-1)
        shares = at_least_float32(self.router(both)).softmax(-1)
        hidden = self.dropout(both)
        outputs = torch.stack([expert(hidden) for expert in self.experts], dim=1)
        mixed = (shares.to(outputs.dtype).unsqueeze(-1) * outputs).sum(1)
        weights = masked_softmax(mixed[:, :2], views.present)
        fuses = views.present.all(1)
        load = mean_shares(shares, fuses)
        return Fused(
            weighted_views(views, weights) + zero_unless(mixed[:, 2:], fuses),
            weights,
            self.penalty(load),
            load,
        )

    def penalty(self, load: Tensor) -> Tensor:
        """Weighted imbalance of the load (experts,) of a batch: what is added to the loss."""
        return self.balance_weight * load_imbalance(load)


class Expert(nn.Module):
    """Two-layer perceptron."""

    def __init__(self, in_features: int, hidden: int, out_features: int, dropout: float) -> None:
        super().__init__()
        self.input = nn.Linear(in_features, hidden)
        self.output = nn.Linear(hidden, out_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(P, in_features) -> (P, out_features)."""
        return self.output(self.dropout(F.gelu(self.input(features))))


def mean_shares(shares: Tensor, counted: Tensor) -> Tensor:
    """Mean of (P, experts) over the rows that (P,) bool counts; over all of them if it counts none."""
    counted = counted | ~counted.any()
    return zero_unless(shares, counted).sum(0) / counted.sum()


def load_imbalance(load: Tensor) -> Tensor:
    """experts * sum of load²: 1 if all experts serve alike, up to the number of experts if one serves everything.

    The load-balance loss of Switch Transformers (arXiv:2101.03961, eq. 4), experts * sum of f * P, where the share f
    of the products that an expert serves is its mean probability P, since every expert serves every product.
    """
    return len(load) * load.square().sum()
