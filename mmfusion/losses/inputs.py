"""What the losses over two sets of items do with their inputs, in one place."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Grades = Callable[[Tensor, Tensor], Tensor]
MAX_LOGIT_SCALE = 100.0


def checked_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """Positive grades, ascending; raises a ValueError if there is none or one is below 1."""
    if not levels or min(levels) < 1:
        raise ValueError(f"levels is {list(levels)}; give at least one positive grade, all of them at least 1.")
    return tuple(sorted(levels))


def at_least_float32(value: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def all_true(mask: Tensor | None, items: Tensor) -> Tensor:
    """The mask (items,) bool, or one that keeps all."""
    return torch.ones(len(items), dtype=torch.bool, device=items.device) if mask is None else mask


def clipped_scale(logit_scale: Tensor) -> Tensor:
    """Inverse temperature of its logarithm, at most 100 as in CLIP (arXiv:2103.00020)."""
    return logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
