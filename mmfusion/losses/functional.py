"""Graded losses with several positives per row, as functions of logits and grades."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def graded_contrastive(logits: Tensor, grades: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Softmax contrastive loss with several graded positives per row.

    Each positive of grade g competes only with candidates of a lower grade, alone in the numerator:
    `-log(exp(s_p) / (exp(s_p) + sum over grade < g of exp(s_n)))`. Positives of the same query are thus never each
    other's negatives, and a near miss (lower grade) is a negative for the better match and a positive against the
    rest. Terms of one level are averaged, levels are weighted by the linear gain of nDCG, `g / max(levels)`.
    With one level and one positive per row this is InfoNCE (arXiv:1807.03748); the multi-positive form follows
    SupCon's L_out (arXiv:2004.11362) with other positives taken out of the denominator.

    Args:
        logits: (rows, candidates) float similarities times the logit scale; -inf excludes a candidate.
        grades: (rows, candidates) int, 0 for "not relevant"; a grade that is not in `levels` only orders negatives.
        levels: Positive grades, each at least 1.

    Returns:
        Sum of the loss over rows that have a positive, and their number, both scalars.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> total, rows = graded_contrastive(logits, torch.tensor([[1, 1, 0]]), levels=[1])
        >>> round(total.item(), 4), int(rows)
        (0.2201, 1)
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss, weight = logits.new_zeros(len(logits)), logits.new_zeros(len(logits))
    # Not isfinite: a NaN must reach the loss, where it is noticed, rather than count as excluded.
    usable = ~torch.isneginf(logits)
    # A row whose candidates are all positives has nothing to be ranked above: softplus(-inf) is its exact 0.
    floor = torch.finfo(logits.dtype).min
    finite = logits.clamp_min(floor)
    for level in levels:
        # Positives are few: only theirs of all margins are computed.
        positive = (grades == level) & usable
        row, candidate = positive.nonzero(as_tuple=True)
        count = positive.sum(1)
        margin = finite.masked_fill(grades >= level, floor).logsumexp(1)[row] - logits[row, candidate]
        term = torch.zeros_like(loss).index_add(0, row, F.softplus(margin)) / count.clamp_min(1)
        gain = (count > 0) * (level / max(levels))
        loss, weight = loss + gain * term, weight + gain
    has_positive = weight > 0
    return (loss[has_positive] / weight[has_positive]).sum(), has_positive.sum()


def graded_sigmoid(logits: Tensor, grades: Tensor, levels: Sequence[int]) -> Tensor:
    """Sum over all pairs of the binary cross-entropy of a match, SigLIP's loss (arXiv:2303.15343) for graded pairs.

    The label of a pair is the linear gain of nDCG, `g / max(levels)`: 1 for the highest grade, 0 for "not relevant",
    and between them for a near miss, whose score should end up between both. Each pair is judged by itself, so that
    several positives of a query do not compete. With one level this is SigLIP's formula.

    Args:
        logits: (rows, candidates) float similarities times the logit scale plus the bias; -inf excludes a pair.
        grades: (rows, candidates) int, 0 for "not relevant", as is a grade that is not in `levels`.
        levels: Positive grades, each at least 1.

    Returns:
        Scalar, at least float32.

    Example:
        >>> logits = torch.tensor([[2.0, -1.0]])
        >>> round(graded_sigmoid(logits, torch.tensor([[1, 0]]), levels=[1]).item(), 4)
        0.4402
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    excluded = torch.isneginf(logits)
    label = torch.zeros_like(logits)
    for level in levels:
        label = label.masked_fill(grades == level, level / max(levels))
    logits = logits.masked_fill(excluded, 0.0)
    return (F.softplus(logits) - label * logits).masked_fill(excluded, 0.0).sum()
