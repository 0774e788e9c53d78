"""Rows of a catalogue's files, a few megabytes at a time, as the types of its schema."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmfusion.data.catalogue_error import CatalogueError, reading
from mmfusion.data.catalogue_files import Folder
from mmfusion.data.catalogue_schema import EXPECTED, ROLES, is_number

_BATCH_BYTES = 16 << 20
_MAX_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Batch:
    """Some rows of one file, and the number of the first of them."""

    table: pa.Table
    start: int


def read_batches(folder: Folder, path: str, schema: pa.Schema) -> Iterator[Batch]:
    """Reads the columns of ``schema``, as its types, a few megabytes at a time."""
    place = f"catalogue {folder.name!r}, file {os.path.relpath(path, folder.root)!r}"
    remedy = "Write the file again, and check the space in the cache folder."
    start = 0
    with reading(place, remedy), folder.fs.open(path, "rb") as handle:
        file = pq.ParquetFile(handle, buffer_size=1 << 20, pre_buffer=False)
        for record_batch in file.iter_batches(_batch_rows(file.metadata, schema.names), columns=schema.names):
            table = as_types(pa.Table.from_batches([record_batch]), schema, place, start)
            yield Batch(table, start)
            start += len(table)


def _batch_rows(metadata: pq.FileMetaData, columns: Sequence[str]) -> int:
    """Rows of which these columns take about `_BATCH_BYTES` together."""
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    parts = [group.column(at) for group in groups for at in range(group.num_columns)]
    size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)
    return int(min(max(_BATCH_BYTES * metadata.num_rows // max(size, 1), 1), _MAX_BATCH_ROWS))


def as_types(table: pa.Table, schema: pa.Schema, place: str, start: int = 0) -> pa.Table:
    """Rows of a file as the types of `target_schema`.

    Where all values of a column of texts or photos are missing, pandas writes NaN and DuckDB integers: these become
    nulls.

    Raises:
        CatalogueError: Such a column holds a number; ``start`` is the row of the table's first one.
    """
    table = table.select(schema.names)
    for at, field in enumerate(schema):
        column, role = table.column(at), ROLES.get(field.name)
        if role in ("text", "photo") and is_number(column.type) and not is_number(field.type):
            missing = pc.is_null(column, nan_is_null=True)
            row = pc.index(missing, False).as_py()
            if row >= 0:
                raise CatalogueError(
                    f"column {field.name!r} has type {column.type}, not {EXPECTED[role]}: it holds {column[row]}",
                    f"{place}, row {start + row}",
                    f"Convert it to {EXPECTED[role]}.",
                )
            table = table.set_column(at, field, pa.nulls(len(table), field.type))
    return table.cast(schema)
