"""The table beside the vectors of an index: ids, modality weights and metadata, row by row."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.model.processing_mmfusion import is_missing
from mmfusion.retrieval.table_rows import BLOCK
from mmfusion.retrieval.vectors import as_float32

MODALITIES = ("text", "image")
# Arrow arrays spare a Python object for each of millions of ids.
Ids: TypeAlias = Sequence[str] | np.ndarray | pa.Array | pa.ChunkedArray


def products_table(product_ids: Ids, metadata: pa.Table | None, modality_weights: np.ndarray | None) -> pa.Table:
    """Columns `product_id`, and as far as they are given, structs `modality_weights` and `metadata` (NaN as null).

    Raises:
        ValueError: An id is no string or comes twice, numbers of rows differ, a weight is not finite, or two columns of
            the metadata have the same name.
    """
    ids = ids_column(product_ids)
    _check_unique(ids)
    # Structs keep metadata columns of any name apart from ours.
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"product_id": ids}
    if modality_weights is not None:
        weights = as_float32(modality_weights, what="modality weights")
        _check_rows("modality weights", len(weights), len(ids))
        if weights.shape[1] != len(MODALITIES):
            raise ValueError(f"modality weights have {weights.shape[1]} columns; pass one each for {MODALITIES}")
        columns["modality_weights"] = weights_column(weights)
    if metadata is not None and metadata.num_columns:
        _check_rows("metadata", len(metadata), len(ids))
        columns["metadata"] = _plain(metadata).to_struct_array()
    return pa.table(columns)


def ids_column(product_ids: Ids) -> pa.Array | pa.ChunkedArray:
    """Ids as an Arrow column.

    Raises:
        ValueError: One is no string, or not one of Unicode; or this is a single string.
    """
    if isinstance(product_ids, str):
        raise ValueError(f"product_ids is the text {product_ids!r}; give a list of ids")
    if isinstance(product_ids, (pa.Array, pa.ChunkedArray)) and not product_ids.null_count:
        if pa.types.is_string(product_ids.type):
            return product_ids
        if pa.types.is_large_string(product_ids.type):
            return product_ids.cast(pa.string())
    ids = product_ids.to_pylist() if isinstance(product_ids, (pa.Array, pa.ChunkedArray)) else list(product_ids)
    for row, product_id in enumerate(ids):
        if not isinstance(product_id, str):
            raise ValueError(f"product id {product_id!r} in row {row} is no string; convert ids before indexing")
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
        # Arrow's cast would fill and drop fields in silence.
        if _names(table) != _names(other):
            raise ValueError("other columns")
        if not len(table):
            return other.slice(0, 0)
        chosen = table.select(other.column_names)
        return chosen if chosen.schema.equals(other.schema) else chosen.cast(other.schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError, ValueError) as error:
        raise ValueError(
            f"products to add have the columns {_columns(table)}, the index has {_columns(other)}; give the same "
            "metadata and weights as when the index was built"
        ) from error


def _columns(table: pa.Table) -> str:
    return "; ".join(f"{field.name}: {field.type}" for field in table.schema)


def _check_rows(what: str, rows: int, expected: int) -> None:
    if rows != expected:
        raise ValueError(f"{what} has {rows} rows for {expected} product ids; pass one each")


def _names(table: pa.Table) -> set[tuple[str, ...]]:
    fields: set[tuple[str, ...]] = {(field.name,) for field in table.schema}
    if "metadata" in table.column_names:
        kind = table.schema.field("metadata").type
        fields |= {("metadata", kind.field(place).name) for place in range(kind.num_fields)}
    return fields


def _plain(metadata: pa.Table) -> pa.Table:
    """The same values, those of dictionaries as themselves: a file of Arrow holds one dictionary for all its rows.

    NaN, which stands for a missing value in tables of pandas, becomes null.
    """
    name, times = Counter(metadata.column_names).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{times} columns of the metadata are called {name!r}; rename or remove them")
    for place, field in enumerate(metadata.schema):
        if pa.types.is_dictionary(field.type):
            values = metadata.column(place).cast(field.type.value_type)
            field = field.with_type(values.type)
            metadata = metadata.set_column(place, field, values)
        if _may_hold_nan(field.type):
            metadata = metadata.set_column(place, field, _nan_as_null(metadata.column(place)))
    return metadata


def _may_hold_nan(kind: pa.DataType) -> bool:
    inner = [kind.field(place).type for place in range(kind.num_fields)]
    return bool(pa.types.is_floating(kind) or any(map(_may_hold_nan, inner)))


def _nan_as_null(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_floating(values.type):
        return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    # Inside of lists and structs; block by block, as Python takes many times the memory of Arrow.
    blocks = [block for chunk in values.chunks for block in _blocks(chunk)]
    return pa.chunked_array(
        [pa.array([_without_nan(value) for value in block.to_pylist()], values.type) for block in blocks], values.type
    )


def _blocks(chunk: pa.Array) -> Iterator[pa.Array]:
    return (chunk.slice(start, BLOCK) for start in range(0, len(chunk), BLOCK))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_without_nan, value))
    return None if is_missing(value) else value


def _check_unique(ids: pa.Array | pa.ChunkedArray) -> None:
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
    rows = np.flatnonzero(pc.equal(ids, twice).to_numpy(zero_copy_only=False))
    raise ValueError(f"product id {twice.as_py()!r} comes twice, in rows {rows[0]} and {rows[1]}; remove one")
