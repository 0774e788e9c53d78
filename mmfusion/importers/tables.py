"""Rows of tables as text: CSV, TSV, JSON lines, Excel, Parquet and Arrow, in any encoding, bad rows reported."""

from __future__ import annotations

from functools import lru_cache

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.arrow_table import ArrowFile, ParquetTable
from mmfusion.importers.delimited import open_delimited
from mmfusion.importers.excel_table import open_excel
from mmfusion.importers.json_table import open_json
from mmfusion.importers.rows import Row, TextTable
from mmfusion.importers.source import SourceFile

__all__ = ["Row", "TextTable", "open_table"]

_DELIMITED = (".csv", ".tsv", ".tab", ".psv")
_PERHAPS = (*_DELIMITED, ".txt", ".dat", ".xls", "")
_JSON = (".jsonl", ".ndjson", ".json")
_COLUMNAR = (".parquet", ".arrow", ".feather")
_WORKBOOK = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
_OF_WORKBOOK = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


def open_table(file: SourceFile) -> TextTable | None:
    """The table in a file; None if it holds none.

    Its first bytes say what it is, then its name: a file `.xls` that holds text is read as text.

    Raises:
        CatalogueError: A table that is empty or cannot be read.
        MissingLibraryError: A workbook, and the extra `excel` is not installed.
    """
    state = file.path.stat()
    return _open(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _open(file: SourceFile, changed: int, size: int) -> TextTable | None:
    """Every format looks at the same files; a table is opened once, unless its file changes."""
    if file.suffix not in (*_PERHAPS, *_JSON, *_WORKBOOK, *_COLUMNAR):
        return None
    head = file.head
    if not head.strip():
        if file.suffix in (*_DELIMITED, *_JSON, *_WORKBOOK, *_COLUMNAR):
            raise CatalogueError("is empty", file.name, "Export it again, or leave it out.")
        return None
    if head.startswith(b"PAR1") or file.suffix == ".parquet":
        return ParquetTable(file)
    if file.suffix in _COLUMNAR:
        return ArrowFile(file)
    if head.startswith(_OF_WORKBOOK):
        return open_excel(file)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if file.suffix in _JSON or start.startswith((b'{"', b"[{")):
        return open_json(file)
    if file.suffix in _PERHAPS and not start.startswith(b"<"):
        return open_delimited(file, certain=file.suffix in _DELIMITED)
    return None
