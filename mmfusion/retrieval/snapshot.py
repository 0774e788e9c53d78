"""The segments of an index as they are at one moment, and what searches make of them."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.lexical import Corpus
from mmfusion.retrieval import ranking as rankings
from mmfusion.retrieval.filters import Filter, filter_rows
from mmfusion.retrieval.ranking import (
    Candidates,
    Ranking,
    RankingError,
    column_of,
    fused,
    groups_of,
    numbers_of,
    shares_below,
)
from mmfusion.retrieval.segment import Found, Segment
from mmfusion.retrieval.vectors import BoolArray, FloatArray, IntArray

# Products that are compared at most, where more of them might be among the k.
MOST_RANKED = 10_000
_NOTHING = np.empty(0, np.float32), np.empty(0, np.int64)

Allowed = Sequence[BoolArray] | None
# Rows, scores, and what each score is made of.
Chosen = tuple[IntArray, np.ndarray, list[dict[str, float]]]


class Snapshot:
    """Segments of an index at one moment; what is derived from them is computed once.

    A row is a place in all segments together, deleted products included.

    Args:
        segments: The base, and perhaps what was added since.
    """

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self.segments = segments
        self._boosts: dict[str, FloatArray] = {}
        self._groups: dict[str, IntArray] = {}

    @cached_property
    def products(self) -> pa.Table:
        """The products of all segments."""
        return pa.concat_tables([one.products for one in self.segments])

    def allowed(self, filter: Filter | None) -> Allowed:
        """Rows of each segment that a filter lets through; None for all."""
        return None if filter is None else [filter_rows(one.metadata, filter) for one in self.segments]

    def nearest(self, queries: FloatArray, k: int, allowed: Allowed) -> Found:
        """The k best live rows of each query: scores and rows (Q, at most k), -1 where no more are found."""
        parts, first = [], 0
        for number, one in enumerate(self.segments):
            scores, rows = one.search(queries, k, None if allowed is None else allowed[number])
            parts.append((np.where(rows < 0, -np.inf, scores), np.where(rows < 0, -1, rows + first)))
            first += len(one)
        scores, rows = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)

    def worded(self, query: str, allowed: Allowed) -> FloatArray:
        """BM25 of all rows as a share of what the query's words could give, float32 (N,) in [0, 1)."""
        parts, most = self._corpus.scores(query)
        scores = np.concatenate(parts)
        if allowed is not None:
            scores[~np.concatenate(allowed)] = 0
        return scores / most if most else scores

    def ranked(
        self, queries: FloatArray | None, texts: Sequence[str], k: int, allowed: Allowed, ranking: Ranking
    ) -> list[Chosen]:
        """The k best products of each query, or as many as there are.

        Lists grow until no product outside of them could be among the k.

        Args:
            queries: (Q, D) float32; None in mode "words".
            texts: Q texts.
            k: At least 1.
            allowed: As of `nearest`.
            ranking: With a number as `min_score`, or none.
        """
        chosen: dict[int, Chosen] = {}
        waiting = list(range(len(texts)))
        least = rankings.FUSED_DEPTH if ranking.mode == "hybrid" else rankings.FIRST_DEPTH
        depth = max(least, k)
        while waiting:
            found = None if queries is None else self.nearest(queries[waiting], depth, allowed)
            for place, number in enumerate(waiting):
                query = None if queries is None else queries[number]
                near = _NOTHING if found is None else (found[0][place], found[1][place])
                candidates = self._candidates(query, texts[number], near, depth, allowed, ranking)
                chosen[number], done = self._chosen(candidates, k, ranking)
                if not done:
                    chosen.pop(number)
            waiting = [number for number in waiting if number not in chosen]
            depth *= 4
        return [chosen[number] for number in range(len(texts))]

    def _candidates(
        self, query: FloatArray | None, text: str, found: Found, depth: int, allowed: Allowed, ranking: Ranking
    ) -> Candidates:
        """Products among which the hits of a query are.

        Args:
            query: (D,) float32; None in mode "words".
            text: Its words.
            found: What `nearest` found for it with k = `depth`, scores and rows (at most k,); nothing in mode "words".
            depth: Products that each list holds at most.
            allowed: As of `nearest`.
            ranking: With a number as `min_score`, or none.
        """
        near, lowest = found[0][found[1] >= 0].astype(np.float64), ranking.min_score
        near_rows = found[1][found[1] >= 0]
        last = float(near[-1]) if len(near) == depth else -math.inf
        if ranking.mode == "vectors":
            return Candidates(near_rows, near, near, {}, _below(last), _ends(last, lowest))
        shares = self.worded(text, allowed)
        word_rows = self._first(shares, depth)
        last_share = float(shares[word_rows[-1]]) if len(word_rows) == depth else -math.inf
        if query is None:
            worded = shares[word_rows].astype(np.float64)
            return Candidates(word_rows, worded, worded, {}, _below(last_share), _ends(last_share, lowest))
        rows, scores = fused(near_rows[np.lexsort((-self._places[near_rows], -near))], word_rows)
        products = np.full(len(rows), np.nan)
        products[np.searchsorted(rows, near_rows)] = near
        beyond = -math.inf
        if ranking.weight is not None or lowest is not None:
            unknown = np.isnan(products)
            products[unknown] = self._inner_products(query, rows[unknown])
        if ranking.weight is not None:
            scores = ranking.weight * products + (1 - ranking.weight) * shares[rows]
            beyond = ranking.weight * last + (1 - ranking.weight) * max(0.0, last_share)
        parts = {"vectors": products, "words": shares[rows].astype(np.float64)}
        return Candidates(rows, scores, products, parts, beyond, _ends(last, lowest))

    def _chosen(self, found: Candidates, k: int, ranking: Ranking) -> tuple[Chosen, bool]:
        """The k best candidates, one of each group, and whether there are none better beyond the candidates."""
        rows, scores = found.rows, found.scores
        parts = dict(found.parts)
        for name, weight in ranking.boosts.items():
            parts[f"boost:{name}"] = weight * self._boost(name)[rows]
            scores = scores + parts[f"boost:{name}"]
        order = np.lexsort((-self._places[rows], -scores))
        if isinstance(ranking.min_score, (int, float)):
            order = order[found.bounded[order] >= ranking.min_score]
        if ranking.group_by is not None:
            _, first = np.unique(self._group(ranking.group_by)[rows[order]], return_index=True)
            order = order[np.sort(first)]
        order = order[:k]
        enough = len(order) == k and (
            scores[order[-1]] > found.beyond + ranking.most_boost or len(rows) >= max(MOST_RANKED, k)
        )
        made_of = [{name: float(part[at]) for name, part in parts.items() if not np.isnan(part[at])} for at in order]
        return (rows[order], scores[order], made_of), found.complete or bool(enough)

    def check(self, ranking: Ranking) -> None:
        """Raises an error for what these products cannot be ranked by.

        Raises:
            RankingError: There is no index of words, no such column, or one of another type.
        """
        if ranking.mode != "vectors":
            self._corpus  # noqa: B018
        for name in ranking.boosts:
            self._boost(name)
        if ranking.group_by is not None:
            self._group(ranking.group_by)

    def _first(self, shares: FloatArray, count: int) -> IntArray:
        """Rows with words of the query, best first, at most so many."""
        rows = np.flatnonzero(shares > 0)
        if len(rows) > count:
            least = np.partition(shares[rows], len(rows) - count)[len(rows) - count]
            rows = rows[shares[rows] >= least]
        return rows[np.lexsort((-self._places[rows], -shares[rows]))][:count]

    def _inner_products(self, query: FloatArray, rows: IntArray) -> np.ndarray:
        """Float64 (n,), with the vectors that the segments hold."""
        products, first = np.zeros(len(rows)), 0
        for one in self.segments:
            inside = (rows >= first) & (rows < first + len(one))
            if inside.any():
                products[inside] = one.vectors(rows[inside] - first) @ query
            first += len(one)
        return products

    def _boost(self, name: str) -> FloatArray:
        if name not in self._boosts:
            values = numbers_of(self._column(name, "the boost"), name)
            live = np.concatenate([one.live for one in self.segments])
            self._boosts[name] = shares_below(np.where(live, values, np.nan))
        return self._boosts[name]

    def _group(self, name: str) -> IntArray:
        if name not in self._groups:
            self._groups[name] = groups_of(self._column(name, "group_by"), name)
        return self._groups[name]

    def _column(self, name: str, what: str) -> pa.ChunkedArray:
        columns = [column_of(one.metadata, name, what) for one in self.segments]
        return pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)

    @cached_property
    def _places(self) -> IntArray:
        """Place of each row in the order of ids, which decides between equal scores."""
        ids = [chunk for one in self.segments for chunk in one.products.column("product_id").chunks]
        order = pc.sort_indices(pa.chunked_array(ids, pa.string()))
        places = np.empty(len(order), np.int64)
        places[np.asarray(order)] = np.arange(len(order))
        return places

    @cached_property
    def _corpus(self) -> Corpus:
        parts = [(one.words, one.live) for one in self.segments if one.words is not None]
        if not parts:
            raise RankingError(
                "this index has no index of words, which modes 'words' and 'hybrid' need; build it again with "
                "mmfusion index --lexical true, or lexical=True in Python."
            )
        return Corpus(parts)


def _below(score: float) -> float:
    """Next lower number: what comes after the last of a list, in its order, comes after all with its score."""
    return math.nextafter(score, -math.inf)


def _ends(last: float, lowest: Any) -> bool:
    """Whether no product beyond a list, whose last score this is (-inf: there is none), may be a hit."""
    return last == -math.inf or (lowest is not None and last < lowest)
