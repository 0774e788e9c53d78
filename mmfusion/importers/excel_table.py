"""The sheet of a workbook as a table: .xlsx, .xls, .xlsb and .ods."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from itertools import islice
from typing import Any

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.extras import library
from mmfusion.importers.items import ImportLog
from mmfusion.importers.rows import Row, TextTable, find_header
from mmfusion.importers.source import SourceFile

_SAMPLED = 200
_EXACT = 10**15


class ExcelTable(TextTable):
    """The first sheet with several columns and rows, else the first one that is not empty.

    Cells that hold text stay as they are; a number 123.0 is "123". A number's format is not read: a cell that shows
    00123 by its format is "123". A workbook keeps 15 digits of a number; columns with longer ones are named.
    """

    def __init__(self, file: SourceFile, sheet: Any, header_place: int, others: list[str]) -> None:
        self.sheet, self.header_place, self.others = sheet, header_place, others
        rows = islice(sheet.iter_rows(), header_place, header_place + _SAMPLED)
        sample = [[_text(cell) for cell in row] for row in rows]
        width = max(place + 1 for row in sample for place, cell in enumerate(row) if cell)
        super().__init__(file, sample[0][:width])

    def _rows(self, log: ImportLog) -> Iterator[Row]:
        if self.others:
            others = ", ".join(map(repr, self.others))
            log.warn(f"{self.file.name}: the sheet {self.sheet.name!r} is read, not {others}")
        width = len(self.columns)
        for number, row in enumerate(self.sheet.iter_rows(), 1):
            if number - 1 > self.header_place:
                cells = [_text(cell) for cell in row[:width]]
                if any(cells):
                    for column, cell in zip(self.columns, row, strict=False):
                        if isinstance(cell, float) and abs(cell) >= _EXACT:
                            log.warn(
                                f"{self.file.name}: numbers of column {column!r} have more than 15 digits, the rest of "
                                "which Excel does not keep; format the column as text and fill it again"
                            )
                    yield Row(number, cells + [""] * (width - len(cells)))


def open_excel(file: SourceFile) -> ExcelTable | None:
    """The table in a workbook; None if no sheet has one.

    Raises:
        MissingLibraryError: The extra `excel` is not installed.
        CatalogueError: It cannot be read, e.g. as it has a password.
    """
    calamine = library("python_calamine", "excel")
    with file.open() as stream:
        try:
            book = calamine.load_workbook(stream)
            names = [one.name for one in book.sheets_metadata if one.visible == calamine.SheetVisibleEnum.Visible]
            sheets = [book.get_sheet_by_name(name) for name in names]
        except calamine.CalamineError as error:
            remedy = "Save it without a password as .xlsx, or as CSV in UTF-8."
            raise CatalogueError(f"this workbook cannot be read ({error})", file.name, remedy) from error
    places = {}
    for sheet in sheets:
        sample = [[_text(cell) for cell in row] for row in islice(sheet.iter_rows(), _SAMPLED)]
        place = find_header(sample)
        if place is not None:
            # A cover has a title and perhaps a few lines of one cell.
            is_cover = sum(map(bool, sample[place])) < 2 or len(sample) == place + 1
            places[sheet.name] = sheet, place, is_cover
    if not places:
        return None
    sheet, place, _ = min(places.values(), key=lambda one: one[2])
    return ExcelTable(file, sheet, place, [name for name in places if name != sheet.name])


def _text(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        # Digits that the file holds; a float's own go on beyond them.
        return format(Decimal(repr(cell)).normalize(), "f")
    if isinstance(cell, datetime) and cell.time() == datetime.min.time():
        return cell.date().isoformat()
    return cell.isoformat() if isinstance(cell, date) else str(cell)
