"""Columns of the table beside the vectors as fields of a Milvus collection, and back."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.retrieval.table_rows import BLOCK

ID_FIELD, VECTOR_FIELD = "product_id", "embedding"
# Limits of Milvus.
MAX_BYTES, MAX_FIELDS = 65_535, 64
# Names that mean something in Milvus: of its own columns, and in its filters.
_TAKEN = frozenset(
    f"{ID_FIELD} {VECTOR_FIELD} rowid timestamp and or not in like is null exists true false iso interval match "
    "array_contains array_contains_all array_contains_any array_length json_contains json_contains_all "
    "json_contains_any text_match phrase_match random_sample".split()
)
# Types that Milvus has no field for, and those that hold all their values.
_WIDER = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.int64(),
    pa.float16(): pa.float32(),
    pa.date32(): pa.int32(),
    pa.date64(): pa.int64(),
}
_SAME = {pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()}


class Nested:
    """Lists and structs, which Milvus holds as JSON; filters do not look into them."""


@dataclass(frozen=True)
class Column:
    """A column and the field that holds it.

    Attributes:
        struct: Column of the table, "metadata" or "modality_weights", that it is a field of.
        name: Its name there.
        type: Its Arrow type, which values come back with.
        field: Name of the field in Milvus; None where there are only nulls.
        storage: Arrow type of the values that Milvus holds, or [`Nested`].
    """

    struct: str
    name: str
    type: pa.DataType
    field: str | None
    storage: pa.DataType | type[Nested]

    def values(self, table: pa.Table) -> pa.Array:
        """The column of a table."""
        struct = table.column(self.struct).combine_chunks()
        return pc.struct_field(struct, [struct.type.get_field_index(self.name)])

    def stored(self, table: pa.Table) -> list[Any]:
        """Values as Milvus takes them."""
        values = self.values(table)
        if isinstance(self.storage, pa.DataType):
            return as_stored(values, self.storage).to_pylist()
        wrapped = not pa.types.is_struct(self.type)
        return [{"items": value} if wrapped and value is not None else value for value in values.to_pylist()]

    def restored(self, values: list[Any]) -> list[Any]:
        """Values as the table had them."""
        if isinstance(self.storage, pa.DataType):
            return pa.array(values, self.storage).cast(self.type).to_pylist()
        if not pa.types.is_struct(self.type):
            values = [value if value is None else value["items"] for value in values]
        return pa.array(values, self.type).to_pylist()


def columns_of(schema: pa.Schema) -> tuple[Column, ...]:
    """The columns of a table that [`products_table`] made, but for the id, and their fields.

    A field has the name of its column where Milvus takes it, so that other programs find it.

    Raises:
        ValueError: Milvus has no field for such a column, or not for so many; or two have one name.
    """
    found: list[Column] = []
    for struct in schema:
        for place in range(struct.type.num_fields):
            inner = struct.type.field(place)
            if any(inner.name == one.name and struct.name == one.struct for one in found):
                raise ValueError(f"there are two columns {inner.name!r} in the {struct.name}; rename one")
            found.append(_column(struct.name, inner, len(found), {one.field for one in found}))
    if len(found) + 2 > MAX_FIELDS:
        raise ValueError(
            f"{len(found)} columns of metadata and weights are more than the {MAX_FIELDS - 2} that a Milvus collection "
            "takes; leave out those that hits and filters do not need"
        )
    return tuple(found)


def _column(struct: str, inner: pa.Field, place: int, taken: set[str | None]) -> Column:
    storage = _storage(inner.name, inner.type)
    wanted = inner.name if struct == "metadata" else f"{inner.name}_share"
    # Names of the form that the others get stay free for them.
    plain = re.fullmatch(r"(?!column_\d+_$)[A-Za-z][A-Za-z0-9_]{0,254}", wanted) and wanted.lower() not in _TAKEN
    field = wanted if plain and wanted not in taken else f"column_{place}_"
    return Column(struct, inner.name, inner.type, None if pa.types.is_null(inner.type) else field, storage)


def _storage(name: str, kind: pa.DataType) -> pa.DataType | type[Nested]:
    if pa.types.is_dictionary(kind):
        return _storage(name, kind.value_type)
    if kind in _SAME or pa.types.is_null(kind):
        return kind
    if kind in _WIDER:
        return _WIDER[kind]
    if _is_text(kind):
        return pa.string()
    if pa.types.is_time32(kind):
        return pa.int32()
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return pa.int64()
    if _is_plain(kind) and pa.types.is_nested(kind):
        return Nested
    raise ValueError(
        f"the metadata column {name!r} is {kind}, which Milvus has no field for; convert it (decimals to float64, "
        "bytes to text) or leave it out"
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_plain(kind: pa.DataType) -> bool:
    """Whether JSON holds all values of a type."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_plain(kind.field(place).type) for place in range(kind.num_fields))
    number = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    return bool(number or pa.types.is_boolean(kind) or _is_text(kind))


