"""The table next to the vectors of an index: ids, modality weights and metadata, row by row."""

import bisect
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue_schema import has_text
from mmfusion.lexical import WordCounts
from mmfusion.model.missing import is_missing
from mmfusion.retrieval.vectors import BLOCK, IntArray, as_float32

MODALITIES = ("text", "image")
LEXICAL_COLUMNS = ("title", "description")
# Arrow arrays spare a Python object for each of millions of ids.
Ids: TypeAlias = Sequence[str] | np.ndarray | pa.Array | pa.ChunkedArray


def products_table(product_ids: Ids, metadata: pa.Table | None, modality_weights: np.ndarray | None) -> pa.Table:
    """Columns `product_id`, and as far as they are given, structs `modality_weights` and `metadata` (NaN as null).

    Raises:
        ValueError: An id is not a string or appears twice, numbers of rows differ, a weight is not finite, or two
            columns of the metadata have the same name.
    """
    ids = ids_column(product_ids)
    first = pc.index_in(ids, value_set=ids).to_numpy()
    again = np.flatnonzero(first != np.arange(len(ids)))
    if len(again):
        row = int(again[0])
        raise ValueError(f"product id {ids[row].as_py()!r} appears twice, in rows {first[row]} and {row}; remove one")
    # Structs keep metadata columns of any name apart from ours.
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"product_id": ids}
    if modality_weights is not None:
        weights = as_float32(modality_weights, what="modality weights")
        if weights.shape[1] != len(MODALITIES):
            raise ValueError(f"modality weights have {weights.shape[1]} columns; pass one each for {MODALITIES}")
        columns["modality_weights"] = weights_column(weights)
    if metadata is not None and metadata.num_columns:
        columns["metadata"] = _plain(metadata).to_struct_array()
    for name, column in columns.items():
        if len(column) != len(ids):
            raise ValueError(
                f"{name.replace('_', ' ')} has {len(column)} rows for {len(ids)} product ids; pass one each"
            )
    return pa.table(columns)


def ids_column(product_ids: Ids) -> pa.Array | pa.ChunkedArray:
    """Ids as an Arrow column of strings.

    Raises:
        ValueError: One is not a string, or not one of Unicode; or this is a single string.
    """
    if isinstance(product_ids, str):
        raise ValueError(f"product_ids is the text {product_ids!r}; give a list of ids")
    ids: Any = product_ids
    in_arrow = isinstance(ids, (pa.Array, pa.ChunkedArray))
    if in_arrow and not ids.null_count and ids.type in (pa.string(), pa.large_string()):
        return ids.cast(pa.string())
    ids = ids.to_pylist() if in_arrow else list(ids)
    for row, product_id in enumerate(ids):
        if not isinstance(product_id, str):
            raise ValueError(f"product id {product_id!r} in row {row} is not a string; convert ids before indexing")
    try:
        return pa.array(ids, pa.string())
    except UnicodeEncodeError as error:
        raise ValueError(f"product id {error.object!r} holds half of a surrogate pair; correct it") from error


def weights_column(weights: np.ndarray) -> pa.StructArray:
    """Modality weights (N, 2), shares of text and photo, as a column of structs."""
    return pa.StructArray.from_arrays(list(map(pa.array, weights.T)), MODALITIES)


def like(table: pa.Table, other: pa.Table) -> pa.Table:
    """A table with the columns and types of another one.

    Raises:
        ValueError: It has other columns, or values that do not fit the types.
    """
    try:
        # Arrow's cast would fill and drop fields of structs without saying so.
        if set(table.flatten().column_names) != set(other.flatten().column_names):
            raise ValueError("other columns")
        if not len(table):
            return other.slice(0, 0)
        chosen = table.select(other.column_names)
        # Arrow cannot cast a slice of structs with a column of nulls, not even to what it is.
        return chosen if chosen.schema.equals(other.schema) else chosen.cast(other.schema)
    except (pa.ArrowNotImplementedError, ValueError) as error:
        columns = ["; ".join(f"{field.name}: {field.type}" for field in one.schema) for one in (table, other)]
        raise ValueError(
            f"products to add have the columns {columns[0]}, the index has {columns[1]}; give the same metadata and "
            "weights as when the index was built"
        ) from error


class IdLookup:
    """Finds the row of an id, by binary search and without an object for each of ten million ids.

    Args:
        products: Table with the column `product_id`, of different strings.
    """

    def __init__(self, products: pa.Table) -> None:
        self._names = products.column("product_id")

    @cached_property
    def order(self) -> pa.Array:
        """Rows in the order of their ids, 8 bytes per product; made at the first look, in seconds for ten million."""
        return pc.sort_indices(self._names)

    def row_of(self, product_id: str) -> int | None:
        """Row of an id, None if there is no such id."""
        # Arrow sorts by UTF-8 bytes, which is the order of code points, Python's.
        place = bisect.bisect_left(self.order, product_id, key=self._name)
        row = self.order[place] if place < len(self._names) else None
        return row.as_py() if row is not None and self._name(row) == product_id else None

    def _name(self, row: pa.Scalar) -> str:
        name: str = self._names[row.as_py()].as_py()
        return name


