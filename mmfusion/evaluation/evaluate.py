"""From a retriever, or from rankings, and judgements to an `Evaluation`."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mmfusion.allocator import keep_freed_memory
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.qrels import Qrels, equals
from mmfusion.data.tables import Rows
from mmfusion.evaluation.evaluation import Evaluation, Slice
from mmfusion.evaluation.metrics import ndcg_at_k, recall_at_k
from mmfusion.evaluation.ranking import rank
from mmfusion.model.missing import is_missing

logger = logging.getLogger(__name__)

Pool = Literal["split", "all"]
"""Products that compete: those of the queries' split, or the whole catalogue."""

PLACES = 100
"""Of a ranking: the largest cut-off of the metrics."""
_NOT_RETRIEVED = np.iinfo(np.int64).max


class Encoder(Protocol):
    """What turns texts and products into vectors that are compared by inner product."""

    def encode_queries(self, queries: list[str], /) -> Any:
        """Float [Q, D] of query texts."""

    def encode_products(self, products: list[dict[str, Any]], /) -> Any:
        """Float [P, D] of products, each as `Catalogue.product` gives it."""


def evaluate(
    retriever: Encoder,
    catalogue: Catalogue,
    split: str = "test",
    *,
    pool: Pool = "split",
    batch_size: int = 1_024,
    **options: Any,
) -> Evaluation:
    """Measures how well a retriever finds the judged products of a split: Recall@10, Recall@100 and nDCG@10.

    Args:
        retriever: Anything with `encode_queries` and `encode_products`; a routed model's vectors are its views side by
            side, as its `Retriever` gives them. What it raises for a photo that it cannot read ends the evaluation,
            where the command `evaluate` takes such a photo for a missing one.
        catalogue: Products, queries and judgements.
        split: Queries to ask.
        pool: Products that compete: those of the queries' split, or the whole catalogue.
        batch_size: Products that are handed to the retriever, and whose photos are in memory, at a time.
        **options: Further arguments of `evaluate_pool`: `relevant_grade`, `product_slices`, `name` …

    Returns:
        Means, slices and a per-query table.

    Raises:
        CatalogueError: The split has no judged queries.
        ValueError: Vectors do not fit each other or are not finite; see also `evaluate_rankings`.
    """
    query_rows, product_rows = pool_rows(catalogue, split, pool)
    queries = np.asarray(retriever.encode_queries(catalogue.query_texts(query_rows)))
    starts = range(0, len(product_rows), batch_size)
    batches = ([catalogue.product(row) for row in product_rows[at : at + batch_size]] for at in starts)
    products = np.concatenate([np.asarray(retriever.encode_products(batch)) for batch in batches])
    _, columns = rank(queries, products, PLACES, catalogue.product_ids[product_rows])
    return evaluate_pool(columns, catalogue, split, pool=pool, **options)


