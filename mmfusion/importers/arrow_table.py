"""Parquet and Arrow files as tables of text."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.data.catalogue_schema import is_list, reading
from mmfusion.importers.items import ImportLog
from mmfusion.importers.rows import Row, TextTable
from mmfusion.importers.source import SourceFile

# About how much of a table is in memory at a time, in bytes, and in rows.
_BATCH_BYTES, _BATCH_ROWS = 16 << 20, 1024
_EXACT = 1 << 53
_REMEDY = "Write it again, or check that it is complete."


class ArrowTable(TextTable):
    """Rows of an Arrow or Parquet file. Lists, structs and bytes are as they are.

    Whole numbers that became floats as one is missing, 12345.0, are "12345" again; those above 2^53 were rounded by
    whoever wrote them, which is named. Labels that `datasets` stores as numbers are the names that they stand for.

    Attributes:
        schema: Columns and their types.
        labels: Names of the classes by column of labels.
    """

    def __init__(self, file: SourceFile, schema: pa.Schema) -> None:
        super().__init__(file, schema.names)
        self.schema, self.labels = schema, _labels(schema)

    @abstractmethod
    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, a few megabytes at a time."""

    def _rows(self, log: ImportLog) -> Iterator[Row]:
        number = 0
        with reading(self.file.name, _REMEDY):
            for batch in self.batches():
                columns = [self._cells(*pair, log) for pair in zip(self.columns, batch.columns, strict=True)]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield Row(number, list(cells))

    def _cells(self, name: str, column: pa.Array, log: ImportLog) -> list[Any]:
        kind = column.type
        if name in self.labels:
            return ["" if at is None else self._label(name, at) for at in column.to_pylist()]
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

    def _label(self, name: str, at: int) -> str:
        names = self.labels[name]
        # -1 is a label that is not known.
        return names[at] if 0 <= at < len(names) else ""


class ParquetTable(ArrowTable):
    """A Parquet file, which is open only while it is read: a data set may have thousands of them."""

    def __init__(self, file: SourceFile) -> None:
        with reading(file.name, _REMEDY), pq.ParquetFile(file.path) as parquet:
            super().__init__(file, parquet.schema_arrow)

    def batches(self) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.file.path, memory_map=True) as parquet:
            footer = parquet.metadata
            size = sum(footer.row_group(at).total_byte_size for at in range(footer.num_row_groups))
            yield from parquet.iter_batches(_rows_at_once(footer.num_rows, size))


class ArrowFile(ArrowTable):
    """A file of Arrow, as `datasets` saves it (a stream) or as others do (with a footer), mapped into memory."""

    def __init__(self, file: SourceFile) -> None:
        with reading(file.name, _REMEDY), self._open(file) as reader:
            super().__init__(file, reader.schema)

    def batches(self) -> Iterator[pa.RecordBatch]:
        with self._open(self.file) as reader:
            whole = (
                reader
                if hasattr(reader, "read_next_batch")
                else map(reader.get_batch, range(reader.num_record_batches))
            )
            for batch in whole:
                rows = _rows_at_once(len(batch), batch.nbytes)
                yield from (batch.slice(start, rows) for start in range(0, len(batch), rows))

    @staticmethod
    def _open(file: SourceFile) -> Any:
        mapped = pa.memory_map(str(file.path))
        return pa.ipc.open_file(mapped) if file.head.startswith(b"ARROW1") else pa.ipc.open_stream(mapped)


def _rows_at_once(rows: int, size: int) -> int:
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(size, 1)))


def _labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes by column, where `datasets` wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: one["names"] for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _number(value: float | None, text: str) -> str:
    if value is None or math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() else text
