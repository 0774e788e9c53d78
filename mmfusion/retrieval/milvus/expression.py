"""Filters on metadata in the language of Milvus, which takes no values apart from the text of a filter."""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from mmfusion.model.processing_mmfusion import is_missing
from mmfusion.retrieval.filters import Filter, alternatives_of, filter_rows, moments_among
from mmfusion.retrieval.milvus.columns import Column, as_stored
from mmfusion.retrieval.moments import against_moment, is_moment

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def milvus_expression(conditions: Filter, columns: Sequence[Column], metadata: pa.StructArray | None) -> str | None:
    """A filter as Milvus takes it.

    Args:
        conditions: As of [`filter_rows`], and with the same meaning: a null is let through by no condition.
        columns: Columns of the collection.
        metadata: Struct column without rows, which says what types there are; None without metadata.

    Returns:
        The expression, or None where nothing can fulfil the filter.

    Raises:
        FilterError: The same as of [`filter_rows`].
    """
    filter_rows(metadata, conditions)
    known = {column.name: column for column in columns if column.struct == "metadata"}
    wholes = []
    for alternative in alternatives_of(conditions):
        parts = [_condition(known[field], given, value) for field, given, value in alternative]
        if None not in parts:
            wholes.append(" and ".join(f"({part})" for part in parts))
    return " or ".join(f"({one})" for one in wholes) if wholes else None


def among_ids(field: str, ids: Iterable[str]) -> str:
    """An expression for the products with these ids."""
    return f"{field} in [{', '.join(map(literal, ids))}]"


def literal(value: bool | int | float | str) -> str:
    """A value in the text of a filter; no text can end its own quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value.translate(_ESCAPES)}"' if isinstance(value, str) else repr(value)


def _condition(column: Column, given: str, value: Any) -> str | None:
    if column.field is None:
        return None
    if given == "contains":
        return _holding(column, column.field, value)
    if given in ("in", "not in"):
        return _membership(column, column.field, given, [one for one in value if not is_missing(one)])
    return _comparison(column, column.field, "==" if given == "=" else given, value)


def _membership(column: Column, field: str, given: str, values: list[Any]) -> str | None:
    if is_moment(column.type):
        stored: list[Any] = moments_among(column.type, values)
    else:
        stored = as_stored(pa.array(values, column.type), column.storage).to_pylist()
    finite = [one for one in stored if one is not None and not (isinstance(one, float) and not math.isfinite(one))]
    if pa.types.is_boolean(column.type):
        return _one_of(field, {one for one in (False, True) if (one in finite) == (given == "in")})
    if given == "in":
        return f"{field} in [{', '.join(map(literal, finite))}]" if finite else None
    # Of a null, Milvus says that it is not in a list.
    unlisted = f" and {field} not in [{', '.join(map(literal, finite))}]" if finite else ""
    return f"{field} is not null{unlisted}"


def _comparison(column: Column, field: str, given: str, value: Any) -> str | None:
    if is_missing(value):
        return None
    if is_moment(column.type):
        compared = against_moment(column.type, given, value)
        if isinstance(compared, bool):
            return f"{field} is not null" if compared else None
        return f"{field} is not null and {field} {compared[0]} {compared[1]}"
    if pa.types.is_integer(column.type) and isinstance(value, float):
        return _against_fraction(field, given, value)
    stored = as_stored(pa.array([value], column.type), column.storage)[0].as_py()
    if isinstance(stored, bool):
        return _one_of(field, {one for one in (False, True) if _OPERATORS[given](one, stored)})
    if isinstance(stored, float) and not math.isfinite(stored):
        return _against_anything(field, given, stored)
    return f"{field} is not null and {field} {given} {literal(stored)}"


def _holding(column: Column, field: str, value: Any) -> str | None:
    if is_missing(value):
        return None
    inner = column.type.value_type
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        if pa.types.is_integer(inner):
            if value != int(value) or not -(2**63) <= value < 2**63:
                return None
            value = int(value)
    held = pa.scalar(value, inner).as_py()
    return f'json_contains({field}["items"], {literal(held)})'


def _against_fraction(field: str, given: str, value: float) -> str | None:
    """Whole numbers beside one that need not be whole, as Milvus compares whole numbers with whole ones only."""
    if not -(2**63) < value < 2**63:
        return _against_anything(field, given, value)
    if value != int(value) and given in ("==", "!="):
        return None if given == "==" else f"{field} is not null"
    bound = math.ceil(value) if given in ("<", ">=") else math.floor(value)
    return f"{field} is not null and {field} {given} {bound}"


def _against_anything(field: str, given: str, value: float) -> str | None:
    """Numbers beside one that is NaN or larger, or smaller, than all that a field holds."""
    return f"{field} is not null" if _OPERATORS[given](0.0, value) else None


def _one_of(field: str, allowed: set[bool]) -> str | None:
    if len(allowed) == 2:
        return f"{field} is not null"
    return f"{field} == {literal(allowed.pop())}" if allowed else None