def as_stored(values: pa.Array, storage: pa.DataType) -> pa.Array:
    """Values of a column as numbers, texts and booleans of the types that Milvus has."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.cast(storage)


def check_values(table: pa.Table, columns: Sequence[Column]) -> None:
    """Refuses what Milvus would refuse in the middle of an upload, or give back as something else.

    Raises:
        ValueError: A text or list is too long, a number infinite or too large; names product and column.
    """
    for start in range(0, len(table), BLOCK):
        try:
            _check_block(table.slice(start, BLOCK), columns)
        except _BadRowError as bad:
            raise ValueError(f"product {bad.name!r} in row {start + bad.row}: its {bad.fault}") from None


class _BadRowError(Exception):
    def __init__(self, name: str, row: int, fault: str) -> None:
        super().__init__(fault)
        self.name, self.row, self.fault = name, row, fault


def _check_block(rows: pa.Table, columns: Sequence[Column]) -> None:
    _check_rows(rows, "product id", _too_long(rows.column(ID_FIELD).combine_chunks()), _LENGTH)
    for column in columns:
        what = f"column {column.name!r}"
        if isinstance(column.storage, pa.DataType):
            values = column.values(rows)
            if pa.types.is_uint64(values.type):
                most = pa.scalar(2**63 - 1, pa.uint64())
                _check_rows(rows, what, pc.greater(values, most), "is more than 2^63 - 1; make it a float or text")
            values = as_stored(values, column.storage)
            if pa.types.is_floating(column.storage):
                _check_rows(rows, what, pc.invert(pc.is_finite(values)), "is infinite; use null instead")
            elif pa.types.is_string(column.storage):
                _check_rows(rows, what, _too_long(values), _LENGTH)
        else:
            faults = [_fault(value) for value in column.stored(rows)]
            for fault in sorted({one for one in faults if one}):
                _check_rows(rows, what, pa.array([one == fault for one in faults], pa.bool_()), fault)


_LENGTH = f"takes more than {MAX_BYTES:,} bytes; shorten it or leave the column out"


def _too_long(values: pa.Array) -> pa.Array:
    return pc.greater(pc.binary_length(values), MAX_BYTES)


def _fault(value: Any) -> str:
    if not all(map(_is_safe, _leaves(value))):
        return "holds an infinite number or one of 2^63 or more, which JSON cannot hold; use null instead"
    return _LENGTH if len(json.dumps(value, ensure_ascii=False).encode()) > MAX_BYTES else ""


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)
    else:
        yield value


def _is_safe(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or value < 2**63


def _check_rows(table: pa.Table, what: str, bad: pa.Array, fault: str) -> None:
    rows = np.flatnonzero(pc.fill_null(bad, False).to_numpy(zero_copy_only=False))
    if len(rows):
        name = table.column(ID_FIELD)[int(rows[0])].as_py()
        raise _BadRowError(name if len(name) <= 60 else name[:60] + "…", int(rows[0]), f"{what} {fault}")
