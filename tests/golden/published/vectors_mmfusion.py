"""The vectors that are searched and indexed: shortened (Matryoshka), or several views side by side (routed)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

VIEWS = ("fused", "text", "image")


def shorten(embeds: Tensor, dim: int, views: int = 1) -> Tensor:
    """Keeps the first `dim` components of each view and gives each its length back (Matryoshka, arXiv:2205.13147).

    Args:
        embeds: (rows, views * D) float; views side by side.
        dim: Components to keep of each, in [1, D].
        views: Number of views.

    Returns:
        (rows, views * dim) float.
    """
    blocks = embeds.unflatten(1, (views, -1))
    lengths = blocks.norm(dim=-1, keepdim=True)
    return (F.normalize(blocks[..., :dim], dim=-1) * lengths).flatten(1)


class QueryRouter(nn.Module):
    """Weights of the views of a product, read from the query alone.

    The score sum over views of w(q) <q, view> is one inner product of `[w_1 q, w_2 q, w_3 q]` with the views of a
    product side by side, so that products are embedded once and any inner-product index serves it.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.logits = nn.Linear(hidden_size, len(VIEWS))

    def init_weights(self) -> None:
        init.zeros_(self.logits.weight)
        init.zeros_(self.logits.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled query states (Q, hidden) -> weights (Q, 3) in the order of `VIEWS`, >= 0, rows sum to 1."""
        return self.logits(pooled).float().softmax(-1).to(pooled.dtype)


def routed_queries(embeds: Tensor, weights: Tensor) -> Tensor:
    """L2-normalised queries (Q, D) and their weights (Q, 3) -> (Q, 3 * D)."""
    return (weights.unsqueeze(2) * embeds.unsqueeze(1)).flatten(1)


def routed_products(fused: Tensor, text: Tensor, image: Tensor, present: Tensor) -> Tensor:
    """Views (P, D) each, and (P, 2) bool `present` of text and photo -> (P, 3 * D).

    The fused view stands in for a missing one, so that no product is penalised for what it lacks.
    """
    text = torch.where(present[:, 0, None], text, fused)
    return torch.cat([fused, text, torch.where(present[:, 1, None], image, fused)], dim=1)
