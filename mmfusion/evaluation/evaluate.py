"""From rankings and judgements to an `Evaluation`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mmfusion.data.qrels import Qrels
from mmfusion.evaluation.evaluation import Evaluation
from mmfusion.evaluation.metrics import ndcg_at_k, recall_at_k
from mmfusion.evaluation.slices import Slice, encode, recall_by_product_value, take

_NOT_RETRIEVED = np.iinfo(np.int64).max


def evaluate_rankings(
    ranked_products: np.ndarray | Tensor,
    query_rows: np.ndarray,
    qrels: Qrels,
    *,
    queries: Any,
    product_rows: np.ndarray,
    relevant_grade: int,
    pool: str = "split",
    products: Any = None,
    evaluated_query_rows: np.ndarray | None = None,
    query_slices: Sequence[str] = ("kind",),
    product_slices: Sequence[str] = (),
    recall_at: Sequence[int] = (10, 100),
    ndcg_at: Sequence[int] = (10,),
    name: str = "model",
    label_source: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Score rankings against every judgement of the pool, retrieved or not.

    Equal to pytrec_eval, query by query. A query without a ranking counts 0. A query that has nothing to find is left
    out of the mean (of Recall if no product of the pool has `relevant_grade`, of nDCG if none has a grade above 0) and
    counted in the result.

    Args:
        ranked_products: int64 [Q, K], product rows of the catalogue, best first, -1 after the end of a ranking.
        query_rows: int64 [Q], the query row of each ranking, each at most once.
        qrels: judgements between query rows and product rows of the catalogue.
        queries: query table (`datasets.Dataset`, `pyarrow.Table` or mapping of columns) with a column `query_id`.
        product_rows: int64 [N], rows of the pool. Judgements of other products are ignored.
        relevant_grade: lowest grade that Recall counts, at least 1. It has no default as data sets disagree.
        pool: "split" or "all", how the pool was chosen; recorded.
        products: product table, needed for `product_slices`.
        evaluated_query_rows: int64, every query that should have been ranked; default `query_rows`.
        query_slices: query columns; all metrics by their values.
        product_slices: product columns; Recall by their values, for each query over its relevant products with that
            value. nDCG is not sliced by product: a ranking's discounted gain has no part that belongs to a value.
        recall_at: cut-offs of Recall.
        ndcg_at: cut-offs of nDCG (linear gain, ideal over all judged products of the pool).
        name: what made the rankings.
        label_source: who or what judged, shown beside the numbers.
        provenance: how the rankings were made, JSON values.

    Returns:
        Means, slices and a per-query table.

    Raises:
        ValueError: rankings do not fit queries or pool, name a product twice or are shorter than the largest cut-off
            though the pool is not; a column is missing; nothing in the pool has `relevant_grade`.
    """
    evaluated = np.asarray(query_rows if evaluated_query_rows is None else evaluated_query_rows, dtype=np.int64)
    pool_rows = np.unique(np.asarray(product_rows, dtype=np.int64))
    ranked = _align(_as_int64(ranked_products), np.asarray(query_rows, dtype=np.int64), evaluated, pool_rows)
    _check_length(ranked.shape[1], max([*recall_at, *ndcg_at], default=1), len(pool_rows))
    judged = qrels.restrict(query_rows=evaluated, product_rows=pool_rows)
    _check_relevant(judged, relevant_grade)
    position = _positions(judged.query, evaluated)
    num_relevant = np.bincount(position[judged.grade >= relevant_grade], minlength=len(evaluated))
    ideal = _ideal_grades(position, judged.grade, len(evaluated), max(ndcg_at, default=1))
    values = _per_query_metrics(
        torch.from_numpy(judged.grades_of(evaluated, ranked)),
        torch.from_numpy(num_relevant),
        torch.from_numpy(ideal),
        recall_at=recall_at,
        ndcg_at=ndcg_at,
        relevant_grade=relevant_grade,
    )
    columns = {column: take(queries, column, evaluated, what="query") for column in ("query_id", *query_slices)}
    slices = [part for column in query_slices for part in _query_slices(column, columns[column], values)]
    if product_slices:
        relevant = judged.grade >= relevant_grade
        places = _places(ranked, position[relevant], judged.product[relevant])
        for column in product_slices:
            labels = take(products, column, judged.product[relevant], what="product")
            slices += _product_slices(column, labels, position[relevant], places, recall_at)
    grades, counts = np.unique(judged.grade, return_counts=True)
    return Evaluation(
        name=name,
        pool=pool,
        num_queries=len(evaluated),
        num_products=len(pool_rows),
        num_queries_without_relevant=int((num_relevant == 0).sum()),
        num_queries_without_gain=int((ideal[:, 0] == 0).sum()),
        num_queries_without_ranking=int((ranked[:, 0] < 0).sum()),
        relevant_grade=relevant_grade,
        judgements_by_grade=dict(zip(grades.tolist(), counts.tolist(), strict=True)),
        means={metric: _mean(column) for metric, column in values.items()},
        slices=slices,
        per_query=_per_query_table(columns, num_relevant, values),
        label_source=label_source,
        provenance=dict(provenance or {}),
    )


