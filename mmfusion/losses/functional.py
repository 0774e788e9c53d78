"""Graded losses with several positives per item, and their gradients, as functions of embeddings and grades."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfusion.losses.chunked import Known, Scores, logsumexp
from mmfusion.losses.grades import Grades, Items

Reduce = Callable[[Tensor], Tensor]


def graded_contrastive(
    left: Items,
    right: Items,
    grades: Grades,
    scale: Tensor,
    *,
    chunk_rows: int | None = None,
    gradients: bool = True,
    add: Reduce = lambda value: value,
    highest: Reduce = lambda value: value,
) -> Known:
    """Symmetric softmax contrastive loss with several graded positives per item.

    Each positive of grade g competes only with candidates of a lower grade, alone in the numerator:
    `-log(exp(s_p) / (exp(s_p) + sum over grade < g of exp(s_n)))`. Positives of the same query are thus never each
    other's negatives, and a near miss (lower grade) is a negative for the better match and a positive against the
    rest. Terms of one level are averaged, levels are weighted by the linear gain of nDCG, `g / max(levels)`. The loss
    is the mean over left items that have a positive among the right ones, and the same the other way round, halved.
    With one level and one positive per item this is InfoNCE (arXiv:1807.03748); the multi-positive form follows
    SupCon's L_out (arXiv:2004.11362) with other positives taken out of the denominator.

    Graded pairs are few. Each chunk of scores is therefore summed up as if they were not there, for rows and for
    columns, and what is told apart by grade is computed for these pairs alone. As the gradient of a score is known once
    its row and its column are, a second look at the scores gives all gradients: four products of matrices, or three
    where one chunk has all pairs, and the memory of a chunk.

    Args:
        left: (L, D) items of this rank.
        right: (R, D) items of all ranks.
        grades: Of their pairs; one that is not in its `levels` only orders negatives.
        scale: Scalar that scores are multiplied by.
        chunk_rows: Left items at once; None chooses by memory.
        gradients: Whether those with respect to left items, right items and scale are wanted.
        add, highest: Sum and maximum over ranks of a tensor of the same shape on each.

    Returns:
        The part of this rank: over ranks the values add up to the loss, as do the gradients of right items and scale.
    """
    scores = Scores(left, right, scale, chunk_rows)
    of_pairs = scores.rows.new_empty(len(grades.left))
    of_rows, of_columns = (embeds.new_full((len(embeds),), -torch.inf) for embeds in (scores.rows, scores.columns))
    for own in scores.slices():
        chunk, pairs = scores.of(own), grades.pairs_of(own)
        at = (grades.left[pairs] - own.start) * len(scores.columns) + grades.right[pairs]
        of_pairs[pairs] = chunk.view(-1)[at]
        chunk.view(-1).index_fill_(0, at, -torch.inf)
        of_rows[own] = logsumexp(chunk, 1, scores.buffer)
        of_columns = torch.logaddexp(of_columns, logsumexp(chunk, 0, scores.buffer))
    sides = (
        _compete(grades.left, of_pairs, grades, of_rows, lambda value: value, lambda value: value),
        _compete(grades.right, of_pairs, grades, of_columns, add, highest),
    )
    shares = [0.5 / counted.clamp_min(1) for counted in (add(sides[0].counted), sides[1].counted)]
    value = shares[0] * sides[0].total + shares[1] * sides[1].total
    if not gradients:
        return Known(value, ())
    of_row, of_column = (share.log() + side.push for share, side in zip(shares, sides, strict=True))
    of_pair = shares[0] * sides[0].gradient + shares[1] * sides[1].gradient
    of_left, of_right = torch.empty_like(scores.rows), torch.zeros_like(scores.columns)
    for own in scores.slices():
        chunk, pairs = chunk if scores.only_one else scores.of(own), grades.pairs_of(own)
        at = (grades.left[pairs] - own.start) * len(scores.columns) + grades.right[pairs]
        by_row = torch.add(chunk, of_row[own, None], out=scores.buffer[: len(chunk)]).exp_()
        chunk.add_(of_column).exp_().add_(by_row)
        chunk.view(-1)[at] = of_pair[pairs]
        torch.mm(chunk, scores.columns, out=of_left[own])
        of_right.addmm_(chunk.T, scores.rows[own])
    return Known(value, (of_left * scale, of_right, (of_left * scores.rows).sum() / scale))


class _Side(NamedTuple):
    """One direction of the contrastive loss, for n items that rank the others.

    Attributes:
        total: Scalar, sum of the loss over items, as far as it is of these pairs.
        counted: Scalar, items of all ranks that have a positive.
        push: (n,), so that exp(score + push) is the gradient of the score of a pair without a grade.
        gradient: (E,), that of the scores of pairs.
    """

    total: Tensor
    counted: Tensor
    push: Tensor
    gradient: Tensor


def _compete(index: Tensor, score: Tensor, grades: Grades, ungraded: Tensor, add: Reduce, highest: Reduce) -> _Side:
    """What graded pairs cost the items `index` (E,), of whose other scores `ungraded` (n,) is the log-sum-exp."""
    levels, shape = grades.levels, (len(grades.levels), len(ungraded))
    index = index.expand(len(levels), -1)
    excluded = torch.isneginf(score)
    positive = torch.stack([(grades.grade == level) & ~excluded for level in levels])
    lower = torch.stack([score.masked_fill(grades.grade >= level, -torch.inf) for level in levels])
    # Of each item and level: the log of the sum over candidates of a lower grade, and the number of positives.
    floor = torch.finfo(score.dtype).min
    top = highest(ungraded.expand(shape).scatter_reduce(1, index, lower, "amax").clamp_min(floor))
    sums = (ungraded - top).exp_().scatter_add_(1, index, (lower - top.gather(1, index)).exp_())
    sums, counts = add(torch.stack([sums, torch.zeros_like(sums).scatter_add_(1, index, positive.to(score.dtype))]))
    negatives = sums.log() + top
    met = counts > 0
    gain = torch.stack([(level / max(levels)) * one.to(score.dtype) for one, level in zip(met, levels, strict=True)])
    share = gain / gain.sum(0).clamp_min(torch.finfo(score.dtype).tiny) / counts.clamp_min(1)
    # An item of which all candidates are positives has nothing to be ranked above: softplus(-inf) is its exact 0.
    margin = (negatives.gather(1, index) - score).masked_fill(~positive, -torch.inf)
    share = share.gather(1, index)
    pull = share * margin.sigmoid()
    pushed = add(torch.zeros_like(sums).scatter_add_(1, index, pull))
    push = (pushed.log() - negatives).masked_fill(pushed == 0, -torch.inf)
    gradient = (push.gather(1, index) + lower).exp_().sub_(pull).sum(0)
    total = (share * F.softplus(margin)).sum()
    return _Side(total, met.any(0).sum(dtype=score.dtype), push.logsumexp(0), gradient)


def graded_sigmoid(
    left: Items,
    right: Items,
    grades: Grades,
    scale: Tensor,
    bias: Tensor,
    *,
    first: int = 0,
    chunk_rows: int | None = None,
    gradients: bool = True,
) -> Known:
    """Sum over all pairs of the binary cross-entropy of a match, SigLIP's loss (arXiv:2303.15343) for graded pairs.

    The label of a pair is the linear gain of nDCG, `g / max(levels)`: 1 for the highest grade, 0 for "not relevant",
    and between them for a near miss, whose score should end up between both. Each pair is judged by itself, so that
    several positives of a query do not compete. With one level this is SigLIP's formula.

    Args:
        left: (L, D) items of this rank.
        right: (R, D) items, those of one rank.
        grades: Of pairs with right items of all ranks; one that is not in its `levels` counts as "not relevant".
        scale: Scalar that scores are multiplied by.
        bias: Scalar that is added to them.
        first: Position of the first of these right items among those of all ranks.
        chunk_rows: Left items at once; None chooses by memory.
        gradients: Whether those with respect to left items, right items, scale and bias are wanted.
    """
    scores = Scores(left, right, scale, chunk_rows)
    total, of_bias = scores.rows.new_zeros(()), scores.rows.new_zeros(())
    of_left, of_right = torch.empty_like(scores.rows), torch.zeros_like(scores.columns)
    width, place = len(scores.columns), grades.right - first
    label = torch.zeros_like(grades.grade, dtype=scores.rows.dtype)
    for level in grades.levels:
        label.masked_fill_(grades.grade == level, level / max(grades.levels))
    # Pairs with items of other ranks take part as well, with a label of 0, as their number is not known to the host.
    label.masked_fill_((place < 0) | (place >= width), 0.0)
    place = place.clamp(0, width - 1)
    for own in scores.slices():
        chunk, pairs = scores.of(own).add_(bias), grades.pairs_of(own)
        at = (grades.left[pairs] - own.start) * width + place[pairs]
        of_pairs = chunk.view(-1)[at]
        excluded = torch.isneginf(of_pairs)
        there = label[pairs].masked_fill(excluded, 0.0)
        total += F.softplus(chunk).sum() - (there * of_pairs.masked_fill(excluded, 0.0)).sum()
        if gradients:
            chunk.sigmoid_().view(-1).index_add_(0, at, -there)
            of_bias += chunk.sum()
            torch.mm(chunk, scores.columns, out=of_left[own])
            of_right.addmm_(chunk.T, scores.rows[own])
    if not gradients:
        return Known(total, ())
    return Known(total, (of_left * scale, of_right, (of_left * scores.rows).sum() / scale, of_bias))
