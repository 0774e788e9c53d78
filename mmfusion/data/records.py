"""Tables of a catalogue from what a program has in memory: dicts, frames, Arrow tables, data sets, PIL images."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from mmfusion.data.catalogue_checks import photo_paths
from mmfusion.data.catalogue_schema import CatalogueError, as_types, is_photo, reading, target_schema
from mmfusion.data.photos import is_photo_list
from mmfusion.model.missing import is_missing
from mmfusion.model.photos import upright_rgb

# Imported where they are needed, as the two take half a second and a search needs neither.
if TYPE_CHECKING:
    import datasets

_PHOTO = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])


def records_table(records: Any, name: str, folder: str) -> datasets.Dataset:
    """A table in memory, with the types that it would be read with from a file.

    Args:
        records: As for `Catalogue.from_records`.
        name: Of `TABLES`.
        folder: Folder that relative paths of photos are in; they become absolute.

    Raises:
        CatalogueError: There are no rows, a column is missing or of the wrong type, or a photo cannot be used.
    """
    place = f"records, table {name!r}"
    with reading(place, "Give rows as dicts, a frame or a table, and each column values of one type."):
        table = _arrow(records)
        image = table.pop("image", None) if name == "products" else None
        columns = {column: pa.array(v, from_pandas=True) if isinstance(v, list) else v for column, v in table.items()}
    if not columns or not len(next(iter(columns.values()))):
        raise CatalogueError(f"table {name!r} has no rows", "records", "Give at least one row.")
    if image is not None:
        columns["image"] = _photos(image, folder, place)
    rows = pa.table(columns)
    rows = as_types(rows, target_schema(rows.schema, name, place), place)
    import datasets

    # A name at random, as the library would hash all photos for one.
    return datasets.Dataset(datasets.table.InMemoryTable(rows), fingerprint=secrets.token_hex(8))


def rows_of(records: Any) -> list[Any]:
    """Rows of a pandas or polars frame, an Arrow table, a data set of `datasets` or an iterable of mappings."""
    table = _table(records)
    if isinstance(table, pa.Table):
        rows: list[Any] = table.to_pylist()
        return rows
    return table


def _arrow(records: Any) -> dict[str, Any]:
    """Columns by name: Arrow arrays of what is a table already, otherwise lists."""
    table = _table(records)
    if isinstance(table, pa.Table):
        return dict(zip(table.column_names, table.columns, strict=True))
    names = dict.fromkeys(column for row in table for column in row)
    return {column: [row.get(column) for row in table] for column in names}


def _table(records: Any) -> pa.Table | list[Any]:
    """An Arrow table where that is at hand without a copy, otherwise rows."""
    import datasets
    import pandas as pd

    if isinstance(records, datasets.Dataset):
        records = records.with_format("arrow")[:]
    elif hasattr(records, "to_arrow"):
        records = records.to_arrow()
    if isinstance(records, pa.Table):
        return records
    if isinstance(records, pa.RecordBatch):
        return pa.Table.from_batches([records])
    if isinstance(records, pd.DataFrame):
        records = records.to_dict("records")
    elif isinstance(records, datasets.IterableDataset) and records.features is not None:
        records = records.decode(False)
    return [row.to_dict() if isinstance(row, pd.Series) else row for row in records]


def _photos(image: Any, folder: str, place: str) -> pa.Array | pa.ChunkedArray:
    """The column ``image``: structs, or lists of them where a product has a list."""
    if isinstance(image, (pa.Array, pa.ChunkedArray)):
        chunks = image.chunks if isinstance(image, pa.ChunkedArray) else [image]
        if is_photo(image.type) and not any(len(photo_paths(chunk)[0]) for chunk in chunks):
            return image
        image = image.to_pylist()
    photos = []
    for row, value in enumerate(image):
        try:
            several = is_photo_list(value)
            photos.append([photo_struct(one, folder) for one in value] if several else photo_struct(value, folder))
        except ValueError as error:
            remedy = "Give a path, bytes, a PIL image, a mapping with bytes or path, a list of them, or None."
            raise CatalogueError(
                f"the photo cannot be used: {error}", f"{place}, column 'image', row {row}", remedy
            ) from error
    if not any(isinstance(photo, list) for photo in photos):
        return pa.array(photos, _PHOTO)
    lists = [photo if isinstance(photo, list) or photo is None else [photo] for photo in photos]
    return pa.array(lists, pa.list_(_PHOTO))


def photo_struct(value: Any, folder: str) -> dict[str, Any] | None:
    """A photo as catalogues hold it, with `bytes` or an absolute `path` (or a URL); None where there is none.

    Args:
        value: Path, bytes of a file, PIL image, mapping with ``bytes`` or ``path``, or a missing value.
        folder: Folder that relative paths are in.

    Raises:
        ValueError: It is none of these, or a PIL image that cannot be used.
    """
    if is_missing(value):
        return None
    if isinstance(value, Image.Image):
        file = BytesIO()
        upright_rgb(value).save(file, "PNG")
        value = file.getvalue()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(value), "path": None}
    if isinstance(value, (str, os.PathLike)):
        value = {"path": value}
    if not isinstance(value, Mapping) or not value.keys() & _PHOTO.names:
        raise ValueError(f"{type(value).__name__} where a photo was expected")
    data, path = value.get("bytes"), value.get("path")
    if not is_missing(data):
        return {"bytes": data, "path": path}
    if is_missing(path) or not path:
        return None
    path = os.fspath(path)
    return {"bytes": None, "path": path if "://" in path else os.path.normpath(os.path.join(folder, path))}