def evaluate_pool(
    columns: Tensor,
    catalogue: Catalogue,
    split: str = "test",
    *,
    pool: Pool = "split",
    relevant_grade: int | None = None,
    query_slices: Sequence[str] | None = None,
    product_slices: Sequence[str] = (),
    name: str = "model",
    label_source: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Scores any ranking of a pool of a catalogue, as `evaluate` does.

    Args:
        columns: int64 [Q, 100], for each of the judged queries the best products, as positions in the pool (see
            `pool_rows`), -1 after the end of a ranking.
        catalogue: Products, queries and judgements.
        split: Queries that were asked.
        pool: Products that competed.
        relevant_grade: Lowest grade that Recall counts; default: the highest grade in the judgements.
        query_slices: Query columns whose values get numbers of their own; default: `kind`, where there is one.
        product_slices: Product columns whose values slice Recall.
        name: What made the rankings.
        label_source: Who or what judged.
        provenance: How the rankings were made, JSON values; catalogue and split are added.
    """
    query_rows, product_rows = pool_rows(catalogue, split, pool)
    places = columns.numpy()
    qrels = catalogue.split_qrels(split) if pool == "split" else catalogue.qrels
    return evaluate_rankings(
        np.where(places < 0, -1, product_rows[places]),
        query_rows,
        qrels,
        queries=catalogue.queries,
        products=catalogue.products,
        product_rows=product_rows,
        relevant_grade=relevant_grade or int(qrels.grade.max()),
        pool=pool,
        query_slices=default_slices(catalogue) if query_slices is None else query_slices,
        product_slices=product_slices,
        name=name,
        label_source=label_source,
        provenance={"catalogue": catalogue.name, "split": split, **(provenance or {})},
    )


def pool_rows(catalogue: Catalogue, split: str, pool: str) -> tuple[Rows, Rows]:
    """Rows of the judged queries of a split, and of the products that compete for them; ascending int64."""
    return catalogue.judged_queries(split), catalogue.product_rows(split if pool == "split" else None)


def seen_in_training(catalogue: Catalogue, split: str) -> tuple[int, int]:
    """Of the products that are relevant for queries of a split, how many are so for train queries, and how many all.

    Where queries are split and products are not, a model was trained on some of what it has to find; where products
    are split, it was on none.
    """
    found, trained = (
        np.unique(qrels.product[qrels.grade > 0]) for qrels in map(catalogue.split_qrels, (split, "train"))
    )
    return int(np.isin(found, trained).sum()), len(found)


def default_slices(catalogue: Catalogue) -> list[str]:
    """The query columns that evaluations are sliced by unless others are named."""
    return ["kind"] if "kind" in catalogue.queries.column_names else []


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
    """Scores rankings against every judgement of the pool, retrieved or not.

    Equal to pytrec_eval, query by query. A query without a ranking counts 0. A query that has nothing to find is left
    out of the mean (of Recall if no product of the pool has `relevant_grade`, of nDCG if none has a grade above 0) and
    counted in the result.

    Args:
        ranked_products: int64 [Q, K], product rows of the catalogue, best first, -1 after the end of a ranking.
        query_rows: int64 [Q], the query row of each ranking, each at most once.
        qrels: Judgements between query rows and product rows of the catalogue.
        queries: Query table (`datasets.Dataset`, `pyarrow.Table` or mapping of columns) with a column `query_id`.
        product_rows: int64 [N], rows of the pool. Judgements of other products are ignored.
        relevant_grade: Lowest grade that Recall counts, at least 1. It has no default as data sets disagree.
        pool: "split" or "all", how the pool was chosen; recorded.
        products: Product table, needed for `product_slices`.
        evaluated_query_rows: int64, every query that should have been ranked; default `query_rows`.
        query_slices: Query columns; all metrics by their values.
        product_slices: Product columns; Recall by their values, for each query over its relevant products with that
            value. nDCG is not sliced by product: a ranking's discounted gain has no part that belongs to a value.
        recall_at: Cut-offs of Recall.
        ndcg_at: Cut-offs of nDCG (linear gain, ideal over all judged products of the pool).
        name: What made the rankings.
        label_source: Who or what judged, shown next to the numbers.
        provenance: How the rankings were made, JSON values.

    Returns:
        Means, slices and a per-query table.

    Raises:
        ValueError: Rankings do not fit queries or pool, name a product twice or are shorter than the largest cut-off
            though the pool is not; a column is missing; nothing in the pool has `relevant_grade`.
    """
    keep_freed_memory()
    given = np.asarray(query_rows, dtype=np.int64)
    evaluated = given if evaluated_query_rows is None else np.asarray(evaluated_query_rows, dtype=np.int64)
    pool_products = np.unique(np.asarray(product_rows, dtype=np.int64))
    ranked = _align(ranked_products, given, evaluated, pool_products, max([*recall_at, *ndcg_at], default=1))
    # Judgements in the order of the evaluated queries: the position of each one's query, its product and its grade.
    position, at = equals(evaluated, qrels.query)
    in_pool = np.isin(qrels.product[at], pool_products)
    position, product, grade = position[in_pool], qrels.product[at[in_pool]], qrels.grade[at[in_pool]]
    levels = np.unique(grade)
    highest = int(levels.max(initial=0))
    if not 1 <= relevant_grade <= highest:
        raise ValueError(
            f"relevant_grade={relevant_grade}: no judgement of these queries in this pool qualifies as relevant "
            f"({len(grade)} judgements, highest grade {highest}); pass a relevant_grade from 1 to the highest grade, "
            "or check that the qrels and the pool belong together"
        )
    relevant = grade >= relevant_grade
    num_relevant = np.bincount(position[relevant], minlength=len(evaluated))
    without = int((num_relevant == 0).sum())
    if without > len(evaluated) / 2:
        lower = levels[(levels > 0) & (levels < relevant_grade)]
        logger.warning(
            "%s: %s of %s queries have no product with grade %d or higher, and Recall leaves them out; %s",
            *(name, f"{without:,}", f"{len(evaluated):,}", relevant_grade),
            f"count lower grades with --relevant_grade {lower[0]} (there are {', '.join(map(str, lower[:10]))})"
            if len(lower)
            else f"the pool is {pool!r}, and no lower grade would be counted",
        )
    level = np.searchsorted(levels, grade)
    ideal = _ideal_grades(position, levels, level, len(evaluated), max(ndcg_at, default=1))
    grades = torch.from_numpy(qrels.grades_of(evaluated, ranked))
    # NaN where undefined, inside this file only.
    values: dict[str, np.ndarray] = {}
    for k in recall_at:
        recall = recall_at_k(grades, torch.from_numpy(num_relevant), k, relevant_grade=relevant_grade).numpy()
        values[f"recall@{k}"] = np.where(num_relevant > 0, recall, np.nan)
    for k in ndcg_at:
        values[f"ndcg@{k}"] = np.where(ideal[:, 0] > 0, ndcg_at_k(grades, torch.from_numpy(ideal), k).numpy(), np.nan)
    columns = {column: take(queries, column, evaluated, what="query") for column in ("query_id", *query_slices)}
    slices = [part for column in query_slices for part in _query_slices(column, columns[column], values)]
    if product_slices:
        query, product = position[relevant], product[relevant]
        places = _places(ranked, query, product)
        for column in product_slices:
            slices += _product_slices(column, take(products, column, product, what="product"), query, places, recall_at)
    texts = {
        name: pa.array([None if value is None else str(value) for value in column], pa.string())
        for name, column in columns.items()
    }
    numbers = {metric: pa.array(column, from_pandas=True) for metric, column in values.items()}
    return Evaluation(
        name=name,
        pool=pool,
        num_queries=len(evaluated),
        num_products=len(pool_products),
        num_queries_without_relevant=int((num_relevant == 0).sum()),
        num_queries_without_gain=int((ideal[:, 0] == 0).sum()),
        num_queries_without_ranking=int((ranked[:, 0] < 0).sum()),
        relevant_grade=relevant_grade,
        judgements_by_grade=dict(zip(levels.tolist(), np.bincount(level).tolist(), strict=True)),
        means={metric: _mean(column) for metric, column in values.items()},
        slices=slices,
        per_query=pa.table({**texts, "num_relevant": pa.array(num_relevant, pa.int64()), **numbers}),
        label_source=label_source,
        provenance=dict(provenance or {}),
    )


def take(table: Any, column: str, rows: np.ndarray, *, what: str) -> list[Any]:
    """Reads one column of a table at some rows.

    Args:
        table: A `datasets.Dataset`, a `pyarrow.Table` or a mapping from column names to sequences.
        column: Name of the column.
        rows: int64 [n] positions, repeats allowed.
        what: The table's name for error messages.

    Returns:
        The n values as Python objects.

    Raises:
        ValueError: There is no table, or it has no such column.
    """
    if table is None:
        raise ValueError(f"the {what} table is missing, but its column {column!r} is asked for; pass the table")
    names = list(table) if isinstance(table, Mapping) else table.column_names
    if column not in names:
        raise ValueError(f"the {what} table has no column {column!r}; its columns are {', '.join(map(repr, names))}")
    if isinstance(table, Mapping):
        table = pa.table({column: table[column]})
    elif not isinstance(table, pa.Table):
        # A Dataset: without select_columns, reading rows would decode the photos too.
        table = table.select_columns([column]).with_format("arrow")[:]
    return table.column(column).take(pa.array(rows, type=pa.int64())).to_pylist()


def encode(values: Sequence[Any]) -> tuple[list[str], np.ndarray]:
    """Sorted different values as texts, "(missing)" for null and NaN, and the position of each value (int64 [n])."""
    labels = ["(missing)" if is_missing(value) else str(value) for value in values]
    names, codes = np.unique(np.array(labels, dtype=object), return_inverse=True)
    return [str(name) for name in names], codes.astype(np.int64)


def _align(
    ranked_products: np.ndarray | Tensor, query_rows: np.ndarray, evaluated: np.ndarray, pool: np.ndarray, largest: int
) -> np.ndarray:
    """Checked rankings int64 [E, K] in the order of the evaluated queries, a row of -1 for a query without one."""
    ranked = ranked_products.cpu().numpy() if isinstance(ranked_products, Tensor) else np.asarray(ranked_products)
    if ranked.ndim != 2 or ranked.dtype.kind not in "iu":
        raise ValueError(
            f"ranked_products is {ranked.dtype} {ranked.shape}; pass integer product rows [queries, places]"
        )
    if len(ranked) != len(query_rows):
        raise ValueError(f"{len(ranked)} rankings for {len(query_rows)} query rows; pass one each")
    for what, rows in (("query_rows", query_rows), ("evaluated_query_rows", evaluated)):
        unique, counts = np.unique(rows, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"{what} holds query row {unique[counts.argmax()]} twice; pass each query once")
    stray = np.setdiff1d(query_rows, evaluated)
    if stray.size:
        raise ValueError(f"query row {stray[0]} has a ranking but is not in evaluated_query_rows; add or drop it")
    padding, ordered = ranked < 0, np.sort(ranked, axis=1)
    for wrong, what in (
        (padding[:, :-1] & ~padding[:, 1:], "continues after a -1; move the padding to its end"),
        (
            ~padding & ~np.isin(ranked, pool),
            "holds product row {value}, which is not in the pool; rank the products of product_rows only and pass "
            "catalogue rows, not columns of an embedding matrix",
        ),
        ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0), "holds product row {twice} twice"),
    ):
        if wrong.any():
            row, place = np.argwhere(wrong)[0]
            problem = what.format(value=ranked[row, place], twice=ordered[row, place])
            raise ValueError(f"the ranking of query row {query_rows[row]} {problem}")
    if ranked.shape[1] < max(1, min(largest, len(pool))):
        raise ValueError(
            f"rankings have {ranked.shape[1]} places, but the largest cut-off is {largest} and the pool has "
            f"{len(pool)} products; rank {min(largest, max(len(pool), 1))} or lower the cut-offs"
        )
    aligned = np.full((len(evaluated), ranked.shape[1]), -1, dtype=np.int64)
    aligned[_positions(query_rows, evaluated)] = ranked
    return aligned


def _positions(rows: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Where each of `rows` stands in `of`, which holds it."""
    order = np.argsort(of)
    return order[np.searchsorted(of, rows, sorter=order)]


def _ideal_grades(position: np.ndarray, levels: np.ndarray, level: np.ndarray, num_queries: int, k: int) -> np.ndarray:
    """Each query's k highest grades, int64 [Q, k], padded with 0.

    Args:
        position: int64 [n], query of each judgement, ascending.
        levels: int64 [L], the grades that occur, ascending.
        level: int64 [n], which of them each judgement has.
        num_queries: Q.
        k: Grades wanted.
    """
    # Numbers of 8 or 16 bits are sorted in linear time, and position is in order already.
    below_best = (len(levels) - 1 - level).astype(np.min_scalar_type(len(levels)))
    best_first = levels[level[np.lexsort((below_best, position))]]
    counts = np.bincount(position, minlength=num_queries)
    first, kept = np.cumsum(counts) - counts, np.minimum(counts, k)
    query = np.repeat(np.arange(num_queries), kept)
    place = np.arange(len(query)) - np.repeat(np.cumsum(kept) - kept, kept)
    ideal = np.zeros((num_queries, k), dtype=np.int64)
    ideal[query, place] = best_first[first[query] + place]
    return ideal


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
    # A last entry that no pair equals, so that a search never runs past the end.
    ranked_pairs, place = np.append(ranked_pairs[order], -1), np.append(place[order], 0)
    wanted = query * num_products + product
    at = np.searchsorted(ranked_pairs[:-1], wanted)
    return np.where(ranked_pairs[at] == wanted, place[at], _NOT_RETRIEVED)


def _product_slices(
    column: str, values: list[Any], query: np.ndarray, place: np.ndarray, recall_at: Sequence[int]
) -> list[Slice]:
    """Recall of each (query, value) pair that has relevant products, and its mean over queries by value."""
    labels, codes = encode(values)
    num_codes = max(len(labels), 1)
    pairs, pair = np.unique(query * num_codes + codes, return_inverse=True)
    num_queries, total = np.bincount(pairs % num_codes), np.bincount(pair, minlength=len(pairs))
    recalls = {k: np.bincount(pair, weights=place < k, minlength=len(pairs)) / total for k in recall_at}
    means = {k: np.bincount(pairs % num_codes, weights=recall) / num_queries for k, recall in recalls.items()}
    return [
        Slice(
            "product", column, value, int(num_queries[code]), {f"recall@{k}": float(means[k][code]) for k in recall_at}
        )
        for code, value in enumerate(labels)
    ]
