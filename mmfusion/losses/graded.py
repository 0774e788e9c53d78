"""The graded losses over the products and queries of all ranks, and the registry of losses by name."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from mmfusion.distributed import all_gather_rows, all_reduce_max, all_reduce_sum, rank, ring_shift, world_size
from mmfusion.losses.chunked import Known, with_gradients
from mmfusion.losses.functional import graded_contrastive, graded_sigmoid
from mmfusion.losses.grades import Grades, Items

MAX_LOGIT_SCALE = 100.0
START_BIAS = -10.0


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
        grades: Grades,
        logit_scale: Tensor,
        left_mask: Tensor | None = None,
        right_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            left: (L, D) float, L2-normalised embeddings of this rank.
            right: (R, D) float of this rank; L and R are the same on each rank.
            grades: Which of the left items match which right items of all ranks, and how well.
            logit_scale: Scalar log inverse temperature; clipped at log(100) as in CLIP (arXiv:2103.00020).
            left_mask: (L,) bool; False takes an item out altogether. None means all True.
            right_mask: (R,) bool, in the same way.

        Returns:
            Scalar, at least float32.

        Raises:
            ValueError: The grades are of another number of left items.
        """
        if len(grades.starts) != len(left) + 1:
            raise ValueError(
                f"The grades are of {len(grades.starts) - 1} left items, and {len(left)} are given; make them of the "
                "same batch."
            )
        left, right, logit_scale = (
            value.to(torch.promote_types(value.dtype, torch.float32)) for value in (left, right, logit_scale)
        )
        masks = [
            embeds.new_ones(len(embeds), dtype=torch.bool) if mask is None else mask
            for embeds, mask in ((left, left_mask), (right, right_mask))
        ]
        sides = Items(left, masks[0]), Items(right, masks[1])
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
    """[`graded_contrastive`] between left and right items, with negatives gathered from all ranks.

    Each rank scores its own left items against the right items of all ranks, a chunk of its own at a time; sums over
    the left items of all ranks are exchanged. Memory grows with the items, not with their pairs. The loss is 0 with
    zero gradient if no item has a positive.
    """

    def loss(self, left: Items, right: Items, grades: Grades, scale: Tensor) -> Tensor:
        right = gather(right)

        def compute(gradients: bool) -> Known:
            return graded_contrastive(
                left,
                right,
                grades,
                scale,
                chunk_rows=self.chunk_rows,
                gradients=gradients,
                add=all_reduce_sum,
                highest=all_reduce_max,
            )

        return world_size() * with_gradients(compute, (left.embeds, right.embeds, scale))


@register_loss("sigmoid")
class GradedSigmoidLoss(PairLoss):
    """[`graded_sigmoid`] of the pairs of all ranks.

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
        bias = self.logit_bias.to(left.embeds.dtype)

        def compute(gradients: bool) -> Known:
            visitor, mask, size = right.embeds, right.mask.to(torch.uint8), len(right.mask)
            total, sums = left.embeds.new_zeros(()), [torch.zeros_like(value) for value in inputs]
            for visit in range(world_size()):
                first = (rank() - visit) % world_size() * size
                items = Items(visitor, mask.bool())
                known = graded_sigmoid(
                    left,
                    items,
                    grades,
                    scale,
                    bias,
                    first=first,
                    chunk_rows=self.chunk_rows,
                    gradients=gradients,
                )
                total += known.value
                for own, found in zip(sums, known.gradients, strict=False):
                    own += found
                visitor, mask, sums[1] = ring_shift(visitor, mask, sums[1])
            return Known(total, tuple(sums))

        inputs = left.embeds, right.embeds, scale, bias
        return world_size() * with_gradients(compute, inputs) / all_reduce_sum(left.mask.sum()).clamp_min(1)


def gather(items: Items) -> Items:
    """The items of all ranks, in rank order; gradients are summed over the ranks."""
    return Items(all_gather_rows(items.embeds), all_gather_rows(items.mask.to(torch.uint8)).bool())
