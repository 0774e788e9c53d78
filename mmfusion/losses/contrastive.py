"""The graded contrastive loss over the products and queries of all ranks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmfusion.distributed import all_gather_rows, all_reduce_sum, world_size
from mmfusion.losses.functional import graded_contrastive

Grades = Callable[[Tensor, Tensor], Tensor]
MAX_LOGIT_SCALE = 100.0


class GradedContrastiveLoss(nn.Module):
    """Symmetric contrastive loss between left and right items, with negatives gathered from all ranks.

    Each rank scores its own left items against all right items and its own right items against all left items. The
    result is scaled so that the mean over ranks, which DDP takes of the gradients, is the loss of one process on the
    global batch.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        """Args: levels: Positive grades, each at least 1."""
        super().__init__()
        if not levels or min(levels) < 1:
            raise ValueError(f"levels is {list(levels)}; give at least one positive grade, all of them at least 1.")
        self.levels = tuple(sorted(levels))

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
        left, right, logit_scale = (_at_least_float32(value) for value in (left, right, logit_scale))
        scale = logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        left_mask, right_mask = _all_true(left_mask, left), _all_true(right_mask, right)
        all_left, all_left_rows, all_left_mask = _gather(left, left_rows, left_mask)
        all_right, all_right_rows, all_right_mask = _gather(right, right_rows, right_mask)
        forward_logits = _masked(scale * left @ all_right.T, left_mask, all_right_mask)
        backward_logits = _masked(scale * right @ all_left.T, right_mask, all_left_mask)
        terms = (
            graded_contrastive(forward_logits, grades(left_rows, all_right_rows), self.levels),
            graded_contrastive(backward_logits, grades(all_left_rows, right_rows).T, self.levels),
        )
        return (
            0.5
            * world_size()
            * sum((total / all_reduce_sum(count).clamp_min(1) for total, count in terms), start=left.new_zeros(()))
        )


def _at_least_float32(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _all_true(mask: Tensor | None, items: Tensor) -> Tensor:
    return torch.ones(len(items), dtype=torch.bool, device=items.device) if mask is None else mask


def _gather(embeds: Tensor, rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return all_gather_rows(embeds), all_gather_rows(rows), all_gather_rows(mask.to(torch.uint8)).bool()


def _masked(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return logits.masked_fill(~(rows[:, None] & columns[None, :]), float("-inf"))
