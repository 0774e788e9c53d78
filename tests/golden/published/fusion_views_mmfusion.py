"""Fusions without a network: one of the two views, or their weighted mean."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_mmfusion import MMFusionConfig
from .fusion_base_mmfusion import IMAGE, TEXT, Fused, Fusion, FusionSizes, ProductViews, masked_softmax, weighted_views


class _SingleView(Fusion):
    """Reads one modality; a product without it is represented by the other, which stage 1 aligned with it."""

    def forward(self, views: ProductViews) -> Fused:
        own = self.reads[0]
        weights = F.one_hot(torch.where(views.present[:, own], own, 1 - own), 2).to(views.text_embeds.dtype)
        return Fused(weighted_views(views, weights), weights)


class TextOnly(_SingleView):
    """The text view alone: the text-only two-tower that fusion has to beat."""

    reads = (TEXT,)


class ImageOnly(_SingleView):
    """The photo view alone."""

    reads = (IMAGE,)


# An Adam step moves a parameter by about the learning rate, whatever its scale. At the rate that suits matrices a lone
# logit would barely leave its start in a whole training, so it is stored in units this large.
LOGIT_UNIT = 30.0


class WeightedMean(Fusion):
    """embedding = w * text view + (1 - w) * image view, with one w for all products.

    w is `fusion_text_weight`; with `fusion_learned_weights` that is where a learned scalar starts. The evaluation code
    of Marqo's GCL (arXiv:2404.08535) defaults to 0.9 for the image and 0.1 for the title, which is 0.1 here. A product
    with one modality is represented by its view.
    """

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        self.start = math.log(config.fusion_text_weight) - math.log1p(-config.fusion_text_weight)
        learned = config.fusion_learned_weights
        self.text_logit = nn.Parameter(torch.tensor(self.start / LOGIT_UNIT)) if learned else None

    def init_weights(self, std: float) -> None:
        if self.text_logit is not None:
            init.constant_(self.text_logit, self.start / LOGIT_UNIT)

    def forward(self, views: ProductViews) -> Fused:
        # Not a buffer: transformers restores only those that a checkpoint holds.
        fixed = torch.tensor(self.start, device=views.present.device)
        logit = fixed if self.text_logit is None else self.text_logit.float() * LOGIT_UNIT
        logits = torch.stack([logit, torch.zeros_like(logit)]).expand(len(views.present), 2)
        weights = masked_softmax(logits, views.present).to(views.text_embeds.dtype)
        return Fused(weighted_views(views, weights), weights)
