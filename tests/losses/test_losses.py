"""The graded contrastive loss against a slow twin, in value and gradient, and its limits."""

import math

import pytest
import torch
from dense_losses import of_table
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mmfusion.losses import GradedContrastiveLoss, Grades


def of_logits(logits: Tensor, grades: Tensor, levels: list[int], excluded: Tensor | None = None) -> Tensor:
    """The loss of a matrix of logits: right items that pick a component each; rows may be excluded."""
    eye, scale = (values.to(logits.dtype) for values in (torch.eye(logits.shape[1]), torch.zeros(())))
    mask = None if excluded is None else ~excluded
    value: Tensor = GradedContrastiveLoss()(logits, eye, of_table(grades, levels), scale, left_mask=mask)
    return value


def slow(logits: Tensor, grades: Tensor, levels: list[int]) -> Tensor:
    """The definition, pair by pair."""
    total, rows = torch.zeros((), dtype=logits.dtype), 0
    for row, wanted in zip(logits, grades, strict=True):
        loss, weight = torch.zeros((), dtype=logits.dtype), 0.0
        for level in levels:
            positives = [j for j, grade in enumerate(wanted) if grade == level and torch.isfinite(row[j])]
            lower = [j for j, grade in enumerate(wanted) if grade < level and torch.isfinite(row[j])]
            if not positives:
                continue
            # -log(exp(s_p) / (exp(s_p) + sum of exp(s_n))), also where these are too large for a float.
            terms = [F.softplus(row[lower].logsumexp(0) - row[p]) for p in positives]
            loss = loss + level / max(levels) * torch.stack(terms).mean()
            weight += level / max(levels)
        if weight:
            total, rows = total + loss / weight, rows + 1
    return total / max(rows, 1)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6), st.sampled_from([1.0, 300.0]))
@settings(deadline=None, max_examples=60)
def test_equals_the_slow_twin_in_value_and_gradient(seed: int, rows: int, columns: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    excluded = torch.rand(rows, generator=generator) < 0.2
    grades = torch.randint(0, 4, (rows, columns), generator=generator)
    fast, twin = (logits.clone().requires_grad_() for _ in range(2))
    value = of_logits(fast, grades, [1, 3], excluded)
    there = twin.masked_fill(excluded[:, None], float("-inf"))
    expected = 0.5 * (slow(there, grades, [1, 3]) + slow(there.T, grades.T, [1, 3]))
    torch.testing.assert_close(value, expected)
    value.backward()
    if expected.requires_grad:
        expected.backward()
        torch.testing.assert_close(fast.grad, twin.grad)


def test_is_info_nce_for_one_positive_a_row() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    value = of_logits(logits, torch.eye(6, dtype=torch.long), [1])
    cross_entropy, targets = F.cross_entropy, torch.arange(6)
    torch.testing.assert_close(value, 0.5 * (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)))


def test_positives_of_the_same_query_are_never_negatives() -> None:
    gradients = []
    for first in (0.0, 1.0):
        logits = torch.tensor([[first, 0.0, 0.0, 0.0]], requires_grad=True)
        of_logits(logits, torch.tensor([[3, 3, 1, 0]]), [1, 3]).backward()
        assert logits.grad is not None
        gradients.append(logits.grad[0])
    # Both full matches are pulled up alike; the near miss and the rest are pushed below them.
    assert gradients[0][0] == gradients[0][1] < 0 < gradients[0][3]
    # Among the full matches, raising one does not lower the other.
    assert gradients[1][0] != gradients[0][0] and gradients[1][1] == gradients[0][1]


def test_a_row_of_positives_only_and_an_empty_one_cost_nothing() -> None:
    logits = torch.tensor([[5.0, -5.0]], requires_grad=True)
    value = of_logits(logits, torch.tensor([[1, 1]]), [1])
    value.backward()
    assert value == 0 and logits.grad is not None and (logits.grad == 0).all()
    logits = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0]])
    # The mean over one row, and over the two columns that have a positive.
    rows = F.softplus(torch.tensor([-2.0, -1.0])).mean()
    columns = F.softplus(torch.tensor([-1.0, 1.0])).mean()
    torch.testing.assert_close(of_logits(logits, torch.tensor([[1, 1, 0], [0, 0, 0]]), [1]), 0.5 * (rows + columns))


def test_a_nan_reaches_the_loss() -> None:
    for place in range(3):
        logits = torch.tensor([[1.0, 2.0, 0.0]])
        logits[0, place] = float("nan")
        assert of_logits(logits, torch.tensor([[1, 0, 0]]), [1]).isnan()


def unit(rows: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def identity(items: int) -> Grades:
    return of_table(torch.eye(items), [1])


def test_is_symmetric_and_ignores_masked_items() -> None:
    loss = GradedContrastiveLoss()
    left, right, scale = unit(5, 0), unit(5, 1), torch.tensor(math.log(10.0))
    value = loss(left, right, identity(5), scale)
    torch.testing.assert_close(value, loss(right, left, identity(5), scale))
    mask = torch.tensor([True, True, True, False, True])
    masked = loss(left, right, identity(5), scale, left_mask=mask, right_mask=mask)
    torch.testing.assert_close(masked, loss(left[mask], right[mask], identity(4), scale))
    noisy = torch.where(mask[:, None], right, torch.full_like(right, 7.0))
    torch.testing.assert_close(loss(left, noisy, identity(5), scale, left_mask=mask, right_mask=mask), masked)


def test_logit_scale_is_clipped_at_a_hundred() -> None:
    loss = GradedContrastiveLoss()
    at, beyond = (loss(unit(4, 0), unit(4, 1), identity(4), torch.tensor(math.log(value))) for value in (100.0, 1e4))
    torch.testing.assert_close(at, beyond)


@pytest.mark.parametrize("levels", [[], [0, 1], [-1]])
def test_refuses_levels_that_are_no_positive_grades(levels: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one positive grade"):
        of_table(torch.eye(2), levels)


def test_grades_are_a_table_in_which_other_pairs_have_zero() -> None:
    table = torch.tensor([[0, 2, 0], [0, 0, 0], [1, 0, 3]])
    assert torch.equal(of_table(table, [1, 2, 3]).table(3), table)


def test_half_precision_is_computed_in_single() -> None:
    half = GradedContrastiveLoss()(unit(4, 0).bfloat16(), unit(4, 1).bfloat16(), identity(4), torch.tensor(3.0))
    assert half.dtype == torch.float32
