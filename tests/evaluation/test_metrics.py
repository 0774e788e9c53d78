"""Recall@k and nDCG@k against slow twins; the torchmetrics classes, also under two processes."""

import math
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfusion.evaluation.metrics import (
    RetrievalNDCGAtK,
    RetrievalRecallAtK,
    discounted_gain,
    has_gain,
    has_relevant,
    ndcg_at_k,
    recall_at_k,
)


def slow_recall(grades: list[int], num_relevant: int, k: int, relevant_grade: int) -> float:
    found = 0
    for grade in grades[:k]:
        if grade >= relevant_grade:
            found += 1
    return found / num_relevant if num_relevant else 0.0


def slow_ndcg(grades: list[int], ideal: list[int], k: int) -> float:
    def dcg(ordered: list[int]) -> float:
        return sum(grade / math.log2(place + 1) for place, grade in enumerate(ordered[:k], start=1))

    return dcg(grades) / dcg(ideal) if dcg(ideal) else 0.0


@st.composite
def judged_rankings(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """Per query the grades of its first K products and of all N products of the pool."""
    num_queries, num_products = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    places = draw(st.integers(1, num_products))
    grade = st.integers(0, 4)
    pools = [draw(st.lists(grade, min_size=num_products, max_size=num_products)) for _ in range(num_queries)]
    return [pool[:places] for pool in pools], pools


@settings(deadline=None)
@given(judged_rankings(), st.integers(1, 12), st.integers(1, 4))
def test_metrics_equal_their_slow_twins(
    judged: tuple[list[list[int]], list[list[int]]], k: int, relevant_grade: int
) -> None:
    ranked, pools = judged
    ideal = [sorted(pool, reverse=True) for pool in pools]
    num_relevant = [sum(grade >= relevant_grade for grade in pool) for pool in pools]
    recall = recall_at_k(torch.tensor(ranked), torch.tensor(num_relevant), k, relevant_grade=relevant_grade)
    ndcg = ndcg_at_k(torch.tensor(ranked), torch.tensor(ideal), k)
    pairs = zip(ranked, num_relevant, strict=True)
    assert recall.tolist() == pytest.approx([slow_recall(g, n, k, relevant_grade) for g, n in pairs])
    assert ndcg.tolist() == pytest.approx([slow_ndcg(g, i, k) for g, i in zip(ranked, ideal, strict=True)])
    assert has_relevant(torch.tensor(num_relevant)).tolist() == [n > 0 for n in num_relevant]
    assert has_gain(torch.tensor(ideal)).tolist() == [i[0] > 0 for i in ideal]
    for values in (recall, ndcg):
        assert values.dtype == torch.float64
        assert bool(((values >= 0) & (values <= 1 + 1e-12)).all())


def test_unretrieved_relevant_products_lower_recall_and_ndcg() -> None:
    ranked = torch.tensor([[3, 0]])
    assert recall_at_k(ranked, torch.tensor([4]), 2, relevant_grade=3).item() == 0.25
    assert (
        ndcg_at_k(ranked, torch.tensor([[3, 3]]), 2).item() < 1 == ndcg_at_k(ranked, torch.tensor([[3, 0]]), 2).item()
    )


def test_gain_is_linear_not_exponential() -> None:
    assert discounted_gain(torch.tensor([[3]])).item() == 3


@pytest.mark.parametrize("k", [0, -1])
def test_a_cut_off_below_one_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k}"):
        recall_at_k(torch.tensor([[1]]), torch.tensor([1]), k, relevant_grade=1)
    with pytest.raises(ValueError, match=f"k={k}"):
        ndcg_at_k(torch.tensor([[1]]), torch.tensor([[1]]), k)
    with pytest.raises(ValueError, match=f"k={k}"):
        RetrievalNDCGAtK(k)


