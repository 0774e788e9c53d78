"""The graded pairwise sigmoid loss, with the right items of all ranks passed around in a circle."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmfusion.distributed import all_reduce_sum, ring_shift, world_size
from mmfusion.losses.chunked import PairSum, sum_over_pairs, with_gradients
from mmfusion.losses.functional import graded_sigmoid
from mmfusion.losses.inputs import Grades, all_true, at_least_float32, checked_levels, clipped_scale

START_BIAS = -10.0


class GradedSigmoidLoss(nn.Module):
    """SigLIP's loss (arXiv:2303.15343) for graded pairs: each pair of a left and a right item is a match or is not.

    A rank never holds more than its own left items, one rank's right items, and a chunk of their pairs. The right items
    go around all ranks and collect their gradients on the way, so that the backward pass communicates nothing; it
    expects the same weight of the loss on each rank. The mean over ranks, which DDP takes of the gradients, is the loss
    of one process on the global batch.

    Attributes:
        logit_bias: Scalar that makes up for the few matches among all pairs. It is the same for all pairs and ranks
            nothing, so that it belongs to the loss, is kept in checkpoints, and has no place in a published model.
    """

    def __init__(self, levels: Sequence[int], *, chunk_rows: int | None = None) -> None:
        """Args: levels: Positive grades, each at least 1. chunk_rows: Items at once; None chooses by memory."""
        super().__init__()
        self.levels = checked_levels(levels)
        self.chunk_rows = chunk_rows
        self.logit_bias = nn.Parameter(torch.tensor(START_BIAS))

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
        """The loss, a sum over all pairs divided by the number of left items, as in the paper.

        Args: As those of [`GradedContrastiveLoss.forward`].

        Returns:
            Scalar, at least float32; 0 if all left items are masked.
        """
        left, right, logit_scale = (at_least_float32(value) for value in (left, right, logit_scale))
        left_mask, right_mask = all_true(left_mask, left), all_true(right_mask, right)
        inputs = left, right, clipped_scale(logit_scale), self.logit_bias.to(left.dtype)

        def meet(right: Tensor, right_rows: Tensor, right_mask: Tensor) -> PairSum:
            def block(own: slice, left: Tensor, right: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
                there = left_mask[own][:, None] & right_mask[None, :]
                logits = (scale * left @ right.T + bias).masked_fill(~there, float("-inf"))
                return graded_sigmoid(logits, grades(left_rows[own], right_rows), self.levels), left_mask[own].sum()

            return sum_over_pairs(block, left, right, inputs[2:], self.chunk_rows)

        total, gradients = _meet_all_ranks(meet, inputs, right_rows, right_mask)
        mean = with_gradients(total, inputs, gradients) / all_reduce_sum(left_mask.sum()).clamp_min(1)
        return world_size() * mean


def _meet_all_ranks(
    meet: Callable[[Tensor, Tensor, Tensor], PairSum], inputs: Sequence[Tensor], rows: Tensor, mask: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Sum over this rank's left and all right items, and gradients; that of its right items is of all ranks' sums."""
    visitor, mask = inputs[1].detach(), mask.to(torch.uint8)
    total, gradients = visitor.new_zeros(()), [torch.zeros_like(value) for value in inputs]
    for _ in range(world_size()):
        pairs = meet(visitor, rows, mask.bool())
        total += pairs.total
        for gradient, found in zip(gradients, pairs.gradients, strict=True):
            gradient += found
        visitor, rows, mask, gradients[1] = ring_shift(visitor, rows, mask, gradients[1])
    return total, gradients
