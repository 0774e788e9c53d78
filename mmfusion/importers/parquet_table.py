"""A Parquet file as a table of text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.data.catalogue_schema import is_list, reading
from mmfusion.importers.items import ImportLog
from mmfusion.importers.rows import Row, TextTable
from mmfusion.importers.source import SourceFile

_ROWS = 512
_EXACT = 1 << 53


class ParquetTable(TextTable):
    """Rows of a Parquet file. Lists, structs and bytes are as they are.

    Whole numbers that became floats as one is missing, 12345.0, are "12345" again; those above 2^53 were rounded by
    whoever wrote them, which is named.
    """

    def __init__(self, file: SourceFile) -> None:
        with reading(file.name, "Write it again, or check that it is complete."):
            self.parquet = pq.ParquetFile(file.path, memory_map=True)
        super().__init__(file, self.parquet.schema_arrow.names)

    def _rows(self, log: ImportLog) -> Iterator[Row]:
        number = 0
        with reading(self.file.name, "Write it again, or check that it is complete."):
            for batch in self.parquet.iter_batches(batch_size=_ROWS):
                columns = [self._cells(*pair, log) for pair in zip(self.columns, batch.columns, strict=True)]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield Row(number, list(cells))

    def _cells(self, name: str, column: pa.Array, log: ImportLog) -> list[Any]:
        kind = column.type
        if pa.types.is_floating(kind):
            values = column.cast(pa.float64()).to_pylist()
            if any(value is not None and abs(value) >= _EXACT for value in values):
                log.warn(
                    f"{self.file.name}: numbers of column {name!r} above 2^53 were rounded before; store it as text"
                )
            # The text of a float32 is shorter than that of the float64 it becomes.
            texts = column.cast(pa.string()).to_pylist()
            return [_number(*pair) for pair in zip(values, texts, strict=True)]
        if pa.types.is_dictionary(kind):
            return self._cells(name, column.dictionary_decode(), log)
        if is_list(kind) or pa.types.is_nested(kind) or "binary" in str(kind) or pa.types.is_null(kind):
            values = column.to_pylist()
        else:
            values = column.cast(pa.string()).to_pylist()
        return ["" if value is None else value for value in values]


def open_parquet(file: SourceFile) -> ParquetTable:
    """The table in a Parquet file.

    Raises:
        CatalogueError: It cannot be read.
    """
    return ParquetTable(file)


def _number(value: float | None, text: str) -> str:
    if value is None or math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() else text