def _as_int64(rows: np.ndarray | Tensor) -> np.ndarray:
    array = rows.cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(f"ranked_products is {array.dtype} {array.shape}; pass integer product rows [queries, places]")
    return array.astype(np.int64, copy=False)


def _align(ranked: np.ndarray, query_rows: np.ndarray, evaluated: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Rankings [E, K] in the order of the evaluated queries, a row of -1 for a query without one."""
    if len(ranked) != len(query_rows):
        raise ValueError(f"{len(ranked)} rankings for {len(query_rows)} query rows; pass one each")
    for what, rows in (("query_rows", query_rows), ("evaluated_query_rows", evaluated)):
        unique, counts = np.unique(rows, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"{what} holds query row {unique[counts.argmax()]} twice; pass each query once")
    stray = np.setdiff1d(query_rows, evaluated)
    if stray.size:
        raise ValueError(f"query row {stray[0]} has a ranking but is not in evaluated_query_rows; add or drop it")
    _check_rankings(ranked, query_rows, pool)
    aligned = np.full((len(evaluated), ranked.shape[1]), -1, dtype=np.int64)
    aligned[_positions(query_rows, evaluated)] = ranked
    return aligned


def _check_rankings(ranked: np.ndarray, query_rows: np.ndarray, pool: np.ndarray) -> None:
    padding = ranked < 0
    after_end = padding[:, :-1] & ~padding[:, 1:]
    if after_end.any():
        row = query_rows[after_end.any(axis=1).argmax()]
        raise ValueError(f"the ranking of query row {row} goes on after a -1; move the padding to its end")
    outside = ~padding & ~np.isin(ranked, pool)
    if outside.any():
        row, place = np.argwhere(outside)[0]
        raise ValueError(
            f"the ranking of query row {query_rows[row]} holds product row {ranked[row, place]}, which is not in the "
            "pool; rank the products of product_rows only and pass catalogue rows, not columns of an embedding matrix"
        )
    ordered = np.sort(ranked, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        row, place = np.argwhere(twice)[0]
        raise ValueError(f"the ranking of query row {query_rows[row]} holds product row {ordered[row, place]} twice")


def _check_length(places: int, largest: int, num_products: int) -> None:
    if places < min(largest, num_products) or places == 0:
        raise ValueError(
            f"rankings have {places} places, but the largest cut-off is {largest} and the pool has {num_products} "
            f"products; rank {min(largest, max(num_products, 1))} or lower the cut-offs"
        )


def _check_relevant(judged: Qrels, relevant_grade: int) -> None:
    highest = int(judged.grade.max(initial=0))
    if relevant_grade < 1 or highest < relevant_grade:
        raise ValueError(
            f"relevant_grade={relevant_grade}: no judgement of these queries in this pool qualifies as relevant "
            f"({len(judged)} judgements, highest grade {highest}); pass a relevant_grade from 1 to the highest grade, "
            "or check that the qrels and the pool belong together"
            if relevant_grade >= 1
            else f"relevant_grade={relevant_grade} would make unjudged products relevant; pass 1 or more"
        )


def _positions(rows: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Where each of `rows` stands in `of`, which holds it."""
    order = np.argsort(of)
    return order[np.searchsorted(of, rows, sorter=order)]


def _ideal_grades(position: np.ndarray, grade: np.ndarray, num_queries: int, k: int) -> np.ndarray:
    """Each query's k highest grades, int64 [Q, k], padded with 0."""
    order = np.lexsort((-grade, position))
    position, grade = position[order], grade[order]
    place = np.arange(len(position)) - np.searchsorted(position, position)
    ideal = np.zeros((num_queries, k), dtype=np.int64)
    inside = place < k
    ideal[position[inside], place[inside]] = grade[inside]
    return ideal


def _per_query_metrics(
    ranked_grades: Tensor,
    num_relevant: Tensor,
    ideal_grades: Tensor,
    *,
    recall_at: Sequence[int],
    ndcg_at: Sequence[int],
    relevant_grade: int,
) -> dict[str, np.ndarray]:
    """Float64 [Q] by metric name, NaN where undefined (inside this file only)."""
    values = {}
    for k in recall_at:
        recall = recall_at_k(ranked_grades, num_relevant, k, relevant_grade=relevant_grade).numpy()
        values[f"recall@{k}"] = np.where(num_relevant.numpy() > 0, recall, np.nan)
    for k in ndcg_at:
        ndcg = ndcg_at_k(ranked_grades, ideal_grades, k).numpy()
        values[f"ndcg@{k}"] = np.where(ideal_grades[:, 0].numpy() > 0, ndcg, np.nan)
    return values


def _mean(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def _query_slices(column: str, values: list[Any], metrics: dict[str, np.ndarray]) -> list[Slice]:
    labels, codes = encode(values)
    parts = []
    for code, value in enumerate(labels):
        inside = {metric: column_values[codes == code] for metric, column_values in metrics.items()}
        counted = max(int((~np.isnan(column_values)).sum()) for column_values in inside.values())
        means = {metric: _mean(column_values) for metric, column_values in inside.items()}
        parts.append(Slice("query", column, value, counted, means))
    return parts


def _places(ranked: np.ndarray, query: np.ndarray, product: np.ndarray) -> np.ndarray:
    """Place from 0 of each (query, product) pair in the rankings [Q, K], int64 [n]."""
    num_products = max(int(ranked.max(initial=0)), int(product.max(initial=0))) + 1
    row, place = np.nonzero(ranked >= 0)
    ranked_pairs = row * num_products + ranked[row, place]
    order = np.argsort(ranked_pairs)
    ranked_pairs, place = ranked_pairs[order], place[order]
    wanted = query * num_products + product
    at = np.minimum(np.searchsorted(ranked_pairs, wanted), max(len(ranked_pairs) - 1, 0))
    if not len(ranked_pairs):
        return np.full(len(wanted), _NOT_RETRIEVED)
    return np.where(ranked_pairs[at] == wanted, place[at], _NOT_RETRIEVED)


def _product_slices(
    column: str, values: list[Any], query: np.ndarray, place: np.ndarray, recall_at: Sequence[int]
) -> list[Slice]:
    labels, codes = encode(values)
    by_cut_off = {k: recall_by_product_value(query, codes, place, k) for k in recall_at}
    num_queries = np.bincount(np.unique(query * max(len(labels), 1) + codes) % max(len(labels), 1))
    means = {f"recall@{k}": np.bincount(of, weights=recall) / num_queries for k, (of, recall) in by_cut_off.items()}
    return [
        Slice("product", column, value, int(num_queries[code]), {m: float(mean[code]) for m, mean in means.items()})
        for code, value in enumerate(labels)
    ]


def _per_query_table(
    columns: Mapping[str, list[Any]], num_relevant: np.ndarray, values: Mapping[str, np.ndarray]
) -> pa.Table:
    texts = {
        name: pa.array([None if v is None else str(v) for v in column], pa.string()) for name, column in columns.items()
    }
    numbers = {metric: pa.array(column, from_pandas=True) for metric, column in values.items()}
    return pa.table({**texts, "num_relevant": pa.array(num_relevant, pa.int64()), **numbers})
