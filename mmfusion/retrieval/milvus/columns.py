"""Columns of the table next to the vectors as fields of a Milvus collection and back, and filters on them.

Columns have typed fields rather than Milvus's dynamic ones: all dynamic values of a product together take no more than
65,536 bytes, which a single text may, and how a filter treats one that is missing differs between Milvus Lite and
versions of the server.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue_schema import is_list
from mmfusion.model.missing import is_missing
from mmfusion.retrieval.filters import (
    Filter,
    alternatives_of,
    comparison,
    filter_rows,
    is_moment,
    number_type,
    values_of,
)
from mmfusion.retrieval.products import BLOCK

ID_FIELD, VECTOR_FIELD = "product_id", "embedding"
# Words of a product as text, and what Milvus makes of them for BM25.
WORDS_FIELD, BM25_FIELD = "mmfusion_words", "mmfusion_bm25"
# Limits of Milvus.
MAX_BYTES, MAX_FIELDS = 65_535, 64
# Fields of Milvus by the Arrow type of their values; lists and structs are JSON.
FIELD_TYPES = {
    pa.bool_(): "BOOL",
    pa.int8(): "INT8",
    pa.int16(): "INT16",
    pa.int32(): "INT32",
    pa.int64(): "INT64",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
}
# Types that Milvus has no field for, and types that hold all their values.
_WIDER = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.int64(),
    pa.float16(): pa.float32(),
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
}
# Names that mean something in Milvus: of its own columns, and in its filters.
_TAKEN = frozenset(
    f"{ID_FIELD} {VECTOR_FIELD} {WORDS_FIELD} {BM25_FIELD} "
    "rowid timestamp and or not in like is null exists true false iso interval match "
    "array_contains array_contains_all array_contains_any array_length json_contains json_contains_all "
    "json_contains_any text_match phrase_match random_sample".split()
)
_LENGTH = f"takes more than {MAX_BYTES:,} bytes; shorten it or leave the column out"
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


@dataclass(frozen=True)
class Column:
    """A column and the field that holds it.

    Attributes:
        struct: Column of the table, "metadata" or "modality_weights", that it is a field of.
        name: Its name there.
        type: Its Arrow type, which values come back with.
        field: Name of the field in Milvus; None where there are only nulls.
        storage: Arrow type of the values that Milvus holds. Lists are the only item of a struct, as JSON is an object.
    """

    struct: str
    name: str
    type: pa.DataType
    field: str | None
    storage: pa.DataType

    def of(self, table: pa.Table) -> pa.Array:
        """The column of a table."""
        struct = table.column(self.struct).combine_chunks()
        return pc.struct_field(struct, [struct.type.get_field_index(self.name)])

    def stored(self, table: pa.Table) -> list[Any]:
        """Values of the column of a table as Milvus takes them."""
        values = self.of(table)
        if is_list(self.type):
            return pa.StructArray.from_arrays([values], ["items"], mask=values.is_null()).to_pylist()
        return values.cast(self.storage).to_pylist()

    def restored(self, values: list[Any]) -> list[Any]:
        """Values of Milvus as the table had them."""
        held = pa.array(values, self.storage)
        return (pc.struct_field(held, "items") if is_list(self.type) else held.cast(self.type)).to_pylist()


def columns_of(schema: pa.Schema) -> tuple[Column, ...]:
    """The columns of a table that [`products_table`] made, except for the id, and their fields.

    A field has the name of its column where Milvus takes it, so that other programs find it.

    Raises:
        ValueError: Milvus has no field for such a column, or not for so many.
    """
    found: list[Column] = []
    for struct, inner in ((one.name, inner) for one in schema if one.name != ID_FIELD for inner in one.type):
        field = inner.name if struct == "metadata" else f"{inner.name}_share"
        # Names of the form that the others get stay free for them.
        plain = re.fullmatch(r"(?!column_\d+_$)[A-Za-z][A-Za-z0-9_]{0,254}", field) and field.lower() not in _TAKEN
        if not plain or any(field == one.field for one in found):
            field = f"column_{len(found)}_"
        nulls = pa.types.is_null(inner.type)
        found.append(Column(struct, inner.name, inner.type, None if nulls else field, _storage(inner)))
    if len(found) + 2 > MAX_FIELDS:
        raise ValueError(
            f"{len(found)} columns of metadata and weights are more than the {MAX_FIELDS - 2} that a Milvus collection "
            "takes; leave out those that hits and filters do not need"
        )
    return tuple(found)


def _storage(field: pa.Field) -> pa.DataType:
    kind = _WIDER.get(field.type, field.type)
    if kind in FIELD_TYPES or pa.types.is_null(kind):
        return kind
    if is_moment(kind):
        return number_type(kind)
    if pa.types.is_nested(kind) and _fits_json(kind):
        return pa.struct([("items", kind)]) if is_list(kind) else kind
    raise ValueError(
        f"the metadata column {field.name!r} is {kind}, which Milvus has no field for; convert it (decimals to "
        "float64, bytes to text) or leave it out"
    )


def _fits_json(kind: pa.DataType) -> bool:
    if is_list(kind):
        return _fits_json(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_fits_json(one.type) for one in kind)
    return kind in FIELD_TYPES or (kind in _WIDER and not pa.types.is_float16(kind))


def check_values(table: pa.Table, columns: Sequence[Column]) -> None:
    """Raises an error for what Milvus would reject in the middle of an upload, or return as something else.

    Raises:
        ValueError: A text or list is too long, a number infinite or too large; names product and column.
    """
    for start in range(0, len(table), BLOCK):
        rows = table.slice(start, BLOCK).combine_chunks()
        for what, bad, fault in _faults(rows, columns):
            row = pc.index(bad, True).as_py()
            if row >= 0:
                name = rows.column(ID_FIELD)[row].as_py()
                name = name if len(name) <= 60 else name[:60] + "…"
                raise ValueError(f"product {name!r} in row {start + row}: its {what} {fault}")


def _faults(rows: pa.Table, columns: Sequence[Column]) -> Iterator[tuple[str, pa.Array, str]]:
    """What may be wrong with a value, where it is (N,) bool, and what is said of it."""
    yield "product id", pc.greater(pc.binary_length(rows.column(ID_FIELD)), MAX_BYTES), _LENGTH
    for column in columns:
        values, what = column.of(rows), f"column {column.name!r}"
        if pa.types.is_nested(column.storage):
            faults = pa.array(list(map(_fault, column.stored(rows))), pa.string())
            for fault in faults.unique().drop_null().to_pylist():
                yield what, pc.equal(faults, fault), fault
        elif pa.types.is_uint64(values.type):
            most = pa.scalar(2**63 - 1, pa.uint64())
            yield what, pc.greater(values, most), "is more than 2^63 - 1; make it a float or text"
        elif pa.types.is_floating(values.type):
            yield what, pc.is_inf(values.cast(column.storage)), "is infinite; use null instead"
        elif column.storage == pa.string():
            yield what, pc.greater(pc.binary_length(values.cast(pa.string())), MAX_BYTES), _LENGTH


def _fault(value: Any) -> str | None:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        json.loads(text, parse_int=np.int64)
    except (ValueError, OverflowError):
        return "holds an infinite number or one of 2^63 or more, which JSON cannot hold; use null instead"
    return _LENGTH if len(text.encode()) > MAX_BYTES else None


def milvus_expression(conditions: Filter, columns: Sequence[Column], metadata: pa.StructArray | None) -> str | None:
    """A filter in the language of Milvus, which takes no values apart from the text of a filter.

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
        parts = [_condition(known[name], given, value) for name, given, value in alternative]
        if None not in parts:
            wholes.append(" and ".join(f"({part})" for part in parts))
    return " or ".join(f"({one})" for one in wholes) if wholes else None


