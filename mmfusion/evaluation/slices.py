"""Group query and product rows by the values of a catalogue column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mmfusion.model.processing_mmfusion import is_missing

MISSING = "(missing)"


@dataclass(frozen=True)
class Slice:
    """Metrics over the part of the judgements that shares a column's value.

    Attributes:
        table: "query" (a subset of the queries) or "product" (every query, but only its relevant products with that
            value; Recall alone, because a ranking's gain cannot be split by product).
        column: name of the column.
        value: the value as text, `MISSING` for null.
        num_queries: queries of the slice that have a relevant product (of that value).
        metrics: mean in [0, 1] by metric name; None where no query defines it.
    """

    table: str
    column: str
    value: str
    num_queries: int
    metrics: dict[str, float | None]


def take(table: Any, column: str, rows: np.ndarray, *, what: str) -> list[Any]:
    """Read one column of a table at some rows.

    Args:
        table: a `datasets.Dataset`, a `pyarrow.Table` or a mapping from column names to sequences.
        column: name of the column.
        rows: int64 [n] positions, repeats allowed.
        what: the table's name for error messages.

    Returns:
        The n values as Python objects.

    Raises:
        ValueError: there is no table, or it has no such column.
    """
    if table is None:
        raise ValueError(f"the {what} table is missing, but its column {column!r} is asked for; pass the table")
    names = list(table) if isinstance(table, Mapping) else list(table.column_names)
    if column not in names:
        raise ValueError(f"the {what} table has no column {column!r}; its columns are {', '.join(map(repr, names))}")
    if isinstance(table, Mapping):
        values: Sequence[Any] = table[column]
        return [values[row] for row in rows.tolist()]
    if not isinstance(table, pa.Table):
        # A Dataset: without select_columns, reading rows would decode the photos too.
        table = table.select_columns([column]).with_format("arrow")[:]
    return table.column(column).take(pa.array(rows, type=pa.int64())).to_pylist()


def label(value: Any) -> str:
    """Name of a slice: the value as text, `MISSING` for null and NaN."""
    return MISSING if is_missing(value) else str(value)


def encode(values: Sequence[Any]) -> tuple[list[str], np.ndarray]:
    """Sorted different labels and, for each value, the position of its label (int64 [n])."""
    labels, codes = np.unique(np.array([label(value) for value in values], dtype=object), return_inverse=True)
    return [str(name) for name in labels], codes.astype(np.int64)


def recall_by_product_value(
    query: np.ndarray, code: np.ndarray, place: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Recall@k of each (query, product value) pair that has relevant products.

    Args:
        query: int64 [n], query of each relevant judgement.
        code: int64 [n], value of its product.
        place: int64 [n], place of its product in the query's ranking from 0; any large number where not retrieved.
        k: cut-off.

    Returns:
        Code int64 [pairs] and Recall@k float64 [pairs].
    """
    num_codes = int(code.max(initial=0)) + 1
    pairs, pair_of_judgement = np.unique(query * num_codes + code, return_inverse=True)
    total = np.bincount(pair_of_judgement, minlength=len(pairs))
    found = np.bincount(pair_of_judgement, weights=place < k, minlength=len(pairs))
    return pairs % num_codes, found / np.maximum(total, 1)
