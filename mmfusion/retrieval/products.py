"""The table beside the vectors of an index: ids, modality weights and metadata, row by row."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mmfusion.retrieval.vectors import as_float32

MODALITIES = ("text", "image")


def products_table(
    product_ids: Sequence[str] | np.ndarray, metadata: pa.Table | None, modality_weights: np.ndarray | None
) -> pa.Table:
    """Columns `product_id`, and as far as they are given, structs `modality_weights` and `metadata`.

    Raises:
        ValueError: An id is no string or comes twice, numbers of rows differ, or a weight is not finite.
    """
    ids = list(product_ids)
    for row, product_id in enumerate(ids):
        if not isinstance(product_id, str):
            raise ValueError(f"product id {product_id!r} in row {row} is no string; convert ids before indexing")
    _check_unique(ids)
    # Structs keep metadata columns of any name apart from ours.
    columns = {"product_id": pa.array(ids, pa.string())}
    if modality_weights is not None:
        weights = as_float32(modality_weights, what="modality weights")
        _check_rows("modality weights", len(weights), len(ids))
        if weights.shape[1] != len(MODALITIES):
            raise ValueError(f"modality weights have {weights.shape[1]} columns; pass one each for {MODALITIES}")
        columns["modality_weights"] = weights_column(weights)
    if metadata is not None and metadata.num_columns:
        _check_rows("metadata", len(metadata), len(ids))
        columns["metadata"] = metadata.to_struct_array()
    return pa.table(columns)


def weights_column(weights: np.ndarray) -> pa.StructArray:
    """Modality weights (N, 2), shares of text and photo, as a column of structs."""
    return pa.StructArray.from_arrays(list(map(pa.array, weights.T)), MODALITIES)


def like(table: pa.Table, other: pa.Table) -> pa.Table:
    """A table with the columns and types of another one.

    Raises:
        ValueError: It has other columns, or values that do not fit the types.
    """
    try:
        return table.select(other.column_names).cast(other.schema) if len(table) else other.slice(0, 0)
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


def _check_unique(ids: list[str]) -> None:
    if len(set(ids)) == len(ids):
        return
    first_row: dict[str, int] = {}
    for row, product_id in enumerate(ids):
        if product_id in first_row:
            raise ValueError(
                f"product id {product_id!r} comes twice, in rows {first_row[product_id]} and {row}; remove one"
            )
        first_row[product_id] = row
