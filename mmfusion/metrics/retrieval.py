"""Recall@k and nDCG@k as torchmetrics classes for validation loops."""

import torch
from torch import Tensor
from torchmetrics import Metric

from mmfusion.metrics.functional import has_gain, has_relevant, ndcg_at_k, recall_at_k

# torchmetrics has both metrics, but it sees only the list that it is handed: fed a top-k list, its recall divides by
# the relevant products *in the list* and its ideal is the list re-sorted, so unretrieved relevant products cost nothing
# and both numbers come out too high. Ours are told what the whole pool holds.


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
        k: cut-off, at least 1.
        relevant_grade: lowest grade that counts as relevant.

    >>> metric = RetrievalRecallAtK(2, relevant_grade=3)
    >>> metric.update(torch.tensor([[3, 0, 3], [0, 0, 0]]), torch.tensor([2, 0]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    def __init__(self, k: int, *, relevant_grade: int) -> None:
        super().__init__(k)
        self.relevant_grade = relevant_grade

    def update(self, ranked_grades: Tensor, num_relevant: Tensor) -> None:
        """Add rankings: grades int [Q, K] in ranked order and relevant products in the whole pool int [Q]."""
        values = recall_at_k(ranked_grades, num_relevant, self.k, relevant_grade=self.relevant_grade)
        self._add(values, has_relevant(num_relevant))


class RetrievalNDCGAtK(_QueryMean):
    """Mean nDCG@k with linear gain over the queries that have a product of grade above 0.

    Args:
        k: cut-off, at least 1.

    >>> metric = RetrievalNDCGAtK(1)
    >>> metric.update(torch.tensor([[1, 3]]), torch.tensor([[3, 1]]))
    >>> metric.compute()
    tensor(0.3333, dtype=torch.float64)
    """

    def update(self, ranked_grades: Tensor, ideal_grades: Tensor) -> None:
        """Add rankings: grades int [Q, K] in ranked order and the pool's highest grades int [Q, I], descending."""
        self._add(ndcg_at_k(ranked_grades, ideal_grades, self.k), has_gain(ideal_grades))
