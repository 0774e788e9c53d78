"""Facets: what the columns of an index hold, for the filters of a search page."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue_schema import is_list
from mmfusion.retrieval.filters import FilterError
from mmfusion.retrieval.search import SearchIndex

MAX_VALUES = 50
"""Values of a column that a facet lists, the most frequent ones."""

MAX_FACETS = 8
"""Columns that become facets where none are named."""

# Texts of a product, and what no shopper filters by.
_NEVER = re.compile(
    r"title|description|split|attributes|text_sparse|currency|link|image_url|url|gtin|mpn|(.*_)?id", re.I
)
# A column with more values than that, or with hardly a value twice, does not sort products into kinds.
_MOST_DISTINCT, _LEAST_EACH = 200, 2
# Rows that are looked at first, as all values of a column of 10 million different texts take minutes to count.
_SAMPLE = 50_000


@dataclass(frozen=True)
class Facet:
    """A column that products can be filtered by.

    Attributes:
        column: Its name.
        kind: "values" (the filter is `in`), "lists" (of values, the filter is `contains`) or "range" (of numbers).
        values: `value` and `count` of the most frequent values, at most `MAX_VALUES`, most frequent first.
        distinct: Number of different values, of a range 0.
        low: Smallest number of a range.
        high: Largest number of a range.
    """

    column: str
    kind: str
    values: Sequence[dict[str, Any]] = ()
    distinct: int = 0
    low: float | None = None
    high: float | None = None


def facets_of(index: SearchIndex, names: Sequence[str] | None = None) -> list[Facet]:
    """Facets of the metadata of an index; reads each column once.

    Args:
        index: The index.
        names: Columns; None: up to `MAX_FACETS` columns of booleans, texts with few values, and numbers.

    Raises:
        FilterError: The index has no such column, or one that holds neither texts, booleans, numbers nor lists of them;
            or names are given for an index in Milvus, whose columns cannot be read as a whole.
    """
    there = index.metadata_types()
    for name in names or ():
        if name not in there:
            columns = ", ".join(there) or "none that can be counted"
            raise FilterError(f"there is no column {name!r} for a facet; this index has {columns}.")
    if names is not None:
        return [_named(index, name) for name in dict.fromkeys(names)]
    found: list[Facet] = []
    for name, kind in there.items():
        if not _NEVER.fullmatch(name) and len(found) < MAX_FACETS and _divides(index, name, kind):
            found.append(_facet(name, index.metadata_column(name)))
    return [one for one in found if one.distinct > 1 or one.low != one.high]


def _named(index: SearchIndex, name: str) -> Facet:
    kind = index.metadata_types()[name]
    if not (is_number(kind) or _is_value(kind.value_type if is_list(kind) else kind)):
        raise FilterError(f"{name!r} is {kind}; facets are of texts, booleans, numbers, and lists of texts.")
    return _facet(name, index.metadata_column(name))


def _divides(index: SearchIndex, name: str, kind: pa.DataType) -> bool:
    """Whether a column sorts products into kinds, as far as its first rows show."""
    if is_number(kind):
        return True
    if not _is_value(kind.value_type if is_list(kind) else kind):
        return False
    values = _flat(index.metadata_column(name).slice(0, _SAMPLE))
    return bool(pc.count_distinct(values).as_py() <= min(_MOST_DISTINCT, len(values) / _LEAST_EACH))


def _facet(name: str, column: pa.ChunkedArray) -> Facet:
    if is_number(column.type):
        numbers = column.cast(pa.float64(), safe=False).drop_null()
        bounds = pc.min_max(numbers.filter(pc.is_finite(numbers)))
        return Facet(name, "range", low=bounds["min"].as_py(), high=bounds["max"].as_py())
    counts = pc.value_counts(_flat(column))
    values, numbers = counts.field("values"), counts.field("counts")
    order = pc.sort_indices(pa.table([values, numbers], ["v", "n"]), [("n", "descending"), ("v", "ascending")])
    best = counts.take(order[:MAX_VALUES]).to_pylist()
    listed = [{"value": one["values"], "count": one["counts"]} for one in best]
    return Facet(name, "lists" if is_list(column.type) else "values", listed, len(counts))


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values that are there: the items of lists, and neither nulls nor blank texts."""
    values = pc.list_flatten(column) if is_list(column.type) else column
    values = values.drop_null()
    if pa.types.is_boolean(values.type):
        return values
    return values.filter(pc.not_equal(pc.utf8_trim_whitespace(values), ""))


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_value(kind: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))
