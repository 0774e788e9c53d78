"""Recall@k and nDCG@k: pure functions of grade tensors, and torchmetrics classes for validation loops.

torchmetrics has both metrics, but it sees only the list that it is handed: fed a top-k list, its recall divides by the
relevant products *in the list* and its ideal is the list re-sorted, so relevant products that were not retrieved cost
nothing and both numbers come out too high. Ours are given what the whole pool holds.
"""

import torch
from torch import Tensor
from torchmetrics import Metric


def has_relevant(num_relevant: Tensor) -> Tensor:
    """Marks the queries over which a mean recall is defined.

    Args:
        num_relevant: Integer [Q], relevant products of each query in the whole pool.

    Returns:
        bool [Q], False where the query has no relevant product.

    >>> has_relevant(torch.tensor([2, 0]))
    tensor([ True, False])
    """
    return num_relevant > 0


def has_gain(ideal_grades: Tensor) -> Tensor:
    """Marks the queries over which a mean nDCG is defined.

    Args:
        ideal_grades: Integer [Q, K], each query's highest grades in the pool, descending, padded with 0.

    Returns:
        bool [Q], False where no product of the pool has a grade above 0 for the query.

    >>> has_gain(torch.tensor([[3, 1], [0, 0]]))
    tensor([ True, False])
    """
    return (ideal_grades > 0).any(dim=1)


def recall_at_k(ranked_grades: Tensor, num_relevant: Tensor, k: int, *, relevant_grade: int) -> Tensor:
    """Share of a query's relevant products that are among its first k.

    Args:
        ranked_grades: Integer [Q, K], grades in ranked order, 0 for unjudged products and for padding. Where K is
            below k, the ranking ends there.
        num_relevant: Integer [Q], products of the whole pool with at least `relevant_grade`, retrieved or not.
        k: Cut-off, at least 1.
        relevant_grade: Lowest grade that counts as relevant, at least 1.

    Returns:
        float64 [Q] in [0, 1], never NaN: 0 for a query without a relevant product. Leave such queries out of a mean
        with `has_relevant(num_relevant)`.

    Raises:
        ValueError: Shapes do not fit, k or relevant_grade is below 1, or a ranking holds more relevant products than
            its query has.

    >>> recall_at_k(torch.tensor([[3, 0, 1], [1, 1, 1]]), torch.tensor([2, 0]), k=3, relevant_grade=3)
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    _check(ranked_grades, num_relevant, k, expected_dim=1)
    if relevant_grade < 1:
        raise ValueError(f"relevant_grade={relevant_grade} would make unjudged products relevant; pass 1 or more")
    found = (ranked_grades[:, :k] >= relevant_grade).sum(dim=1)
    if bool((found > num_relevant).any()):
        row = int((found > num_relevant).nonzero()[0, 0])
        raise ValueError(
            f"row {row} has {int(found[row])} relevant products among its first {k} but num_relevant says "
            f"{int(num_relevant[row])}; count over the whole pool and rank no product twice"
        )
    return found.to(torch.float64) / num_relevant.clamp(min=1).to(torch.float64)


def ndcg_at_k(ranked_grades: Tensor, ideal_grades: Tensor, k: int) -> Tensor:
    """Normalised discounted cumulative gain of the first k with linear gain (gain = grade).

    Args:
        ranked_grades: Integer [Q, K], grades in ranked order, 0 for unjudged products and for padding. Where K is
            below k, the ranking ends there.
        ideal_grades: Integer [Q, I], the highest grades among *all* judged products of the pool, descending, padded
            with 0. At least min(k, judged products) columns are needed.
        k: Cut-off, at least 1.

    Returns:
        float64 [Q] in [0, 1], never NaN: 0 for a query whose ideal is 0. Leave such queries out of a mean with
        `has_gain(ideal_grades)`.

    Raises:
        ValueError: Shapes do not fit, k is below 1, or `ideal_grades` is not descending.

    >>> ndcg_at_k(torch.tensor([[1, 3], [3, 1], [0, 0]]), torch.tensor([[3, 1], [3, 1], [0, 0]]), k=2)
    tensor([0.7967, 1.0000, 0.0000], dtype=torch.float64)
    """
    _check(ranked_grades, ideal_grades, k, expected_dim=2)
    if bool((ideal_grades.diff(dim=1) > 0).any()):
        row = int((ideal_grades.diff(dim=1) > 0).any(dim=1).nonzero()[0, 0])
        raise ValueError(f"ideal_grades row {row} is {ideal_grades[row].tolist()}; sort it in descending order")
    ideal = discounted_gain(ideal_grades[:, :k])
    gain = discounted_gain(ranked_grades[:, :k])
    return torch.where(ideal > 0, gain / ideal.clamp(min=torch.finfo(ideal.dtype).tiny), torch.zeros_like(ideal))


def discounted_gain(grades: Tensor) -> Tensor:
    """Sum of grade / log2(place + 1) over the places 1..K.

    Args:
        grades: Integer [Q, K] in ranked order.

    Returns:
        float64 [Q].

    >>> discounted_gain(torch.tensor([[3, 0, 2]]))
    tensor([4.], dtype=torch.float64)
    """
    places = torch.arange(2, grades.shape[1] + 2, dtype=torch.float64, device=grades.device)
    return (grades.to(torch.float64) / places.log2()).sum(dim=1)


def _check(ranked_grades: Tensor, other: Tensor, k: int, *, expected_dim: int) -> None:
    if k < 1:
        raise ValueError(f"k={k}: the cut-off must be at least 1")
    if ranked_grades.ndim != 2 or other.ndim != expected_dim or ranked_grades.shape[0] != other.shape[0]:
        raise ValueError(
            f"got shapes {tuple(ranked_grades.shape)} and {tuple(other.shape)}; pass ranked grades [queries, places] "
            f"and a {expected_dim}-dimensional tensor for the same queries"
        )
    if ranked_grades.is_floating_point() or other.is_floating_point():
        raise ValueError(f"got dtypes {ranked_grades.dtype} and {other.dtype}; pass integer grades and counts")


class _QueryMean(Metric):
    """Mean over queries; the states are sums, so ranks may see different numbers of queries."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    num_queries: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k={k}: the cut-off must be at least 1")
        self.k = k
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_queries", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, values: Tensor, counted: Tensor) -> None:
        self.total += values[counted].sum()
        self.num_queries += counted.sum()

    def compute(self) -> Tensor:
        """Mean over the counted queries of all ranks, float64 scalar.

        Raises:
            ValueError: no query with a relevant product was seen.
        """
        if int(self.num_queries) == 0:
            raise ValueError(
                f"{type(self).__name__} saw no query with a relevant product: check the qrels of this split and the "
                "relevant grade"
            )
        return self.total / self.num_queries


