"""Rows of a catalogue as callers see them: ids, rows of a split, tidy text and photos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue_schema import check_split_name
from mmfusion.model.processing_mmfusion import is_missing


def to_strings(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column of strings as ``StringDType``, ``[num rows]``."""
    # Chunk by chunk: one `str` object per id at the same time would take several times the memory of the result.
    strings = np.empty(len(column), dtype=np.dtypes.StringDType())
    start = 0
    for chunk in column.chunks:
        strings[start : start + len(chunk)] = chunk.to_pylist()
        start += len(chunk)
    return strings


def rows_of_split(table: datasets.Dataset, split: str | None, place: str) -> npt.NDArray[np.int64]:
    """Ascending rows of a split, int64 ``[n]``; all where the split is None or the table has no such column."""
    if split is not None:
        check_split_name(split, f"Catalogue.{place}")
    if split is None or "split" not in table.column_names:
        return np.arange(len(table), dtype=np.int64)
    return pc.indices_nonzero(pc.equal(table.data.column("split"), split)).to_numpy().astype(np.int64)


def check_rows(rows: Sequence[int], count: int, place: str) -> None:
    """Raises IndexError for a row that is not 0 to ``count - 1``; -1 stands for padding and is none."""
    if rows and not (min(rows) >= 0 and max(rows) < count):
        wrong = next(row for row in rows if not 0 <= row < count)
        raise IndexError(f"Catalogue, {place}: row {wrong} does not exist. Rows are 0 to {count - 1}.")


def text_or_blank(value: Any) -> str:
    """The text as stored, or "" where it is null, NaN or blank.

    Raises:
        TypeError: It is something else.
    """
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where a text is expected")
    return value if value.strip() else ""


def tidy_product(record: dict[str, Any], photo_root: str | None) -> dict[str, Any]:
    """A product as callers see it: lacking text is "", and a photo's path is absolute."""
    image = record.get("image")
    if isinstance(image, list):
        image = [photo for entry in image if (photo := _locate_photo(entry, photo_root)) is not None]
    else:
        image = _locate_photo(image, photo_root)
    text = {name: text_or_blank(record.get(name)) for name in ("title", "description")}
    return {**record, **text, "image": image}


def _locate_photo(photo: dict[str, Any] | None, photo_root: str | None) -> dict[str, Any] | None:
    if photo is None or is_missing(photo) or (photo.get("bytes") is None and not photo.get("path")):
        return None
    if photo.get("bytes") is None and photo_root is not None:
        return {**photo, "bytes": None, "path": os.path.join(photo_root, photo["path"])}
    return photo
