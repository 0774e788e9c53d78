"""From token states to one vector for a text or a photo."""

from typing import Any, NamedTuple

from torch import Tensor


class Encoded(NamedTuple):
    """States of a batch: `tokens` (batch, length, hidden) and `pooled` (batch, hidden)."""

    tokens: Tensor
    pooled: Tensor


def pool(output: Any, tokens: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "pooler":
        if getattr(output, "pooler_output", None) is None:
            raise ValueError(
                "The encoder has no pooler_output, so its pooling cannot be 'pooler'; use 'mean' or 'cls'."
            )
        return output.pooler_output.flatten(1)
    if mask is None:
        return tokens.mean(1)
    weights = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weights).sum(1) / weights.sum(1)