class RetrievalRecallAtK(_QueryMean):
    """Mean Recall@k over the queries that have a relevant product.

    Args:
        k: Cut-off, at least 1.
        relevant_grade: Lowest grade that counts as relevant.

    >>> metric = RetrievalRecallAtK(2, relevant_grade=3)
    >>> metric.update(torch.tensor([[3, 0, 3], [0, 0, 0]]), torch.tensor([2, 0]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    def __init__(self, k: int, *, relevant_grade: int) -> None:
        super().__init__(k)
        self.relevant_grade = relevant_grade

    def update(self, ranked_grades: Tensor, num_relevant: Tensor) -> None:
        """Adds rankings: grades int [Q, K] in ranked order and relevant products in the whole pool int [Q]."""
        values = recall_at_k(ranked_grades, num_relevant, self.k, relevant_grade=self.relevant_grade)
        self._add(values, has_relevant(num_relevant))


class RetrievalNDCGAtK(_QueryMean):
    """Mean nDCG@k with linear gain over the queries that have a product of grade above 0.

    Args:
        k: Cut-off, at least 1.

    >>> metric = RetrievalNDCGAtK(1)
    >>> metric.update(torch.tensor([[1, 3]]), torch.tensor([[3, 1]]))
    >>> metric.compute()
    tensor(0.3333, dtype=torch.float64)
    """

    def update(self, ranked_grades: Tensor, ideal_grades: Tensor) -> None:
        """Adds rankings: grades int [Q, K] in ranked order and the pool's highest grades int [Q, I], descending."""
        self._add(ndcg_at_k(ranked_grades, ideal_grades, self.k), has_gain(ideal_grades))
