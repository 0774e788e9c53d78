"""Rows of tables by column, many at a time, with nested objects as columns of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa

from mmfusion.data.catalogue_schema import CatalogueError, reading
from mmfusion.importers.arrow_table import ArrowTable
from mmfusion.importers.items import ImportLog
from mmfusion.importers.rows import Row, TextTable
from mmfusion.importers.source import SourceFile
from mmfusion.importers.tables import open_table

# (file, line, reason): what is told of a row that is left out.
Reject = Callable[[str, int, str], None]

# A column, and the keys that lead to a value within it.
Path = tuple[int, tuple[str, ...]]

_ROWS = 4_096


class Values(Protocol):
    """Values of a column, of all rows or of some."""

    def __call__(self, name: str, rows: Sequence[int] | None = None, /) -> list[Any]: ...


@dataclass(frozen=True)
class RowBatch:
    """Some consecutive rows of one file.

    Attributes:
        file: Its name.
        lines: Line of each row, from 1 with the header.
        names: Names of the columns; those of a nested field are joined by dots.
        values: The values of a column: texts, "" where there is none; lists stay lists.
    """

    file: str
    lines: Sequence[int]
    names: Sequence[str]
    values: Values

    @classmethod
    def of_records(cls, file: str, records: Sequence[tuple[int, dict[str, Any]]]) -> RowBatch:
        """Rows that are given as (line, values by name)."""
        names = dict.fromkeys(name for _, record in records for name in record)
        rows = [Row(line, list(map(record.get, names))) for line, record in records]
        paths: dict[str, Path] = {name: (place, ()) for place, name in enumerate(names)}
        return cls(file, [line for line, _ in records], list(names), partial(_of_rows, rows, paths))

    def take(self, rows: Sequence[int]) -> RowBatch:
        """Some of the rows."""

        def values(name: str, at: Sequence[int] | None = None) -> list[Any]:
            return self.values(name, rows if at is None else [rows[one] for one in at])

        return RowBatch(self.file, [self.lines[row] for row in rows], self.names, values)

    def column(self, name: str | None, rows: Sequence[int] | None = None) -> list[str]:
        """Texts of a column, "" where a cell is empty, holds no text, or there is no such column."""
        if name is None or name not in self.names:
            return [""] * len(self.lines if rows is None else rows)
        return [value if isinstance(value, str) else "" for value in self.values(name, rows)]


def read_table(file: SourceFile) -> TextTable:
    """The table in a file.

    Raises:
        CatalogueError: There is none, or it cannot be read.
    """
    table = open_table(file)
    if table is None:
        remedy = "Give a table: CSV, TSV, JSON Lines, Parquet or Excel, also compressed with gzip."
        raise CatalogueError("is not a table", file.name, remedy)
    return table


def row_batches(table: TextTable, log: ImportLog) -> Iterator[RowBatch]:
    """All rows of a table, those that cannot be read told to the log.

    Lines of OpenSearch's bulk format that only name the place of the next one are no rows, and `_source`, in which its
    exports wrap a row, is no part of the names.
    """
    if isinstance(table, ArrowTable) and not table.labels:
        yield from _arrow_batches(table)
        return
    rows = table.rows(log)
    bulk = [place for place, name in enumerate(table.columns) if name in ("index", "create")]
    while batch := list(islice(rows, _ROWS)):
        batch = [row for row in batch if not any(isinstance(row.cells[place], dict) for place in bulk)]
        paths: dict[str, Path] = {}
        for place, name in enumerate(table.columns):
            found = {key for row in batch if isinstance(row.cells[place], dict) for key in _keys(row.cells[place])}
            plain = any(row.cells[place] != "" and not isinstance(row.cells[place], dict) for row in batch)
            for keys in [*sorted(found), *([()] if plain or not found else [])]:
                paths[".".join([name, *keys]).removeprefix("_source.").removeprefix("properties.")] = (place, keys)
        yield RowBatch(table.file.name, [row.line for row in batch], list(paths), partial(_of_rows, batch, paths))


def _keys(record: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Keys that lead to each value of nested objects."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from ((name, *keys) for keys in _keys(value))
        else:
            yield (name,)


def _of_rows(rows: Sequence[Row], paths: Mapping[str, Path], name: str, at: Sequence[int] | None = None) -> list[Any]:
    place, keys = paths[name]
    values = [row.cells[place] for row in (rows if at is None else [rows[one] for one in at])]
    for key in keys:
        values = [value.get(key) if isinstance(value, dict) else None for value in values]
    return ["" if value is None else value if isinstance(value, (str, list)) else str(value) for value in values]


def _arrow_batches(table: ArrowTable) -> Iterator[RowBatch]:
    start = 1
    with reading(table.file.name, "Write it again, or check that it is complete."):
        for part in _joined(table.batches()):
            while any(map(pa.types.is_struct, part.schema.types)):
                part = part.flatten()
            lines = range(start, start + len(part))
            yield RowBatch(table.file.name, lines, part.column_names, partial(_of_arrow, part))
            start += len(part)


def _joined(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Small batches together, without columns of bytes: photos are not needed."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch.select([field.name for field in batch.schema if "binary" not in str(field.type)]))
        if sum(map(len, waiting)) >= _ROWS:
            yield pa.Table.from_batches(waiting)
            waiting.clear()
    if waiting:
        yield pa.Table.from_batches(waiting)


def _of_arrow(table: pa.Table, name: str, at: Sequence[int] | None = None) -> list[Any]:
    column = table[name] if at is None else table[name].take(pa.array(at, pa.int64()))
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not pa.types.is_nested(kind):
        column = column.cast(pa.string())
    return ["" if value is None else value for value in column.to_pylist()]
