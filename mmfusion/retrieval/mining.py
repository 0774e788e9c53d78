"""Hard negatives of train queries: products that a model ranks high although nobody judged them the best."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from mmfusion.data.qrels import Qrels
from mmfusion.retrieval.index import ProductIndex

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

# Scores of FAISS differ in their last digits from exact ones, so that places may change at the end of the window.
_SPARE = 16

_OF_POSITIVES: dict[str, Callable[[FloatArray], Any]] = {"min": np.min, "mean": np.mean, "max": np.max}


@dataclass(frozen=True)
class MiningSettings:
    """Which of the ranked products are taken, under the names of sentence-transformers' `mine_hard_negatives`.

    A margin keeps out false negatives, after NV-Retriever (arXiv:2407.15831), whose best setting is a relative margin
    of 0.05.

    Attributes:
        first_rank: First place of the window, from 1; places count all train products, positives too.
        last_rank: Last place of the window.
        num_negatives: Most negatives of a query; the highest places are taken.
        absolute_margin: A negative's score is at most that of the positive less this, at least 0; None: no such bound.
        relative_margin: The same with this share of the positive score's magnitude; None: no such bound.
        positive_score: What stands for the positive where a query has several products of its best grade.
        max_negative_grade: Highest grade of a negative. Products of a query's best grade never are.
    """

    first_rank: int = 1
    last_rank: int = 100
    num_negatives: int = 20
    absolute_margin: float | None = None
    relative_margin: float | None = 0.05
    positive_score: Literal["min", "mean", "max"] = "mean"
    max_negative_grade: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.first_rank <= self.last_rank:
            raise ValueError(
                f"The window is from first_rank {self.first_rank} to last_rank {self.last_rank}; give places from 1 "
                "on, the first one not after the last."
            )
        if self.num_negatives < 1:
            raise ValueError(f"num_negatives is {self.num_negatives}; give at least 1.")
        for name in ("absolute_margin", "relative_margin", "max_negative_grade"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} is {value}; give at least 0.")

    def highest_score(self, positive: float) -> float:
        """The highest score of a negative beside a positive's."""
        margins = []
        if self.absolute_margin is not None:
            margins.append(self.absolute_margin)
        if self.relative_margin is not None:
            margins.append(self.relative_margin * abs(positive))
        return positive - max(margins) if margins else float("inf")


class MinedNegatives(NamedTuple):
    """Negatives of some queries, in the order of the queries, hardest first; all (n,).

    Attributes:
        query: int64 query rows.
        product: int64 product rows.
        rank: int32 places among all train products, from 1.
        score: float32 inner products.
        positive_score: float32, what the margin was measured from.
    """

    query: IntArray
    product: IntArray
    rank: npt.NDArray[np.int32]
    score: FloatArray
    positive_score: FloatArray


class Miner:
    """Ranks train products for train queries and picks negatives."""

    def __init__(
        self, index: ProductIndex, embeds: FloatArray, product_rows: IntArray, qrels: Qrels, settings: MiningSettings
    ) -> None:
        """Takes what is searched.

        Args:
            index: Of the train products; an approximate one may miss some.
            embeds: (P, D) their embeddings, from which scores are computed again; may be memory-mapped.
            product_rows: (P,) their rows, ascending.
            qrels: Judgements of train queries over train products.
            settings: What is taken.
        """
        self._index, self._embeds, self._product_rows = index, embeds, product_rows
        self._qrels, self._settings = qrels, settings
        by_id = np.argsort(np.asarray(index.product_ids, dtype=object), kind="stable")
        self._place_of_id = np.argsort(by_id)

    def mine(self, query_embeds: FloatArray, query_rows: IntArray) -> MinedNegatives:
        """Negatives of queries with embeddings (Q, D) and rows (Q,), each with at least one relevant product."""
        # In one thread, so that as many processes as there are give the same bits; they are what uses the cores.
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            _, found = self._index.search_rows(query_embeds, self._settings.last_rank + _SPARE)
        finally:
            faiss.omp_set_num_threads(threads)
        parts = [self._of_query(*one) for one in zip(query_embeds, query_rows, found, strict=True)]
        return MinedNegatives(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _of_query(self, embed: FloatArray, query: int, found: IntArray) -> MinedNegatives:
        settings = self._settings
        places, scores = self._ranked(embed, found[found >= 0])
        products = self._product_rows[places]
        best, positive = self._positive(embed, query)
        grades = self._qrels.grades_of([query], products[None])[0]
        ranks = np.arange(1, len(places) + 1, dtype=np.int32)
        fits = (ranks >= settings.first_rank) & (grades <= settings.max_negative_grade) & (grades < best)
        fits &= scores <= settings.highest_score(positive)
        kept = np.flatnonzero(fits)[: settings.num_negatives]
        return MinedNegatives(
            query=np.full(len(kept), query),
            product=products[kept],
            rank=ranks[kept],
            score=scores[kept],
            positive_score=np.full(len(kept), positive, dtype=np.float32),
        )

    def _ranked(self, embed: FloatArray, found: IntArray) -> tuple[IntArray, FloatArray]:
        """Found products and exact scores in the order of evaluation: equal scores by product id, descending."""
        scores = self._scores(embed, found)
        order = np.lexsort((-self._place_of_id[found], -scores))[: self._settings.last_rank]
        return found[order], scores[order]

    def _positive(self, embed: FloatArray, query: int) -> tuple[int, float]:
        """Best grade of a query, and the score that stands for its products of that grade."""
        products, grades = self._qrels.for_query(query)
        best = int(grades.max())
        scores = self._scores(embed, np.searchsorted(self._product_rows, products[grades == best]))
        return best, float(np.float32(_OF_POSITIVES[self._settings.positive_score](scores)))

    def _scores(self, embed: FloatArray, places: IntArray) -> FloatArray:
        exact = self._embeds[places].astype(np.float64) @ embed.astype(np.float64)
        return exact.astype(np.float32)
