"""Filters on metadata, written as Parquet readers take them: `[("price", "<", 50), ("category", "in", ["dress"])]`."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

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
OPERATORS = (*_COMPARE, "in", "not in")


class FilterError(ValueError):
    """A filter names what is not there, or compares what cannot be compared."""


def filter_rows(metadata: pa.StructArray | pa.ChunkedArray | None, conditions: Filter) -> npt.NDArray[np.bool_]:
    """Which rows a filter lets through.

    Args:
        metadata: Struct column with a field for each metadata column; None if there is none.
        conditions: `(field, operator, value)` triples that all hold, or a list of lists of them of which one holds. A
            null is let through by no condition.

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
    try:
        found = _compare(column, operator, value)
    except (
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
        TypeError,
        OverflowError,
        UnicodeError,
    ) as error:
        raise FilterError(f"the filter compares {field!r}, which is {column.type}, with {value!r}.") from error
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), dtype=bool)


def _compare(column: Any, operator: str, value: Any) -> Any:
    if operator in _COMPARE:
        value = _exact(column, value)
        return _COMPARE[operator](column, pa.scalar(value, column.type) if _same_kind(column, value) else value)
    if not isinstance(value, (list, tuple, set)):
        raise TypeError("not a list")
    among = pc.is_in(column, value_set=pa.array([_exact(column, one) for one in value], column.type), skip_nulls=True)
    return pc.and_(pc.is_valid(column), pc.invert(among)) if operator == "not in" else among


def _exact(column: Any, value: Any) -> Any:
    # 49.99 is what the digits say where a column holds digits.
    return Decimal(str(value)) if pa.types.is_decimal(column.type) and isinstance(value, float) else value


def _same_kind(column: Any, value: Any) -> bool:
    # Numbers are compared as numbers: 49.5 is no value of an integer column, and yet below 50.
    return not (pa.types.is_integer(column.type) and isinstance(value, float)) and not isinstance(value, Decimal)
