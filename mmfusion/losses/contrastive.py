"""The graded contrastive loss over the products and queries of all ranks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmfusion.distributed import all_gather_rows, all_reduce_sum, world_size
from mmfusion.losses.chunked import sum_over_pairs, with_gradients
from mmfusion.losses.functional import graded_contrastive
from mmfusion.losses.inputs import Grades, all_true, at_least_float32, checked_levels, clipped_scale


class GradedContrastiveLoss(nn.Module):
    """Symmetric contrastive loss between left and right items, with negatives gathered from all ranks.

    Each rank scores its own left items against all right items and its own right items against all left items, a chunk
    of its own at a time: memory grows with the items, not with their pairs. The result is scaled so that the mean over
    ranks, which DDP takes of the gradients, is the loss of one process on the global batch.
    """

    def __init__(self, levels: Sequence[int], *, chunk_rows: int | None = None) -> None:
        """Args: levels: Positive grades, each at least 1. chunk_rows: Items at once; None chooses by memory."""
        super().__init__()
        self.levels = checked_levels(levels)
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
            left: (L, D) L2-normalised embeddings of this rank.
            right: (R, D) of this rank; L and R are the same on each rank.
            left_rows: (L,) int64 row of each left item in its table.
            right_rows: (R,) int64.
            grades: Function of left rows (any A) and right rows (any B) that gives (A, B) int64 grades.
            logit_scale: Scalar log inverse temperature; clipped at log(100) as in CLIP.
            left_mask: (L,) bool; False takes an item out altogether. None means all True.
            right_mask: (R,) bool, in the same way.

        Returns:
            Scalar, at least float32; 0 with zero gradient if no item has a positive.
        """
        left, right, logit_scale = (at_least_float32(value) for value in (left, right, logit_scale))
        scale = clipped_scale(logit_scale)
        left_mask, right_mask = all_true(left_mask, left), all_true(right_mask, right)
        all_left, all_left_rows, all_left_mask = _gather(left, left_rows, left_mask)
        all_right, all_right_rows, all_right_mask = _gather(right, right_rows, right_mask)
        forward = self._mean(
            left, all_right, left_mask, all_right_mask, lambda own: grades(left_rows[own], all_right_rows), scale
        )
        backward = self._mean(
            right, all_left, right_mask, all_left_mask, lambda own: grades(all_left_rows, right_rows[own]).T, scale
        )
        return 0.5 * world_size() * (forward + backward)

    def _mean(
        self,
        own: Tensor,
        others: Tensor,
        own_mask: Tensor,
        others_mask: Tensor,
        grades_of: Callable[[slice], Tensor],
        scale: Tensor,
    ) -> Tensor:
        """This rank's part of the mean over the items of all ranks that have a positive among the others."""

        def block(rows: slice, own: Tensor, others: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            logits = _masked(scale * own @ others.T, own_mask[rows], others_mask)
            return graded_contrastive(logits, grades_of(rows), self.levels)

        pairs = sum_over_pairs(block, own, others, [scale], self.chunk_rows)
        total = with_gradients(pairs.total, [own, others, scale], pairs.gradients)
        return total / all_reduce_sum(pairs.counted).clamp_min(1)


def _gather(embeds: Tensor, rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return all_gather_rows(embeds), all_gather_rows(rows), all_gather_rows(mask.to(torch.uint8)).bool()


def _masked(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return logits.masked_fill(~(rows[:, None] & columns[None, :]), float("-inf"))
