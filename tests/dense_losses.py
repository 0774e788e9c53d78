"""The losses over pairs by their plain formulas: one dense matrix of all pairs, which autograd differentiates."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfusion.distributed import gather_on_host
from mmfusion.losses import GradedContrastiveLoss, GradedSigmoidLoss, Grades, graded

LEVELS = (1, 3)
LOSSES = {"contrastive": GradedContrastiveLoss, "sigmoid": GradedSigmoidLoss}


def contrastive_of_rows(logits: Tensor, grades: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The contrastive loss of rows as mmfusion computed it at first: sum over rows that have a positive, their number.

    Args:
        logits: (rows, candidates) float similarities times the logit scale; -inf excludes a candidate.
        grades: (rows, candidates) int, 0 for "not relevant"; a grade that is not in `levels` only orders negatives.
        levels: Positive grades, each at least 1.
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
        gain = (count > 0).to(loss.dtype) * (level / max(levels))
        loss, weight = loss + gain * term, weight + gain
    has_positive = weight > 0
    return (loss[has_positive] / weight[has_positive]).sum(), has_positive.sum()


def of_table(table: Tensor, levels: Sequence[int] = LEVELS) -> Grades:
    """The grades of a matrix (left items, right items of all ranks)."""
    left, right = table.nonzero(as_tuple=True)
    return graded(left, right, table[left, right], len(table), levels)


def dense_contrastive(logits: Tensor, grades: Tensor, bias: Tensor) -> Tensor:
    """Mean over rows and mean over columns, halved; -inf excludes a pair."""
    sums = contrastive_of_rows(logits, grades, LEVELS), contrastive_of_rows(logits.T, grades.T, LEVELS)
    return 0.5 * sum((total / count.clamp_min(1) for total, count in sums), start=torch.zeros(()))


def dense_sigmoid(logits: Tensor, grades: Tensor, bias: Tensor) -> Tensor:
    """Binary cross-entropy of all pairs that are not excluded, over the number of rows that are not excluded."""
    there = torch.isfinite(logits)
    label = torch.where(torch.isin(grades, torch.tensor(LEVELS)), grades, 0).to(logits.dtype) / max(LEVELS)
    losses = F.binary_cross_entropy_with_logits((logits + bias)[there], label[there], reduction="sum")
    return losses / there.any(1).sum().clamp_min(1)


DENSE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "contrastive": dense_contrastive,
    "sigmoid": dense_sigmoid,
}


def draw(left: int, right: int, seed: int = 0) -> dict[str, Tensor]:
    """Embeddings in float64, rows, masks, and a table (20, 30) of grades by row; some rows occur twice."""
    generator = torch.Generator().manual_seed(seed)
    grades = torch.randint(0, 4, (20, 30), generator=generator) * (torch.rand(20, 30, generator=generator) < 0.3)
    return {
        "left": F.normalize(torch.randn(left, 6, generator=generator, dtype=torch.float64), dim=-1),
        "right": F.normalize(torch.randn(right, 6, generator=generator, dtype=torch.float64), dim=-1),
        "left_rows": torch.randint(0, 20, (left,), generator=generator),
        "right_rows": torch.randint(0, 30, (right,), generator=generator),
        "left_mask": torch.rand(left, generator=generator) < 0.8,
        "right_mask": torch.rand(right, generator=generator) < 0.8,
        "grades": grades,
    }


def part(items: dict[str, Tensor], rank: int, ranks: int) -> dict[str, Tensor]:
    """What one rank holds of the items."""
    return {name: value if name == "grades" else value.chunk(ranks)[rank] for name, value in items.items()}


def slow(name: str, items: dict[str, Tensor]) -> dict[str, Tensor]:
    """Value and gradients by the dense formula."""
    left, right, scale, bias = _leaves(items)
    there = items["left_mask"][:, None] & items["right_mask"][None, :]
    logits = (scale.exp().clamp(max=100.0) * left @ right.T).masked_fill(~there, float("-inf"))
    value = DENSE[name](logits, items["grades"][items["left_rows"]][:, items["right_rows"]], bias)
    return _results(value, (left, right, scale, bias))


def fast(name: str, items: dict[str, Tensor], chunk_rows: int | None = None) -> dict[str, Tensor]:
    """Value and gradients by the shipped loss."""
    loss = LOSSES[name](chunk_rows=chunk_rows).double()
    left, right, scale, bias = _leaves(items)
    if isinstance(loss, GradedSigmoidLoss):
        with torch.no_grad():
            loss.logit_bias.copy_(bias)
        bias = loss.logit_bias

    grades = of_table(items["grades"][items["left_rows"]][:, gather_on_host(items["right_rows"])])
    masks = {name: items[name] for name in ("left_mask", "right_mask")}
    value = loss(left, right, grades, scale, **masks)
    # A factor, as a gradient that ignores the one it is given would go unnoticed.
    return {**_results(2.5 * value, (left, right, scale, bias), 1 / 2.5), "value": value.detach()}


def _leaves(items: dict[str, Tensor]) -> tuple[Tensor, ...]:
    scalars = (torch.tensor(value, dtype=torch.float64) for value in (2.0, -1.5))
    return tuple(value.clone().requires_grad_() for value in (items["left"], items["right"], *scalars))


def _results(value: Tensor, leaves: Sequence[Tensor], factor: float = 1.0) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    names = ("left", "right", "scale", "bias")
    gradients = {name: factor * gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
    return {"value": value.detach(), **gradients}
