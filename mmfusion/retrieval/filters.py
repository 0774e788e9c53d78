"""Filters on metadata, written as Parquet readers take them: `[("price", "<", 50), ("category", "in", ["dress"])]`."""

import datetime
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue_schema import is_list
from mmfusion.model.errors import MMFusionError
from mmfusion.model.missing import is_missing

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
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


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
        FilterError: The filter is not a list.
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
    kind = column.type
    if is_list(kind) != (operator == "contains") and not pa.types.is_null(kind):
        remedy = f"use ({field!r}, 'contains', value)" if is_list(kind) else "contains is for lists, use = or in"
        raise FilterError(f"the filter asks whether {field!r} {operator} {value!r}, and {field!r} is {kind}; {remedy}.")
    try:
        found = _contains(column, value) if operator == "contains" else _compare(column, operator, value)
    except (TypeError, ValueError, NotImplementedError, ArithmeticError) as error:
        inner = kind.value_type if is_list(kind) else kind
        listed = "a list of " if operator in ("in", "not in") else ""
        remedy = f"; give {listed}{_expected(inner)}" if is_moment(inner) else ""
        raise FilterError(f"the filter compares {field!r}, which is {kind}, with {value!r}{remedy}.") from error
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), dtype=bool)


def _contains(column: Any, value: Any) -> Any:
    """Which lists hold a value."""
    if isinstance(value, (list, tuple, set)):
        raise TypeError("several values")
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.bool_())
    found = [np.zeros(0, dtype=bool)]
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        # What Arrow flattens are the items of all lists but nulls.
        lists = np.repeat(np.arange(len(chunk)), pc.fill_null(pc.list_value_length(chunk), 0).to_numpy())
        held = pc.fill_null(_compare(pc.list_flatten(chunk), "==", value), False)
        found.append(np.isin(np.arange(len(chunk)), lists[held.to_numpy(zero_copy_only=False)]))
    return pa.array(np.concatenate(found))


def _compare(column: Any, operator: str, value: Any) -> Any:
    # NaN, which older indexes hold, is not a value.
    there = pc.invert(pc.is_null(column, nan_is_null=True))
    kind = column.type
    stored = column.cast(number_type(kind)) if is_moment(kind) else column
    if operator in ("in", "not in"):
        among = pc.is_in(stored, value_set=pa.array(values_of(kind, value), stored.type))
        return pc.and_(there, pc.invert(among) if operator == "not in" else among)
    compared = False if is_missing(value) else comparison(kind, operator, value)
    if isinstance(compared, bool):
        return pc.and_(there, compared)
    operator, value = compared
    # 49.995 is not a value of a column of two decimal places, and yet below 50.
    bound = value if isinstance(value, Decimal) else pa.scalar(value, stored.type)
    return pc.and_(there, _COMPARE[operator](stored, bound))


def values_of(kind: pa.DataType, values: Iterable[Any]) -> list[Any]:
    """What of some values a column can hold, without missing ones; moments as the whole numbers they are stored as.

    Raises:
        TypeError, ValueError: It is not a list, or one of them cannot be compared with the column.
    """
    if not isinstance(values, (list, tuple, set)):
        raise TypeError("not a list")
    compared = [comparison(kind, "==", one) for one in values if not is_missing(one)]
    return [one[1] for one in compared if isinstance(one, tuple)]


def comparison(kind: pa.DataType, operator: str, value: Any) -> tuple[str, Any] | bool:
    """A comparison with a column as one with a value that the column can hold.

    Args:
        kind: Type of the column.
        operator: One of `= == != < <= > >=`.
        value: What it is compared with; of a column of moments as `_nanoseconds` takes it.

    Returns:
        Operator and value, of moments the whole number that the column stores; or True where the comparison holds for
        all that is not null, False where for nothing.

    Raises:
        TypeError, ValueError: The value cannot be compared with a moment.
    """
    operator = "==" if operator == "=" else operator
    if is_moment(kind):
        number, rest = divmod(_nanoseconds(kind, value), _step(kind))
        kind = number_type(kind)
    elif pa.types.is_integer(kind) and isinstance(value, float):
        # Numbers are compared as numbers: 49.5 is not a value of an integer column, and yet below 50.
        bounded = min(max(value, -(2.0**65)), 2.0**65)
        number, rest = int(bounded // 1), int(bounded % 1 > 0)
    else:
        # 49.99 is what the digits say where a column holds digits, and the text of digits is what the service answers.
        exact = pa.types.is_decimal(kind) and isinstance(value, (float, str))
        return operator, Decimal(str(value)) if exact else value
    limits = np.iinfo(kind.to_pandas_dtype())
    if number > limits.max or number < limits.min:
        return operator in (("!=", "<", "<=") if number > 0 else ("!=", ">", ">="))
    if not rest:
        return operator, number
    # Between two numbers that the column can hold.
    return {"==": False, "!=": True}.get(operator, ("<=" if operator in ("<", "<=") else ">", number))


def is_moment(kind: pa.DataType) -> bool:
    """Whether a column holds dates, times of day, timestamps or durations."""
    return bool(pa.types.is_temporal(kind) and not pa.types.is_interval(kind))


def number_type(kind: pa.DataType) -> pa.DataType:
    """Type of the whole numbers that a column of moments is stored as."""
    return pa.int32() if kind.bit_width == 32 else pa.int64()


def _expected(kind: pa.DataType) -> str:
    """What a column of moments is compared with."""
    if pa.types.is_duration(kind):
        return "a datetime.timedelta; texts and numbers are not durations"
    if pa.types.is_time(kind):
        return "an ISO 8601 time such as '18:30' or '18:30:00.5'"
    return "an ISO 8601 date or time such as '2026-01-31' or '2026-01-31T18:30:00Z'"


def _nanoseconds(kind: pa.DataType, value: Any) -> int:
    """A moment in nanoseconds: since 1970 UTC, since midnight, or in all.

    What has no zone is UTC, in the column as in the value, and a date is its midnight.

    Args:
        kind: Type of the column.
        value: A date, datetime, time or timedelta, of Python, NumPy or pandas; or an ISO 8601 text (not for
            durations).

    Raises:
        TypeError, ValueError: The value cannot be compared with the column.
    """
    finer = getattr(value, "nanosecond", getattr(value, "nanoseconds", 0))
    if isinstance(value, str) and not pa.types.is_duration(kind):
        parser = datetime.time if pa.types.is_time(kind) else datetime.datetime
        # Python reads no more than microseconds.
        parts = re.split(r"(?<=:\d\d:\d\d)[.,](\d{1,9})", value.upper(), maxsplit=1)
        value, finer = parser.fromisoformat("".join(parts[::2])), int("".join(parts[1:2]).ljust(9, "0"))
    given = pa.array(np.asarray([value]))
    alike = all(one(kind) == one(given.type) for one in (pa.types.is_duration, pa.types.is_time))
    if not alike or not is_moment(given.type) or (pa.types.is_time(kind) and value.tzinfo is not None):
        raise TypeError("no such moment")
    number: int = given.cast(number_type(given.type))[0].as_py()
    return number * _step(given.type) + finer


def _step(kind: pa.DataType) -> int:
    """Nanoseconds of one in a column of moments."""
    if pa.types.is_date32(kind):
        return 86_400 * 10**9
    return 10**9 // _PER_SECOND["ms" if pa.types.is_date64(kind) else kind.unit]
