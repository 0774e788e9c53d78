"""The graded losses over the products and queries of all ranks, and the registry of losses by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mmfusion.distributed import all_gather_rows, all_reduce_sum, ring_shift, world_size
from mmfusion.losses.chunked import PairSum, sum_over_pairs, with_gradients
from mmfusion.losses.functional import graded_contrastive, graded_sigmoid

MAX_LOGIT_SCALE = 100.0
START_BIAS = -10.0


@dataclass(frozen=True)
class Grades:
    """How well left and right items match.

    Attributes:
        of_rows: From left rows (any A) and right rows (any B) to (A, B) int64 grades.
        levels: The positive grades that the data has, ascending, each at least 1.
    """

    of_rows: Callable[[Tensor, Tensor], Tensor]
    levels: Sequence[int] = (1,)

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 1:
            raise ValueError(
                f"levels is {list(self.levels)}; give at least one positive grade, all of them at least 1."
            )

    def __call__(self, left_rows: Tensor, right_rows: Tensor) -> Tensor:
        return self.of_rows(left_rows, right_rows)


class Items(NamedTuple):
    """One side of the pairs of a loss.

    Attributes:
        embeds: (items, D) L2-normalised embeddings, at least float32.
        rows: (items,) int64 row of each item in its table.
        mask: (items,) bool; False takes an item out altogether.
    """

    embeds: Tensor
    rows: Tensor
    mask: Tensor


class PairLoss(nn.Module):
    """Base of the losses over all pairs of left and right items.

    A rank holds a part of the items. The result is scaled so that the mean over ranks, which DDP takes of the
    gradients, is the loss of one process on the global batch.

    Attributes:
        chunk_rows: Items whose pairs are looked at together; None chooses by memory.
    """

    def __init__(self, *, chunk_rows: int | None = None) -> None:
        super().__init__()
        self.chunk_rows = chunk_rows

    def forward(
        self,
        left: Tensor,
        right: Tensor,
        left_rows: Tensor,
        right_rows: Tensor,
        grades: Grades,
        logit_scale: Tensor,
        left_mask: Tensor | None = None,
        right_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            left: (L, D) float, L2-normalised embeddings of this rank.
            right: (R, D) float of this rank; L and R are the same on each rank.
            left_rows: (L,) int64 row of each left item in its table.
            right_rows: (R,) int64.
            grades: Which of them match, and how well.
            logit_scale: Scalar log inverse temperature; clipped at log(100) as in CLIP (arXiv:2103.00020).
            left_mask: (L,) bool; False takes an item out altogether. None means all True.
            right_mask: (R,) bool, in the same way.

        Returns:
            Scalar, at least float32.
        """
        left, right, logit_scale = (
            value.to(torch.promote_types(value.dtype, torch.float32)) for value in (left, right, logit_scale)
        )
        masks = [
            torch.ones_like(rows, dtype=torch.bool) if mask is None else mask
            for rows, mask in ((left_rows, left_mask), (right_rows, right_mask))
        ]
        sides = Items(left, left_rows, masks[0]), Items(right, right_rows, masks[1])
        return self.loss(*sides, grades, logit_scale.exp().clamp(max=MAX_LOGIT_SCALE))

    def loss(self, left: Items, right: Items, grades: Grades, scale: Tensor) -> Tensor:
        """The loss of this rank's items, a scalar; `scale` is the inverse temperature itself."""
        raise NotImplementedError


LOSSES: dict[str, type[PairLoss]] = {}
"""Losses by the name that a stage's `loss` gives them."""

Kind = TypeVar("Kind", bound=type[PairLoss])


def register_loss(name: str) -> Callable[[Kind], Kind]:
    """Adds a loss, to be named in the `loss` of a stage. It trains models and is not published with them.

    Args:
        name: Name of the loss.

    Raises:
        ValueError: Another class has the name.
    """

    def register(kind: Kind) -> Kind:
        known = LOSSES.get(name)
        # A cell of a notebook may be run again.
        if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ValueError(f"The loss {name!r} is {known.__module__}.{known.__qualname__}; choose another name.")
        LOSSES[name] = kind
        return kind

    return register


