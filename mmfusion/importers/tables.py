"""Rows of tables as text: CSV, TSV, JSON lines, Excel and Parquet, in any encoding, bad rows reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmfusion.importers.items import ImportLog
from mmfusion.importers.source import SourceFile


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        line: Line of the file it starts in, from 1 with the header; number of the row where there are no lines.
        cells: Values in the order of the table's columns: text, "" where there is none. Cells of JSON and Parquet that
            hold no text (lists, photos) are as they are.
    """

    line: int
    cells: list[Any]


class TextTable:
    """A table whose cells are read as text, so that ids keep their zeros.

    Attributes:
        file: Where it is.
        columns: Names of the columns as written, without a byte order mark and white space around them.
    """

    file: SourceFile
    columns: list[str]

    def rows(self, log: ImportLog) -> Iterator[Row]:
        """All rows in order; those that cannot be read go to the log."""
        raise NotImplementedError


def open_table(file: SourceFile) -> TextTable | None:
    """The table in a file; None if it holds none."""
    raise NotImplementedError
