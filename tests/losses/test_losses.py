"""The graded contrastive loss against a slow twin, in value and gradient, and its limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfusion.losses import GradedContrastiveLoss, Grades, graded_contrastive


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
            terms = [-torch.log(row[p].exp() / (row[p].exp() + sum(row[n].exp() for n in lower))) for p in positives]
            loss = loss + level / max(levels) * torch.stack(terms).mean()
            weight += level / max(levels)
        if weight:
            total, rows = total + loss / weight, rows + 1
    return total / max(rows, 1)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_equals_the_slow_twin_in_value_and_gradient(seed: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    excluded = torch.rand(rows, columns, generator=generator) < 0.2
    grades = torch.randint(0, 4, (rows, columns), generator=generator)
    fast, twin = (logits.masked_fill(excluded, float("-inf")).requires_grad_() for _ in range(2))
    total, count = graded_contrastive(fast, grades, [1, 3])
    value = total / count.clamp_min(1)
    expected = slow(twin, grades, [1, 3])
    torch.testing.assert_close(value, expected)
    if expected.requires_grad:
        value.backward()
        expected.backward()
        torch.testing.assert_close(fast.grad, twin.grad)
        assert torch.isfinite(fast.grad).all()


def test_is_info_nce_for_one_positive_a_row() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    total, count = graded_contrastive(logits, torch.eye(6, dtype=torch.long), [1])
    torch.testing.assert_close(total / count, torch.nn.functional.cross_entropy(logits, torch.arange(6)))


def test_positives_of_the_same_query_are_never_negatives() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    total, _ = graded_contrastive(logits, torch.tensor([[3, 3, 1, 0]]), [1, 3])
    total.backward()
    # Both full matches are pulled up alike; the near miss and the rest are pushed below them.
    assert logits.grad is not None
    assert logits.grad[0, 0] == logits.grad[0, 1] < 0 < logits.grad[0, 3]
    # Among the full matches, raising one does not lower the other.
    jacobian = torch.autograd.functional.hessian(
        lambda x: graded_contrastive(x, torch.tensor([[3, 3, 1, 0]]), [3])[0], torch.zeros(1, 4)
    )
    assert jacobian[0, 0, 0, 1] == 0


def test_a_row_of_positives_only_and_an_empty_one_cost_nothing() -> None:
    logits = torch.tensor([[5.0, -5.0], [1.0, 2.0]], requires_grad=True)
    total, count = graded_contrastive(logits, torch.tensor([[1, 1], [0, 0]]), [1])
    total.backward()
    assert total == 0 and count == 1
    assert logits.grad is not None and (logits.grad == 0).all()


def test_a_nan_reaches_the_loss() -> None:
    total, _ = graded_contrastive(torch.tensor([[1.0, float("nan"), 0.0]]), torch.tensor([[1, 0, 0]]), [1])
    assert total.isnan()


def unit(rows: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


IDENTITY = Grades(lambda left, right: (left[:, None] == right[None, :]).long())


def test_is_symmetric_and_ignores_masked_items() -> None:
    loss = GradedContrastiveLoss()
    left, right, rows = unit(5, 0), unit(5, 1), torch.arange(5)
    scale = torch.tensor(math.log(10.0))
    value = loss(left, right, rows, rows, IDENTITY, scale)
    torch.testing.assert_close(value, loss(right, left, rows, rows, IDENTITY, scale))
    mask = torch.tensor([True, True, True, False, True])
    masked = loss(left, right, rows, rows, IDENTITY, scale, left_mask=mask, right_mask=mask)
    torch.testing.assert_close(masked, loss(left[mask], right[mask], rows[mask], rows[mask], IDENTITY, scale))
    noisy = torch.where(mask[:, None], right, torch.full_like(right, 7.0))
    torch.testing.assert_close(loss(left, noisy, rows, rows, IDENTITY, scale, left_mask=mask, right_mask=mask), masked)


def test_logit_scale_is_clipped_at_a_hundred() -> None:
    loss, rows = GradedContrastiveLoss(), torch.arange(4)
    at, beyond = (
        loss(unit(4, 0), unit(4, 1), rows, rows, IDENTITY, torch.tensor(math.log(value))) for value in (100.0, 1e4)
    )
    torch.testing.assert_close(at, beyond)


@pytest.mark.parametrize("levels", [[], [0, 1], [-1]])
def test_refuses_levels_that_are_no_positive_grades(levels: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one positive grade"):
        Grades(IDENTITY.of_rows, levels)


def test_half_precision_is_computed_in_single() -> None:
    left, right, rows = unit(4, 0), unit(4, 1), torch.arange(4)
    half = GradedContrastiveLoss()(left.bfloat16(), right.bfloat16(), rows, rows, IDENTITY, torch.tensor(3.0))
    assert half.dtype == torch.float32
