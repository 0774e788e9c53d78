"""From token states to one vector for a text or a photo."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import MMFusionError


class Encoded(NamedTuple):
    """States of a batch: `tokens` (batch, length, hidden) and `pooled` (batch, hidden)."""

    tokens: Tensor
    pooled: Tensor


class UnsuitedError(MMFusionError):
    """An encoder lacks what is asked of it: a pooled state of its own, or blocks whose states go together."""


def pool(output: Any, tokens: Tensor, mask: Tensor | None, pooling: str, prefix: int = 0) -> Tensor:
    """One vector (batch, hidden) of each row of `tokens` (batch, length, hidden).

    Args:
        output: What the encoder returned, for its `pooler_output`; None if there is no such thing.
        tokens: States of the encoder's top.
        mask: (batch, length), 1 for tokens and 0 for padding; None: there is no padding.
        pooling: How; `patches` is a mean without the first `prefix` states.
        prefix: Number of class tokens and registers.

    Raises:
        UnsuitedError: The pooling is `pooler` and the encoder has none.
    """
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "pooler":
        if getattr(output, "pooler_output", None) is None:
            raise UnsuitedError(
                "The encoder has no pooler_output, so its pooling cannot be 'pooler'; use 'mean' or 'cls'."
            )
        return output.pooler_output.flatten(1)
    if mask is None:
        return tokens[:, prefix if pooling == "patches" else 0 :].mean(1)
    weights = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weights).sum(1) / weights.sum(1)


def pool_text(output: Any, tokens: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Token states (texts, length, hidden) -> (texts, hidden), whichever side of a text its padding is on.

    Args:
        output: What the encoder returned; read for `pooler` alone.
        tokens: Its token states.
        mask: (texts, length) int64 or bool, at least one 1 in each row.
        pooling: One of `TEXT_POOLINGS`.
    """
    if pooling in ("mean", "pooler"):
        return pool(output, tokens, mask, pooling)
    there, length = mask.bool(), tokens.shape[1]
    if pooling == "max":
        return tokens.masked_fill(~there.unsqueeze(-1), float("-inf")).amax(1)
    places = torch.arange(length, device=tokens.device).expand_as(there)
    first = places.masked_fill(~there, length).amin(1)
    if pooling == "weighted_mean":
        weights = ((places - first.unsqueeze(1) + 1) * there).to(tokens.dtype).unsqueeze(-1)
        return (tokens * weights).sum(1) / weights.sum(1)
    chosen = first if pooling == "cls" else places.masked_fill(~there, -1).amax(1)
    return tokens.gather(1, chosen[:, None, None].expand(-1, 1, tokens.shape[2])).squeeze(1)