def take_rows(table: pa.Table, rows: IntArray) -> pa.Table:
    """Some rows of a table of any size, in their order.

    Arrow's own `take` joins the chunks of a column first, which copies all of it and fails beyond 2 GiB of text.
    """
    blocks = (rows[start : start + BLOCK] for start in range(0, max(1, len(rows)), BLOCK))
    return pa.concat_tables([_take(table, block) for block in blocks])


def read_rows(table: pa.Table, rows: IntArray) -> list[dict[str, Any]]:
    """Some rows of a table as dictionaries, in their order; for few of them."""
    found: list[dict[str, Any]] = _take(table, rows).to_pylist()
    return found


def row_blocks(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """All rows, `BLOCK` at a time, however they are chunked."""
    for start in range(0, len(table), BLOCK):
        (batch,) = table.slice(start, BLOCK).combine_chunks().to_batches()
        yield batch


def lexical_columns(lexical: bool | Sequence[str], schema: pa.Schema) -> tuple[str, ...]:
    """The columns of the metadata whose words are searched.

    Args:
        lexical: Their names; True: title and description, as far as there are such.
        schema: Of a table that [`products_table`] made.

    Raises:
        ValueError: There is no such column, or it holds neither texts, numbers nor lists of them.
    """
    metadata = schema.field("metadata").type if "metadata" in schema.names else ()
    fields = {one.name: one.type for one in metadata}
    if isinstance(lexical, str):
        raise ValueError(f"lexical is the text {lexical!r}; give a list of columns, or True")
    chosen = [name for name in LEXICAL_COLUMNS if name in fields] if lexical is True else list(lexical or ())
    if lexical is True and not chosen:
        raise ValueError(
            f"lexical is True, and the products have neither {' nor '.join(LEXICAL_COLUMNS)}; name the columns whose "
            f"words are searched, of {', '.join(fields) or 'their metadata, which is missing'}"
        )
    for name in chosen:
        if name not in fields or not has_text(fields[name]):
            there = f"{fields[name]} there" if name in fields else ", ".join(fields) or "no metadata"
            raise ValueError(
                f"words of the column {name!r} cannot be searched: the products have {there}; name columns of texts"
            )
    return tuple(chosen)


def words_of(products: pa.Table, columns: Sequence[str]) -> WordCounts | None:
    """Counts of the words that products have in columns of their metadata; None without columns."""
    return WordCounts.of(texts_of(products, columns)) if columns else None


def texts_of(products: pa.Table, columns: Sequence[str]) -> Iterator[str]:
    """The text of each product: its values in columns, one after the other."""
    for block in row_blocks(products):
        metadata = block.column("metadata")
        values = [pc.struct_field(metadata, [metadata.type.get_field_index(name)]).to_pylist() for name in columns]
        for row in zip(*values, strict=True):
            parts = [part for value in row for part in (value if isinstance(value, list) else [value])]
            yield " ".join(map(_as_typed, (part for part in parts if not is_missing(part))))


def _as_typed(value: Any) -> str:
    """A value as shoppers write it: numbers of a column that lacks some are floats, and 4711.0 is 4711."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _take(table: pa.Table, rows: IntArray) -> pa.Table:
    batches = table.to_batches()
    ends = np.cumsum([len(batch) for batch in batches], dtype=np.int64)
    of_batch = np.searchsorted(ends, rows, side="right")
    parts = [
        batches[number].take(_places(rows[of_batch == number] - (ends[number] - len(batches[number]))))
        for number in np.unique(of_batch)
    ]
    # Parts come in the order of the chunks; what belongs where is the inverse of the order that sorted them.
    places = np.argsort(np.argsort(of_batch, kind="stable"))
    return pa.Table.from_batches(parts, table.schema).take(_places(places))


def _places(places: IntArray) -> pa.Array:
    # pa.array imports pandas, which a search would wait for.
    buffer = pa.py_buffer(np.ascontiguousarray(places, dtype=np.int64))
    return pa.Array.from_buffers(pa.int64(), len(places), [None, buffer])


def _plain(metadata: pa.Table) -> pa.Table:
    """The same values, those of dictionaries as themselves: a file of Arrow holds one dictionary for all its rows.

    NaN, which marks a missing value in tables of pandas, becomes null.
    """
    names = metadata.column_names
    again = [name for name in names if names.count(name) > 1]
    if again:
        raise ValueError(f"{names.count(again[0])} columns of the metadata are called {again[0]!r}; rename all but one")
    for place, field in enumerate(metadata.schema):
        values = metadata.column(place)
        if pa.types.is_dictionary(field.type):
            values = values.cast(field.type.value_type)
        # A field of a struct that is called like a type only takes time.
        if re.search("float|double", str(values.type)):
            values = _nan_as_null(values)
        metadata = metadata.set_column(place, field.with_type(values.type), values)
    return metadata


def _nan_as_null(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_floating(values.type):
        return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    # Inside of lists and structs; block by block, as Python takes many times the memory of Arrow.
    starts = range(0, len(values), BLOCK)
    blocks = [values.slice(start, BLOCK).to_pylist() for start in starts]
    return pa.chunked_array([pa.array(block, values.type, from_pandas=True) for block in blocks], values.type)