@pytest.mark.parametrize(
    ("ranked", "num_relevant", "message"),
    [
        (torch.tensor([1, 1]), torch.tensor([1]), "shapes"),
        (torch.tensor([[1], [1]]), torch.tensor([1]), "shapes"),
        (torch.tensor([[1.0]]), torch.tensor([1]), "integer grades"),
        (torch.tensor([[3, 3]]), torch.tensor([1]), "row 0 has 2 relevant .* says 1"),
    ],
)
def test_recall_refuses_input_that_does_not_fit(ranked: Tensor, num_relevant: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_at_k(ranked, num_relevant, 2, relevant_grade=1)


def test_a_relevant_grade_that_would_count_unjudged_products_is_refused() -> None:
    with pytest.raises(ValueError, match="relevant_grade=0"):
        recall_at_k(torch.tensor([[1]]), torch.tensor([1]), 1, relevant_grade=0)


def test_an_ideal_that_is_not_sorted_is_refused_with_its_row() -> None:
    with pytest.raises(ValueError, match=r"row 1 is \[1, 3\]"):
        ndcg_at_k(torch.tensor([[1], [1]]), torch.tensor([[3, 1], [1, 3]]), 2)


RANKED = torch.tensor([[3, 0, 1], [0, 3, 3], [0, 0, 0], [1, 1, 0], [0, 0, 3]])
NUM_RELEVANT = torch.tensor([2, 2, 0, 0, 1])
IDEAL = torch.tensor([[3, 3], [3, 3], [0, 0], [1, 1], [3, 0]])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_classes_are_the_mean_over_queries_that_define_the_metric(batch_size: int) -> None:
    recall, ndcg = RetrievalRecallAtK(2, relevant_grade=3), RetrievalNDCGAtK(2)
    for start in range(0, len(RANKED), batch_size):
        part = slice(start, start + batch_size)
        recall.update(RANKED[part], NUM_RELEVANT[part])
        ndcg.update(RANKED[part], IDEAL[part])
    per_query = recall_at_k(RANKED, NUM_RELEVANT, 2, relevant_grade=3)
    assert recall.compute().item() == pytest.approx(per_query[[0, 1, 4]].mean().item())
    assert ndcg.compute().item() == pytest.approx(ndcg_at_k(RANKED, IDEAL, 2)[[0, 1, 3, 4]].mean().item())


def test_classes_can_be_reset_and_reject_an_empty_mean() -> None:
    metric = RetrievalRecallAtK(2, relevant_grade=3)
    metric.update(RANKED[2:3], NUM_RELEVANT[2:3])
    with pytest.raises(ValueError, match="RetrievalRecallAtK saw no query with a relevant product"):
        metric.compute()
    metric.update(RANKED[:1], NUM_RELEVANT[:1])
    assert metric.compute().item() == 0.5
    metric.reset()
    metric.update(RANKED[4:], NUM_RELEVANT[4:])
    assert metric.compute().item() == 0


def _compute_in_process_group(rank: int, port: int, folder: str) -> None:
    address, limit = f"tcp://127.0.0.1:{port}", timedelta(seconds=600)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=limit)
    try:
        # One query on rank 0, four on rank 1: a mean of the ranks' means would differ.
        part = slice(0, 1) if rank == 0 else slice(1, None)
        torch.save(_both_means(part), Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def _both_means(part: slice) -> Tensor:
    recall, ndcg = RetrievalRecallAtK(2, relevant_grade=3), RetrievalNDCGAtK(2)
    recall.update(RANKED[part], NUM_RELEVANT[part])
    ndcg.update(RANKED[part], IDEAL[part])
    return torch.stack([recall.compute(), ndcg.compute()])


def test_two_processes_with_uneven_shares_agree_with_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The second rank is this process: starting another interpreter takes seconds.
    other = mp.spawn(_compute_in_process_group, args=(port, str(tmp_path)), nprocs=1, join=False)
    _compute_in_process_group(1, port, str(tmp_path))
    assert other.join(timeout=600)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), _both_means(slice(None)))