def among(field: str, values: Iterable[Any], operator: str = "in") -> str:
    """An expression for the products whose field has one of these values, or with `not in` none of them."""
    return f"{field} {operator} [{', '.join(map(_literal, values))}]"


def _literal(value: bool | int | float | str) -> str:
    """A value in the text of a filter; no text can end its own quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value.translate(_ESCAPES)}"' if isinstance(value, str) else repr(value)


def _condition(column: Column, given: str, value: Any) -> str | None:
    """One condition, of values that [`filter_rows`] has let through; None where nothing fulfils it."""
    field = column.field
    there = f"{field} is not null"
    if field is None or is_missing(value):
        return None
    if given == "contains":
        inner = column.type.value_type
        held = _finite(pa.array(values_of(inner, [value]), inner))
        return f'json_contains({field}["items"], {_literal(held[0])})' if held else None
    if column.storage == pa.bool_():
        allowed = _fulfilling(column, (column.name, given, value), [False, True])
        return there if len(allowed) == 2 else f"{field} == {_literal(allowed[0])}" if allowed else None
    if given in ("in", "not in"):
        values = _finite(_as_compared(column, values_of(column.type, value)))
        if given == "in":
            return among(field, values) if values else None
        # Of a null, Milvus says that it is not in a list.
        return f"{there} and {among(field, values, given)}" if values else there
    compared = comparison(column.type, given, value)
    if isinstance(compared, bool):
        return there if compared else None
    bound = _as_compared(column, [compared[1]])
    if not _finite(bound):
        return there if _fulfilling(column, (column.name, given, value), [0.0]) else None
    return f"{there} and {field} {compared[0]} {_literal(bound[0].as_py())}"


def _fulfilling(column: Column, condition: tuple[str, str, Any], values: list[Any]) -> list[Any]:
    """Which values of a column fulfil a condition."""
    table = pa.StructArray.from_arrays([pa.array(values, column.type)], [column.name])
    return pa.array(values).filter(pa.array(filter_rows(table, [condition]))).to_pylist()


def _as_compared(column: Column, values: list[Any]) -> pa.Array:
    """Values that a column is compared with, of the type that Milvus holds; moments are whole numbers already."""
    return pa.array(values, column.storage if is_moment(column.type) else column.type).cast(column.storage)


def _finite(values: pa.Array) -> list[Any]:
    return [one for one in values.to_pylist() if not isinstance(one, float) or math.isfinite(one)]
