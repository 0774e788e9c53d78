"""JSON lines, arrays of objects, and objects that hold such an array, as a table."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.encodings import encoding_of_head
from mmfusion.importers.items import ImportLog
from mmfusion.importers.rows import MAX_ROW, Row, TextTable
from mmfusion.importers.source import SourceFile

_SAMPLED = 5000
_CHUNK = 1 << 20
# Numbers stay as they are written: 19.90, and ids of 20 digits.
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=lambda _: "")
# What stands before the first object of an array, perhaps within other objects: {"count": 2, "products": [
_STRING = r'"(?:[^"\\]|\\.)*+"'
_SIMPLE = rf"{_STRING}\s*:\s*(?:{_STRING}|[-+.\w]+)\s*,\s*"
_ARRAY = re.compile(rf"\s*(?:\{{\s*(?:{_SIMPLE})*+{_STRING}\s*:\s*)*\[\s*(?=\{{)")
_BETWEEN = re.compile(r"[\s,]*")


class JsonTable(TextTable):
    """Objects one after the other; their keys are those of the first 5,000 objects, later ones are named and not read.

    Attributes:
        keys: Keys of the columns.
        start: Characters before the first object of an array; None: an object a line.
    """

    def __init__(self, file: SourceFile, start: int | None) -> None:
        self.file, self.start = file, start
        keys: dict[str, None] = {}
        with file.open() as stream:
            for (_, found), _ in zip(self._objects(stream), range(_SAMPLED), strict=False):
                keys.update(dict.fromkeys(found if isinstance(found, dict) else ()))
        self.keys = list(keys)
        super().__init__(file, self.keys)

    def _rows(self, log: ImportLog) -> Iterator[Row]:
        keys, known = self.keys, set(self.keys)
        with self.file.open() as stream:
            for line, found in self._objects(stream):
                if not isinstance(found, dict):
                    log.reject(self.file.name, line, found)
                    continue
                if not known.issuperset(found):
                    late = sorted(found.keys() - known)
                    known.update(late)
                    log.warn(f"{self.place(line)}: {', '.join(map(repr, late))} comes late and is not read")
                if any(cells := [_text(found.get(key)) for key in keys]):
                    yield Row(line, cells)

    def _objects(self, stream: IO[bytes]) -> Iterator[tuple[int, dict[str, Any] | str]]:
        """First line of each object, and the object or what is wrong."""
        text = io.TextIOWrapper(stream, self.encoding.name, self.encoding.errors, newline="")
        if self.start is None:
            return _of_lines(text)
        return _of_array(text, 1 + text.read(self.start).count("\n"), self.file.name)


def open_json(file: SourceFile) -> JsonTable | None:
    """The table in a file of JSON; None if it holds something else."""
    encoding = encoding_of_head(file)
    text = file.head.decode(encoding.name, "replace")
    array = _ARRAY.match(text)
    lines = [line for line in text.split("\n") if line.strip()]
    # A whole object a line; one object alone in a file `.json` is no table, but may hold an array.
    if lines and isinstance(_object(lines[0].strip()), dict) and (len(lines) > 1 or file.suffix != ".json"):
        return JsonTable(file, None)
    return JsonTable(file, array.end()) if array else None


def _of_lines(text: IO[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    number = 0
    while line := text.readline(MAX_ROW):
        number += 1
        if len(line) == MAX_ROW:
            while not line.endswith("\n") and (rest := text.readline(MAX_ROW)):
                line = rest
            yield number, f"a row of more than {MAX_ROW >> 20} million characters"
        elif line.strip():
            yield number, _object(line.strip())


def decoded(text: str) -> Any:
    """What JSON holds, numbers as they are written.

    Raises:
        ValueError: It is none.
    """
    return _whole(_DECODER.decode(text), text)


def _whole(found: Any, text: str) -> Any:
    """What JSON holds, with "?" for half of a letter: where an emoji was cut in two, as in `\\ud83d`."""
    if "\\ud" not in text and "\\uD" not in text:
        return found
    return json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))


def _object(line: str) -> dict[str, Any] | str:
    try:
        found = decoded(line)
    except ValueError as error:
        return f"not JSON: {error}"
    return found if isinstance(found, dict) else "not JSON: no object"


def _of_array(text: IO[str], line: int, name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    buffer, ended = "", False
    while True:
        start = _BETWEEN.match(buffer).end()  # type: ignore[union-attr]  # it matches always
        if buffer[start : start + 1] == "]":
            return
        try:
            found, end = _DECODER.raw_decode(buffer, start)
        except ValueError as error:
            if not ended and len(buffer) - start < MAX_ROW:
                more = text.read(_CHUNK)
                buffer, ended = buffer + more, not more
                continue
            line += buffer.count("\n", 0, start)
            if ended:
                yield line, "not JSON: the file ends in the middle"
                return
            problem = f"not JSON from here on ({error})"
            raise CatalogueError(problem, f"{name}, line {line}", "Repair it, or write one object a line.") from error
        line += buffer.count("\n", 0, start)
        yield line, _whole(found, buffer[start:end]) if isinstance(found, dict) else "not JSON: no object"
        line += buffer.count("\n", start, end)
        buffer = buffer[end:]


def _text(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value
