"""Filters on metadata, written as Parquet readers take them: `[("price", "<", 50), ("category", "in", ["dress"])]`."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue_schema import is_list
from mmfusion.model.errors import MMFusionError
from mmfusion.model.processing_mmfusion import is_missing
from mmfusion.retrieval.moments import against_moment, expected, is_moment, number_type

# Conditions that all hold, or a list of such lists of which one holds (disjunctive normal form).
Filter = Sequence[Any]

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
OPERATORS = (*_COMPARE, "in", "not in", "contains")


class FilterError(MMFusionError):
    """A filter names what is not there, or compares what cannot be compared."""


def filter_rows(metadata: pa.StructArray | pa.ChunkedArray | None, conditions: Filter) -> npt.NDArray[np.bool_]:
    """Which rows a filter lets through.

    Args:
        metadata: Struct column with a field for each metadata column; None if there is none.
        conditions: `(field, operator, value)` triples that all hold, or a list of lists of them of which one holds. A
            null or NaN is let through by no condition, `!=` and `not in` included, and a missing value lets nothing
            through. `contains` is for columns of lists: those that hold the value. Columns of dates, timestamps and
            times of day take ISO 8601 texts ("2026-01-31", "2026-01-31T18:30:00.5+01:00") as well as Python's own
            values; what has no zone is UTC, in the column as in the value, and a date is its midnight. Columns of
            durations take `datetime.timedelta`, those of decimals also numbers and their texts.

    Returns:
        (N,) bool.

    Raises:
        FilterError: An unknown field or operator, a value of another type, or something else than such triples.
    """
    # Folded, as each of them has a byte for every product.
    alternatives = ((_holds(metadata, condition) for condition in one) for one in alternatives_of(conditions))
    return reduce(np.logical_or, (reduce(np.logical_and, masks) for masks in alternatives))


def alternatives_of(conditions: Filter) -> list[list[Any]]:
    """Lists of conditions, of which one holds.

    Raises:
        FilterError: The filter is no list.
    """
    if not isinstance(conditions, (list, tuple)) or not conditions:
        raise FilterError(f"the filter is {conditions!r}; give a list of (field, operator, value) triples.")
    nested = all(isinstance(one, (list, tuple)) and one and isinstance(one[0], (list, tuple)) for one in conditions)
    return [list(one) for one in conditions] if nested else [list(conditions)]


def _holds(metadata: Any, condition: Any) -> npt.NDArray[np.bool_]:
    if not isinstance(condition, (list, tuple)) or len(condition) != 3:
        raise FilterError(f"the filter holds {condition!r}; give (field, operator, value), e.g. ('price', '<', 50).")
    field, operator, value = condition
    known = [] if metadata is None else [metadata.type.field(i).name for i in range(metadata.type.num_fields)]
    if field not in known:
        raise FilterError(f"the filter names the field {field!r}; this index has {', '.join(known) or 'no metadata'}.")
    if operator not in OPERATORS:
        raise FilterError(f"the filter has the operator {operator!r}; use one of {' '.join(OPERATORS)}.")
    column = pc.struct_field(metadata, [known.index(field)])
    if is_list(column.type) != (operator == "contains") and not pa.types.is_null(column.type):
        raise FilterError(
            f"the filter asks whether {field!r} {operator} {value!r}, and {field!r} is {column.type}; "
            + (
                f"use ({field!r}, 'contains', value)."
                if operator != "contains"
                else "contains is for lists, use = or in."
            )
        )
    try:
        found = _contains(column, value) if operator == "contains" else _compare(column, operator, value)
    except (
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
        TypeError,
        ValueError,
        ArithmeticError,
        UnicodeError,
    ) as error:
        inner = column.type.value_type if operator == "contains" and is_list(column.type) else column.type
        remedy = (
            f"; give {'a list of ' if 'in' in operator.split() else ''}{expected(inner)}" if is_moment(inner) else ""
        )
        raise FilterError(f"the filter compares {field!r}, which is {column.type}, with {value!r}{remedy}.") from error
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), dtype=bool)


def _contains(column: Any, value: Any) -> Any:
    """Which lists hold a value."""
    if isinstance(value, (list, tuple, set)):
        raise TypeError("several values")
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.bool_())
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    found = [np.zeros(len(chunk), dtype=bool) for chunk in chunks]
    for chunk, mask in zip(chunks, found, strict=True):
        held = pc.fill_null(_compare(pc.list_flatten(chunk), "=", value), False)
        mask[_rows_of_items(chunk)[held.to_numpy(zero_copy_only=False)]] = True
    return pa.array(np.concatenate([np.zeros(0, dtype=bool), *found]))


def _rows_of_items(lists: Any) -> npt.NDArray[np.int64]:
    if pa.types.is_fixed_size_list(lists.type):
        # Arrow counts the items of nulls here, and not when it flattens.
        return np.repeat(np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False)), lists.type.list_size)
    return np.asarray(pc.list_parent_indices(lists).to_numpy())


def _compare(column: Any, operator: str, value: Any) -> Any:
    if operator in _COMPARE:
        if is_missing(value):
            return pa.nulls(len(column), pa.bool_())
        if is_moment(column.type):
            return _compare_moments(column, operator, value)
        value = _exact(column, value)
        found = _COMPARE[operator](column, pa.scalar(value, column.type) if _same_kind(column, value) else value)
        return pc.and_(found, _is_there(column))
    if not isinstance(value, (list, tuple, set)):
        raise TypeError("not a list")
    given = [one for one in value if not is_missing(one)]
    kind = column.type
    if is_moment(kind):
        given, column = moments_among(kind, given), _numbers(column)
    among = pc.is_in(column, value_set=pa.array([_exact(column, one) for one in given], column.type), skip_nulls=True)
    return pc.and_(_is_there(column), pc.invert(among)) if operator == "not in" else among


def moments_among(kind: pa.DataType, values: Sequence[Any]) -> list[int]:
    """Values that a column of moments can hold, as the whole numbers that it is stored as.

    Raises:
        TypeError, ValueError: One is none of such a column.
    """
    compared = [against_moment(kind, "==", one) for one in values]
    return [one[1] for one in compared if isinstance(one, tuple)]


def _compare_moments(column: Any, operator: str, value: Any) -> Any:
    compared = against_moment(column.type, "==" if operator == "=" else operator, value)
    if isinstance(compared, bool):
        return pc.and_(pc.is_valid(column), compared)
    numbers = _numbers(column)
    return _COMPARE[compared[0]](numbers, pa.scalar(compared[1], numbers.type))


def _numbers(column: Any) -> Any:
    return column.cast(number_type(column.type))


def _is_there(column: Any) -> Any:
    """Whether there is a value: NaN, which older indexes hold, is none."""
    valid = pc.is_valid(column)
    return pc.and_not(valid, pc.is_null(column, nan_is_null=True)) if pa.types.is_floating(column.type) else valid


def _exact(column: Any, value: Any) -> Any:
    # 49.99 is what the digits say where a column holds digits, and the text of digits is what the service answers.
    return Decimal(str(value)) if pa.types.is_decimal(column.type) and isinstance(value, (float, str)) else value


def _same_kind(column: Any, value: Any) -> bool:
    # Numbers are compared as numbers: 49.5 is no value of an integer column, and yet below 50.
    return not (pa.types.is_integer(column.type) and isinstance(value, float)) and not isinstance(value, Decimal)
