"""Rows of tables by column, many at a time, with nested objects as columns of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.items import ImportLog
from mmfusion.importers.rows import Row, TextTable
from mmfusion.importers.source import SourceFile
from mmfusion.importers.tables import open_table

# (file, line, reason): what is told of a row that is left out.
Reject = Callable[[str, int, str], None]

_ROWS = 4_096


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
    values: Callable[[str], list[Any]]

    @classmethod
    def of_records(cls, file: str, records: Sequence[tuple[int, dict[str, Any]]]) -> RowBatch:
        """Rows that are given as (line, values by name)."""
        names = list(dict.fromkeys(name for _, record in records for name in record))
        lines = [line for line, _ in records]
        return cls(file, lines, names, lambda name: [record.get(name, "") for _, record in records])

    def column(self, name: str | None) -> list[str]:
        """Texts of a column, "" where a cell is empty, holds no text, or there is no such column."""
        if name is None or name not in self.names:
            return [""] * len(self.lines)
        return [value if isinstance(value, str) else "" for value in self.values(name)]


def read_table(file: SourceFile) -> TextTable:
    """The table in a file.

    Raises:
        CatalogueError: There is none, or it cannot be read.
    """
    table = open_table(file)
    if table is None:
        remedy = "Give a table: CSV, TSV, JSON Lines, Parquet or Excel, also compressed with gzip."
        raise CatalogueError("is no table", file.name, remedy)
    return table


def row_batches(table: TextTable, log: ImportLog) -> Iterator[RowBatch]:
    """All rows of a table, those that cannot be read told to the log.

    Lines of OpenSearch's bulk format that only name the place of the next one are no rows, and `_source`, in which its
    exports wrap a row, is no part of the names.
    """
    rows = table.rows(log)
    places = [place for place, name in enumerate(table.columns) if name in ("index", "create")]
    while batch := list(islice(rows, _ROWS)):
        batch = [row for row in batch if not any(isinstance(row.cells[place], dict) for place in places)]
        nested = {
            name
            for row in batch[:100]
            for name, cell in zip(table.columns, row.cells, strict=True)
            if isinstance(cell, dict)
        }
        if nested:
            records = [(line, _flat(dict(zip(table.columns, cells, strict=True)))) for line, cells in batch]
            yield RowBatch.of_records(table.file.name, records)
        else:
            index = {name: place for place, name in enumerate(table.columns)}
            yield RowBatch(table.file.name, [row.line for row in batch], table.columns, partial(_cells, batch, index))


def _cells(rows: list[Row], index: dict[str, int], name: str) -> list[Any]:
    place = index[name]
    return [row.cells[place] for row in rows]


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    waiting = [("", record)]
    while waiting:
        prefix, part = waiting.pop()
        for name, value in part.items():
            if isinstance(value, dict):
                waiting.append(("" if name == "_source" else f"{prefix}{name}.", value))
            else:
                flat[prefix + name] = "" if value is None else value if isinstance(value, (str, list)) else str(value)
    return flat
