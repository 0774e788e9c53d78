"""Rows of a file as they are written: every cell is text and every row knows its line.

Reads CSV with any delimiter, JSON Lines, JSON arrays and Parquet, each also compressed with gzip. A file's first bytes
say which, not its name. Ids keep their leading zeros, and `1E5` stays `1E5`.
"""

import csv
import glob
import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.data.catalogue_schema import CatalogueError, first_line

# (file, line, reason): what is told of a row that is left out. A Parquet file's line is its row, both from 1.
Reject = Callable[[str, int, str], None]
# How well a line's cells suit as the names of columns; 0: not at all.
Score = Callable[[Sequence[str]], int]

DELIMITERS = ",;\t|"
ROWS_AT_ONCE = 50_000
# A header stands within so many lines: exports of Google Analytics begin with comments.
_LINES_OF_HEADER = 30
_LONGEST_LINE = 2**24


@dataclass(frozen=True)
class RowBatch:
    """Some consecutive rows of one file.

    Attributes:
        file: Path, as it was given.
        lines: Line of each row, from 1.
        names: Names of the columns; a nested field's are joined by dots.
        values: The values of a column: texts, "" where there is none; lists stay lists.
    """

    file: str
    lines: Sequence[int]
    names: Sequence[str]
    values: Callable[[str], list[Any]]

    @classmethod
    def of_records(cls, file: str, records: Sequence[tuple[int, dict[str, Any]]]) -> "RowBatch":
        """Rows that are given as (line, values by name)."""
        names = list(dict.fromkeys(name for _, record in records for name in record))
        lines = [line for line, _ in records]
        return cls(file, lines, names, lambda name: [record.get(name, "") for _, record in records])

    def column(self, name: str | None) -> list[str]:
        """Texts of a column, "" where a cell is empty or missing, holds no text, or there is no such column."""
        if name is None or name not in self.names:
            return [""] * len(self.lines)
        return [value if isinstance(value, str) else "" for value in self.values(name)]


def find_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files behind paths, folders and patterns such as `logs/*.csv.gz`, sorted within each.

    Raises:
        CatalogueError: Nothing is there.
    """
    found: list[Path] = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        place = Path(path)
        if place.is_dir():
            files = [file for file in sorted(place.iterdir()) if file.is_file() and not file.name.startswith(".")]
        else:
            files = [place] if place.exists() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not files:
            raise CatalogueError("no such file", str(path), "Check the path; a pattern must match at least one file.")
        found += files
    return list(dict.fromkeys(found))


def read_rows(
    path: Path,
    score: Score,
    reject: Reject,
    *,
    encoding: str | None = None,
    headless: Callable[[list[str]], Sequence[str] | None] | None = None,
) -> Iterator[RowBatch]:
    """Rows of one file.

    Args:
        path: The file.
        score: Finds the header of a delimited file among its first lines, and with it the delimiter.
        reject: Is told of every row that cannot be read.
        encoding: Of a text file; default: that of the byte order mark, else UTF-8, and Windows-1252 for the single
            lines that are no UTF-8.
        headless: Names for the columns of a file without a header, from the cells of its first line; None: it has to
            have one.

    Raises:
        CatalogueError: The file cannot be read, holds nothing, or has no header where it needs one.
    """
    try:
        with path.open("rb") as raw:
            stream: Any = raw
            if raw.peek(2)[:2] == b"\x1f\x8b":
                stream = io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=raw)))
            start = stream.peek(64)[:64]
            if start[:4] == b"PAR1":
                yield from _parquet(raw if stream is raw else io.BytesIO(stream.read()), str(path))
            elif start[:2] == b"PK":
                remedy = "Save the table as CSV, or unpack the archive, and pass that."
                raise CatalogueError("is an Excel workbook or a zip archive", str(path), remedy)
            else:
                yield from _text(stream, start, str(path), score, reject, encoding, headless)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CatalogueError(
            f"its compressed data is cut off or damaged ({first_line(error)})", str(path), "Copy it again."
        ) from error
    except (OSError, pa.ArrowException, LookupError, UnicodeError) as error:
        raise CatalogueError(f"cannot be read ({first_line(error)})", str(path), "Check the file.") from error


def _text(
    stream: BinaryIO,
    start: bytes,
    file: str,
    score: Score,
    reject: Reject,
    encoding: str | None,
    headless: Callable[[list[str]], Sequence[str] | None] | None,
) -> Iterator[RowBatch]:
    if encoding is None:
        marked = start.startswith((b"\xff\xfe", b"\xfe\xff"))
        wide = "utf-16" if marked else {b"\0": "utf-16-be", b"": None}.get(start[:1]) or None
        if wide is None and start[1:2] == b"\0":
            wide = "utf-16-le"
        encoding = wide or "utf-8-sig"
    text = io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape")
    lines = _lines(text, file, reject)
    first = next((one for one in lines if one[1].strip()), None)
    if first is None:
        raise CatalogueError("holds nothing", file, "Export it again.")
    opening = first[1].lstrip()[:1]
    lines = chain([first], lines)
    if opening in "{[":
        yield from _json(lines, file, reject, array=opening == "[")
    else:
        yield from _delimited(lines, file, score, reject, headless)


def _lines(text: io.TextIOWrapper, file: str, reject: Reject) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, each decoded for itself; what is too long to be one is rejected."""
    number = 0
    while line := text.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE and not line.endswith("\n"):
            while (rest := text.readline(_LONGEST_LINE)) and not rest.endswith("\n"):
                pass
            reject(file, number, f"line is longer than {_LONGEST_LINE:,} characters")
            continue
        if not line.isascii() and any("\udc80" <= character <= "\udcff" for character in line):
            line = line.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
        yield number, line


