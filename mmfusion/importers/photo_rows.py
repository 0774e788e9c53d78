"""Rows of data sets whose photos are in their columns, or named by them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmfusion.importers.collect import KEY, PHOTOS, photos_in
from mmfusion.importers.items import ImportLog
from mmfusion.importers.rows import Row, TextTable


class Part(NamedTuple):
    """One of the files of a data set.

    Attributes:
        table: Its rows.
        photos: Columns of photos.
        folder: Folder that photos are named in; None: as they are.
        split: Split of its rows, or None.
    """

    table: TextTable
    photos: Sequence[str]
    folder: Path | None = None
    split: str | None = None


class PhotoRows(TextTable):
    """Rows of files with about the same columns, one after the other.

    Photos of all columns are in one list. The key is the name of the first photo's file without its suffix, or the
    number of the row.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._current = parts[0].table
        taken = {KEY, PHOTOS, *(name for part in parts for name in part.photos)}
        self._own = [
            name for name in dict.fromkeys(c for part in parts for c in part.table.columns) if name not in taken
        ]
        self._with_split = len({part.split for part in parts}) > 1 and "split" not in self._own
        names = [KEY, *self._own, *(["split"] if self._with_split else [])]
        super().__init__(parts[0].table.file, [*names, PHOTOS] if any(part.photos for part in parts) else names)

    def place(self, line: int) -> str:
        return self._current.place(line)

    def _rows(self, log: ImportLog) -> Iterator[Row]:
        keys: set[str] = set()
        number = 0
        for part in self.parts:
            self._current = part.table
            for line, cells in part.table.rows(log):
                number += 1
                row = dict(zip(part.table.columns, cells, strict=True))
                named = next((name for column in part.photos if (name := _name(row[column]))), "")
                key = os.path.splitext(named)[0] or f"{number:06d}"
                key = key if key not in keys else f"{key}-{number}"
                keys.add(key)
                found = [key, *(row.get(name, "") for name in self._own)]
                if self._with_split:
                    found.append(part.split or "")
                if PHOTOS in self.columns:
                    photos = [photo for column in part.photos for photo in photos_in(row[column])]
                    found.append([_placed(photo, part.folder) for photo in photos])
                yield Row(line, found)


def _name(value: Any) -> str:
    """Path of the first photo of a cell; "" where it has none."""
    if isinstance(value, list):
        return next((name for one in value if (name := _name(one))), "")
    if isinstance(value, dict):
        value = value.get("path")
    return value.replace("\\", "/") if isinstance(value, str) else ""


def _placed(photo: str | bytes, folder: Path | None) -> str | bytes:
    if folder is None or isinstance(photo, bytes) or "://" in photo:
        return photo
    return os.path.join(folder, photo.replace("\\", "/"))
