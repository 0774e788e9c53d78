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
            right_mask: (R,) bool; False takes an item out altogether. None means all True.

        Returns:
            Scalar float32; 0 with zero gradient if no item has a positive.
        """
        if right_mask is None:
            right_mask = torch.ones(len(right), dtype=torch.bool, device=right.device)
        scale = logit_scale.float().exp().clamp(max=MAX_LOGIT_SCALE)
        left, right = left.float(), right.float()
        all_left, all_right = all_gather_rows(left), all_gather_rows(right)
        all_left_rows, all_right_rows = all_gather_rows(left_rows), all_gather_rows(right_rows)
        all_mask = all_gather_rows(right_mask.to(torch.uint8)).bool()
        forward_logits = (scale * left @ all_right.T).masked_fill(~all_mask, float("-inf"))
        backward_logits = (scale * right @ all_left.T).masked_fill(~right_mask[:, None], float("-inf"))
        terms = (
            graded_contrastive(forward_logits, grades(left_rows, all_right_rows), self.levels),
            graded_contrastive(backward_logits, grades(all_left_rows, right_rows).T, self.levels),
        )
        return 0.5 * world_size() * sum(
            (total / all_reduce_sum(count).clamp_min(1) for total, count in terms), start=left.new_zeros(())
        )