def _delimited(
    lines: Iterator[tuple[int, str]],
    file: str,
    score: Score,
    reject: Reject,
    headless: Callable[[list[str]], Sequence[str] | None] | None,
) -> Iterator[RowBatch]:
    head = list(islice(lines, _LINES_OF_HEADER))
    best, at, delimiter = max(
        (
            (score(_cells(line, delimiter)), -place, delimiter)
            for place, (_, line) in enumerate(head)
            for delimiter in DELIMITERS
        ),
        key=lambda found: found[:2],
    )
    names: Sequence[str] | None
    if best:
        names, rest = _cells(head[-at][1], delimiter), head[1 - at :]
    else:
        at, delimiter = 0, max(DELIMITERS, key=head[0][1].count)
        cells = _cells(head[0][1], delimiter) if delimiter in head[0][1] else head[0][1].split()
        names, rest = headless(cells) if headless else None, head
        if names is None:
            raise CatalogueError(
                f"no header was found (first line: {head[0][1].strip()[:120]!r})",
                file,
                "Name the columns in the first line, or pass --columns.",
            )
        if delimiter not in head[0][1]:
            delimiter = ""
    index, width = {name: place for place, name in enumerate(names)}, len(names)
    records = _records(chain(rest, lines), file, delimiter, width, reject)
    while batch := list(islice(records, ROWS_AT_ONCE)):
        yield RowBatch(file, [line for line, _ in batch], names, partial(_of_rows, batch, index))


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _records(
    lines: Iterable[tuple[int, str]], file: str, delimiter: str, width: int, reject: Reject
) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line where each begins.

    A quote that is never closed would swallow the rows after it: then its line alone is rejected, and reading goes on
    with the next one.
    """
    if not delimiter:
        for number, line in lines:
            row = line.split()
            if len(row) == width:
                yield number, row
            elif row:
                reject(file, number, f"{len(row)} fields where {width} are expected")
        return
    source, again, taken = iter(lines), deque[tuple[int, str]](), list[tuple[int, str]]()
    ended = False

    def feed() -> Iterator[str]:
        nonlocal ended
        while True:
            one = again.popleft() if again else next(source, None)
            if one is None:
                ended = True
                return
            taken.append(one)
            yield one[1]

    reader = csv.reader(feed(), delimiter=delimiter)
    while True:
        taken.clear()
        try:
            row, problem = next(reader), ""
        except StopIteration:
            return
        except csv.Error as error:
            row, problem = [], str(error)
        if not problem and len(row) != width:
            if not any(row):
                continue
            if len(row) > width and not any(row[width:]):
                row = row[:width]
            else:
                problem = f"{len(row)} fields where the header has {width}"
        if ended and not problem and taken:
            problem = "a quote is not closed"
        if not problem:
            yield taken[0][0], row
            continue
        reject(file, taken[0][0], problem)
        if len(taken) > 1:
            again.extendleft(reversed(taken[1:]))
            ended = False
            reader = csv.reader(feed(), delimiter=delimiter)


def _json(lines: Iterator[tuple[int, str]], file: str, reject: Reject, *, array: bool) -> Iterator[RowBatch]:
    records = _array(lines, file) if array else _objects(lines, file, reject)
    while batch := list(islice(records, ROWS_AT_ONCE)):
        yield RowBatch.of_records(file, batch)


def _objects(lines: Iterator[tuple[int, str]], file: str, reject: Reject) -> Iterator[tuple[int, dict[str, Any]]]:
    parse = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).decode
    for number, line in lines:
        if not line.strip():
            continue
        try:
            record = parse(line)
        except (ValueError, RecursionError):
            reject(file, number, "line is not complete JSON")
            continue
        if not isinstance(record, dict):
            reject(file, number, "line is no JSON object")
        elif set(record) not in ({"index"}, {"create"}):
            # Those two name the place of the next line's record in a bulk file of OpenSearch.
            yield number, _flat(record)


def _array(lines: Iterator[tuple[int, str]], file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        records = json.loads("".join(line for _, line in lines), parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise CatalogueError(f"is not complete JSON ({error})", file, "Export it again, best as JSON Lines.") from error
    for number, record in enumerate(records, 1):
        yield number, _flat(record) if isinstance(record, dict) else {}


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose nested objects became names with dots, without the envelope of an OpenSearch export."""
    if isinstance(record.get("_source"), dict):
        record = record["_source"]
    flat: dict[str, Any] = {}
    waiting = [("", record)]
    while waiting:
        prefix, part = waiting.pop()
        for name, value in part.items():
            if isinstance(value, dict):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, (str, list)):
                flat[prefix + name] = value
            else:
                flat[prefix + name] = "" if value is None else str(value).lower()
    return flat


def _parquet(source: Any, file: str) -> Iterator[RowBatch]:
    parquet, start = pq.ParquetFile(source), 1
    wanted = [field.name for field in parquet.schema_arrow if "binary" not in str(field.type)]
    for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=wanted):
        table = pa.Table.from_batches([batch])
        while any(pa.types.is_struct(kind) for kind in table.schema.types):
            table = table.flatten()
        yield RowBatch(file, range(start, start + len(table)), table.column_names, partial(_of_table, table))
        start += len(table)


def _of_rows(rows: list[tuple[int, list[str]]], index: dict[str, int], name: str) -> list[Any]:
    place = index[name]
    return [row[place] for _, row in rows]


def _of_table(table: pa.Table, name: str) -> list[Any]:
    column = table[name]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_nested(kind):
        return ["" if value is None else value for value in column.to_pylist()]
    return cast(list[Any], column.cast(pa.string()).fill_null("").to_pylist())
