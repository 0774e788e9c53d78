"""What a table is: the names of its columns, and rows of text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.encodings import Encoding, encoding_of
from mmfusion.importers.items import ImportLog
from mmfusion.importers.source import SourceFile

# Characters of a row, and of a value of JSON: what is larger is a file that went wrong.
MAX_ROW = 1 << 24
_SAMPLED_ROWS = 200


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        line: Line of the file it starts in, from 1 with the header; number of the row where there are no lines.
        cells: Values in the order of the table's columns: text, "" where there is none. Cells of JSON and Parquet that
            hold no text (lists, photos) are as they are.
    """

    line: int
    cells: list[Any]


class TextTable(ABC):
    """A table whose cells are read as text, so that ids keep their zeros.

    Attributes:
        file: Where it is.
        columns: Names of the columns as written, without a byte order mark and white space around them. A name that
            comes again gets a number, "image (2)"; one that is missing is called by its place, "column 3".
    """

    def __init__(self, file: SourceFile, columns: Sequence[str]) -> None:
        self.file = file
        self.columns = _unique(columns)

    def rows(self, log: ImportLog) -> Iterator[Row]:
        """All rows in order, without blank ones; those that cannot be read go to the log.

        Raises:
            CatalogueError: There is no row at all, or the file ends in the middle.
        """
        rejected_before = log.rejected_by_reason.total()
        row = None
        for row in self._rows(log):
            yield row
        if row is None and log.rejected_by_reason.total() == rejected_before:
            raise CatalogueError("holds a header and no rows", self.file.name, "Export it again, or leave it out.")

    def sample(self, rows: int) -> list[Row]:
        """The first rows, to see what columns hold; as they stay in memory, without the bytes of photos."""
        found = islice(self.rows(ImportLog()), rows)
        return [Row(line, [_without_bytes(cell) for cell in cells]) for line, cells in found]

    def first_rows(self, rows: int) -> list[Row]:
        """As `sample`, but it may be fewer rows: those of the file's first bytes, to recognise a format by."""
        return self.sample(rows)

    @cached_property
    def encoding(self) -> Encoding:
        """How the bytes of the whole file are read, where it is a text."""
        return encoding_of(self.file)

    @abstractmethod
    def _rows(self, log: ImportLog) -> Iterator[Row]: ...

    def place(self, line: int) -> str:
        """What errors call a row."""
        return f"{self.file.name}, line {line}"


def _without_bytes(cell: Any) -> Any:
    if isinstance(cell, list):
        return [_without_bytes(one) for one in cell]
    if isinstance(cell, dict):
        return {name: _without_bytes(one) for name, one in cell.items()}
    return b"" if isinstance(cell, bytes) else cell


def find_header(rows: Sequence[Sequence[str]]) -> int | None:
    """Which of a table's first rows holds its names: the first that is about as wide as most rows are.

    Titles and comments above it are narrower. None: there are no rows.
    """
    widths = Counter(len(row) for row in rows[:_SAMPLED_ROWS] if any(row))
    if not widths:
        return None
    width = max(widths, key=lambda one: (widths[one], one))
    for place, row in enumerate(rows):
        filled = sum(bool(cell.strip()) for cell in row)
        # Some names may be missing; a title that a spreadsheet padded has one or two cells.
        needed = 0.6 * width if len(row) != width else min(0.6 * width, 3)
        is_comment = bool(row) and row[0].startswith("#") and (row[0][1:2] in ("", " ") or len(row) != width)
        if filled >= max(1, needed) and not is_comment:
            return place
    return None


def _unique(columns: Sequence[str]) -> list[str]:
    names: list[str] = []
    for place, column in enumerate(columns, 1):
        name = " ".join(column.replace("\ufeff", "").split()) or f"column {place}"
        again, unique = 1, name
        while unique in names:
            again += 1
            unique = f"{name} ({again})"
        names.append(unique)
    return names