@register_loss("contrastive")
class GradedContrastiveLoss(PairLoss):
    """Symmetric contrastive loss between left and right items, with negatives gathered from all ranks.

    Each rank scores its own left items against all right items and its own right items against all left items, a chunk
    of its own at a time: memory grows with the items, not with their pairs. The loss is 0 with zero gradient if no item
    has a positive.
    """

    def loss(self, left: Items, right: Items, grades: Grades, scale: Tensor) -> Tensor:
        all_left, all_right = _gather(left), _gather(right)
        levels = grades.levels
        forward = self._mean(left, all_right, lambda own: grades(left.rows[own], all_right.rows), levels, scale)
        backward = self._mean(right, all_left, lambda own: grades(all_left.rows, right.rows[own]).T, levels, scale)
        return 0.5 * world_size() * (forward + backward)

    def _mean(
        self,
        own: Items,
        others: Items,
        grades_of: Callable[[slice], Tensor],
        levels: Sequence[int],
        scale: Tensor,
    ) -> Tensor:
        """This rank's part of the mean over the items of all ranks that have a positive among the others."""

        def block(rows: slice, embeds: Tensor, columns: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            there = own.mask[rows][:, None] & others.mask[None, :]
            logits = (scale * embeds @ columns.T).masked_fill(~there, float("-inf"))
            return graded_contrastive(logits, grades_of(rows), levels)

        pairs = sum_over_pairs(block, own.embeds, others.embeds, [scale], self.chunk_rows)
        total = with_gradients(pairs.total, [own.embeds, others.embeds, scale], pairs.gradients)
        return total / all_reduce_sum(pairs.counted).clamp_min(1)


@register_loss("sigmoid")
class GradedSigmoidLoss(PairLoss):
    """SigLIP's loss (arXiv:2303.15343) for graded pairs: each pair of a left and a right item is a match or is not.

    The sum over all pairs is divided by the number of left items, as in the paper; it is 0 if all of them are masked.

    A rank never holds more than its own left items, one rank's right items, and a chunk of their pairs. The right items
    go around all ranks and collect their gradients on the way, so that the backward pass communicates nothing; it
    expects the same weight of the loss on each rank.

    Attributes:
        logit_bias: Scalar that makes up for the few matches among all pairs. It is the same for all pairs and ranks
            nothing, so that it belongs to the loss, is kept in checkpoints, and has no place in a published model.
    """

    def __init__(self, *, chunk_rows: int | None = None) -> None:
        super().__init__(chunk_rows=chunk_rows)
        self.logit_bias = nn.Parameter(torch.tensor(START_BIAS))

    def loss(self, left: Items, right: Items, grades: Grades, scale: Tensor) -> Tensor:
        inputs = left.embeds, right.embeds, scale, self.logit_bias.to(left.embeds.dtype)

        def meet(visitors: Items) -> PairSum:
            def block(own: slice, embeds: Tensor, others: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
                there = left.mask[own][:, None] & visitors.mask[None, :]
                logits = (scale * embeds @ others.T + bias).masked_fill(~there, float("-inf"))
                wanted = grades(left.rows[own], visitors.rows)
                return graded_sigmoid(logits, wanted, grades.levels), left.mask[own].sum()

            return sum_over_pairs(block, left.embeds, visitors.embeds, inputs[2:], self.chunk_rows)

        total, gradients = _meet_all_ranks(meet, inputs, right)
        mean = with_gradients(total, inputs, gradients) / all_reduce_sum(left.mask.sum()).clamp_min(1)
        return world_size() * mean


def _gather(items: Items) -> Items:
    embeds, rows = all_gather_rows(items.embeds), all_gather_rows(items.rows)
    return Items(embeds, rows, all_gather_rows(items.mask.to(torch.uint8)).bool())


def _meet_all_ranks(
    meet: Callable[[Items], PairSum], inputs: Sequence[Tensor], right: Items
) -> tuple[Tensor, list[Tensor]]:
    """Sum over this rank's left and all right items, and gradients; that of its right items is of all ranks' sums."""
    visitor, rows, mask = right.embeds.detach(), right.rows, right.mask.to(torch.uint8)
    total, gradients = visitor.new_zeros(()), [torch.zeros_like(value) for value in inputs]
    for _ in range(world_size()):
        pairs = meet(Items(visitor, rows, mask.bool()))
        total += pairs.total
        for gradient, found in zip(gradients, pairs.gradients, strict=True):
            gradient += found
        visitor, rows, mask, gradients[1] = ring_shift(visitor, rows, mask, gradients[1])
    return total, gradients
