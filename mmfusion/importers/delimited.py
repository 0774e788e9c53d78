"""CSV, TSV and their like: any delimiter, encoding and line end; bad rows are named, never swallowed."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from mmfusion.importers.encodings import encoding_of_head
from mmfusion.importers.items import ImportLog
from mmfusion.importers.rows import MAX_ROW, Row, TextTable, find_header
from mmfusion.importers.source import HEAD_BYTES, SourceFile

_DELIMITERS = ",;\t|"
_SAMPLED = 200
_BACKSLASH_QUOTE = re.compile(r'(?<!\\)((?:\\\\)*)\\"')
_CONTROL = re.compile(r"[\x01-\x08\x0e-\x1f]")
_QUOTE_BY_BACKSLASH, _QUOTE_TWICE = re.compile(r'\\"(?=\w)'), re.compile(r'(?<=\w)""|""(?=\w)')


class Dialect(NamedTuple):
    """How cells are told apart.

    Attributes:
        delimiter: Between cells.
        skipinitialspace: Whether white space after a delimiter does not count.
        backslash: Whether a quote within quotes is written `\\"`, as MySQL does, rather than twice.
    """

    delimiter: str
    skipinitialspace: bool = False
    backslash: bool = False


class DelimitedTable(TextTable):
    """A table in a text file.

    Attributes:
        dialect: How cells are told apart.
        header_place: Number of records above the header.
        pads: Whether rows leave out blank cells at their ends, as Excel does at times.
        text_last: Whether the last column holds words, so that a surplus of cells are its commas.
    """

    def __init__(self, file: SourceFile, dialect: Dialect, sample: list[list[str]], header_place: int) -> None:
        header, rows = sample[header_place], sample[header_place + 1 :]
        while len(header) > 1 and not header[-1].strip() and not any(any(row[len(header) - 1 :]) for row in rows):
            header = header[:-1]
        super().__init__(file, [header[0].lstrip("#"), *header[1:]])
        self.header, self.dialect, self.header_place = header, dialect, header_place
        short = sum(len(row) < len(header) for row in rows)
        self.pads = short >= 5 and short > 0.2 * len(rows)
        last = [row[len(header) - 1].strip() for row in rows if len(row) >= len(header)]
        self.text_last = sum(" " in cell for cell in last) > 0.5 * sum(bool(cell) for cell in last)

    def first_rows(self, rows: int) -> list[Row]:
        return list(islice(self._read(_start(self.file).readline, ImportLog(), nuls=True), rows))

    def _rows(self, log: ImportLog) -> Iterator[Row]:
        encoding = self.encoding
        if encoding.doubt:
            log.warn(f"{self.file.name}: {encoding.doubt}. Where letters are wrong, save it as UTF-8.")
        with self.file.open() as stream:
            text = io.TextIOWrapper(stream, encoding.name, encoding.errors, newline="")
            yield from self._read(text.readline, log, nuls=encoding.nuls)

    def _read(self, readline: Callable[[int], str], log: ImportLog, *, nuls: bool) -> Iterator[Row]:
        name, width, header = self.file.name, len(self.columns), self.header
        joined, first_joined = 0, 0
        for record, (line, cells, reason) in enumerate(records(readline, self.dialect)):
            if record <= self.header_place:
                if record < self.header_place and not cells[0].startswith("sep="):
                    above = self.dialect.delimiter.join(cells)[:80]
                    log.warn(f"{name}: what stands above the header is left out ({above!r})")
                continue
            if reason:
                log.reject(name, line, reason)
                continue
            if len(cells) != width:
                found = len(cells)
                if found > width and not any(cells[width:]):
                    cells = cells[:width]
                elif found > width and self.text_last:
                    cells = [*cells[: width - 1], self.dialect.delimiter.join(cells[width - 1 :])]
                    joined, first_joined = joined + 1, first_joined or line
                elif 1 < found < width and self.pads:
                    cells = cells + [""] * (width - found)
                else:
                    log.reject(name, line, f"{_count(found, 'field')} for {_count(width, 'column')}")
                    continue
            if nuls:
                cells = [cell.replace("\0", "") for cell in cells]
            if any(cells):
                if cells[0] == header[0] and cells[: len(header)] == header:
                    log.leave_out(f"{name}: the header once more")
                    continue
                yield Row(line, cells)
        if joined:
            log.warn(
                f"{name}: {_count(joined, 'row')} with more fields than columns, the first in line {first_joined}: "
                f"the surplus belongs to the last column, {self.columns[-1]!r}"
            )


def open_delimited(file: SourceFile, certain: bool) -> DelimitedTable | None:
    """The table in a text file.

    Args:
        file: Any file.
        certain: Whether its name says that it is a table, so that one column makes one, too.
    """
    text = _start(file).read()
    if len(_CONTROL.findall(text)) > 10 + 0.01 * len(text):
        return None
    backslash = len(_QUOTE_BY_BACKSLASH.findall(text)) > len(_QUOTE_TWICE.findall(text))
    told = re.match(r"\s*sep=(.)\s*\n", text)
    best: tuple[float, int, DelimitedTable] | None = None
    for delimiter in told[1] if told else _DELIMITERS:
        dialect = Dialect(delimiter, f'{delimiter} "' in text, backslash)
        found = islice(records(io.StringIO(text, newline="").readline, dialect), _SAMPLED)
        sample = [cells for _, cells, reason in found if not reason]
        place = find_header(sample)
        if place is None:
            continue
        count = max(Counter(map(len, sample)).values())
        width = len(sample[place])
        # Records as wide as the others, and a header that is the first of them.
        score = count / len(sample) + 0.5 * (place == 0)
        if (certain or (width > 1 and score > 1.4 and len(sample) > 1)) and (
            best is None or (width > 1, score, width) > (best[1] > 1, *best[:2])
        ):
            best = score, width, DelimitedTable(file, dialect, sample, place)
    return best[2] if best else None


def _start(file: SourceFile) -> io.StringIO:
    """The whole lines among the first bytes of a file."""
    encoding = encoding_of_head(file)
    text = file.head.decode(encoding.name, encoding.errors)
    if len(file.head) >= HEAD_BYTES:
        text = text[: max(text.rfind("\n"), text.rfind("\r")) + 1] or text
    return io.StringIO(text, newline="")


def records(readline: Callable[[int], str], dialect: Dialect) -> Iterator[tuple[int, list[str], str]]:
    """First line, cells and "" of each record of a text; where it cannot be read, the reason.

    A quote that is opened and never closed would swallow what follows, up to the next quote. A record of several lines
    is therefore read once more, strictly: if that fails, only its first line is given up, and the next one is read as a
    record of its own.

    Args:
        readline: Reads a line, or as many characters as are asked for.
        dialect: How cells are told apart.
    """
    csv.field_size_limit(MAX_ROW)
    options = {"delimiter": dialect.delimiter, "skipinitialspace": dialect.skipinitialspace}
    again: list[str] = []  # lines to be read once more, the last one first
    fed: list[str] = []
    ended = False

    def feed() -> Iterator[str]:
        nonlocal ended
        size = 0
        while True:
            if again:
                line = again.pop()
            elif line := readline(MAX_ROW):
                if dialect.backslash:
                    line = _BACKSLASH_QUOTE.sub(r'\1""', line)
            else:
                ended = True
                return
            size = len(line) if not fed else size + len(line)
            fed.append(line)
            if size >= MAX_ROW:
                return
            yield line

    number = 1
    while not ended or again:
        for cells in csv.reader(feed(), **options):  # type: ignore[arg-type]
            reason = ""
            if len(fed) > 1 or ended:
                try:
                    list(csv.reader(fed, strict=True, **options))  # type: ignore[arg-type]
                except csv.Error as error:
                    if len(fed) > 1 or str(error) == "unexpected end of data":
                        reason, cells = "a quote is opened and not closed", []
                        again.extend(reversed(fed[1:]))
                        del fed[1:]
            if cells or reason:
                yield number, cells, reason
            number += len(fed)
            fed.clear()
        if fed:
            yield number, [], f"a row of more than {MAX_ROW >> 20} million characters"
            while not fed[-1].endswith(("\n", "\r")) and (rest := readline(MAX_ROW)):
                fed[-1] = rest
            number += len(fed)
            fed.clear()


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
