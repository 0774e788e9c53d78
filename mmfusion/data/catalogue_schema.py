"""The schema of a catalogue: which columns its tables have, and the types that they are read as."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.data.catalogue_error import CatalogueError, reading
from mmfusion.data.catalogue_files import Folder

SPLITS = ("train", "val", "test")
TABLES = ("products", "queries", "qrels")

COLUMNS: dict[str, dict[str, str]] = {
    "products": {"product_id": "id", "title": "text", "description": "text", "image": "photo", "split": "text"},
    "queries": {"query_id": "id", "query": "text", "split": "text", "kind": "text"},
    "qrels": {"query_id": "id", "product_id": "id", "grade": "grade"},
}
ROLES = {name: role for columns in COLUMNS.values() for name, role in columns.items()}
_REQUIRED: dict[str, tuple[str, ...]] = {
    "products": ("product_id", "title"),
    "queries": ("query_id", "query"),
    "qrels": ("query_id", "product_id", "grade"),
}
EXPECTED = {
    "id": "strings or integers",
    "text": "strings",
    "photo": "a struct with `bytes` and `path`, or a list of such structs",
    "grade": "integers of at least 0",
}


def read_schemas(folder: Folder, table: str, files: Sequence[str]) -> tuple[pa.Schema, str]:
    """The schema that all files of a table are read with, and a fingerprint of their footers."""
    schemas, rows, fingerprint = [], 0, hashlib.sha256()
    for path in files:
        place = f"catalogue {folder.name!r}, file {os.path.relpath(path, folder.root)!r}"
        remedy = "Check that it is a complete Parquet file, and write it again if it is not."
        with reading(place, remedy), folder.fs.open(path, "rb") as handle:
            file = pq.ParquetFile(handle)
            schema, count = file.schema_arrow, file.metadata.num_rows
            fingerprint.update(_fingerprint(folder, path, handle))
        schemas.append(target_schema(schema, table, place))
        rows += count
    if rows == 0:
        raise CatalogueError(
            f"table {table!r} has no rows", f"catalogue {folder.name!r}", "Write at least one row to it."
        )
    schema = _unify(schemas, folder, table, files)
    fingerprint.update(str(schema).encode())
    return schema, fingerprint.hexdigest()[:16]


def _fingerprint(folder: Folder, path: str, handle: Any) -> bytes:
    """What changes when the file does: its footer (sizes and statistics of all columns), and its time or tag."""
    size = handle.seek(-8, 2) + 8
    footer = int.from_bytes(handle.read(4), "little")
    handle.seek(size - 8 - footer)
    info = folder.fs.info(path)
    state = [str(info[key]) for key in ("mtime", "ETag", "etag", "LastModified", "created") if key in info]
    return hashlib.sha256(handle.read(footer) + repr((size, state)).encode()).digest()


def target_schema(schema: pa.Schema, table: str, place: str) -> pa.Schema:
    """Checks one file's columns and returns the types that they are read as."""
    names = schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CatalogueError(f"column {twice[0]!r} is there twice", place, "Rename or remove one of them.")
    for name in _REQUIRED[table]:
        if name not in names:
            raise CatalogueError(
                f"column {name!r} of table {table!r} is missing (columns: {', '.join(names)})",
                place,
                f"Add it, or rename the column that holds it; {table} need {', '.join(_REQUIRED[table])}.",
            )
    return pa.schema([(field.name, _target_type(field, table, place)) for field in schema])


def _target_type(field: pa.Field, table: str, place: str) -> pa.DataType:
    stored = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    role = COLUMNS[table].get(field.name, "metadata")
    kinds = {"id": _id_type, "text": _text_type, "photo": _photo_type, "grade": _grade_type}
    target = kinds.get(role, _metadata_type)(stored)
    if target is None and role in ("text", "photo") and is_number(stored):
        # Perhaps a column without any value, see `as_types`.
        target = pa.string() if role == "text" else pa.null()
    if target is None:
        because = " (whole numbers become floats where one is missing)" if pa.types.is_floating(stored) else ""
        raise CatalogueError(
            f"column {field.name!r} of table {table!r} has type {field.type}, not {EXPECTED[role]}",
            place,
            f"Convert it to {EXPECTED[role]}{because}.",
        )
    return target


def is_number(stored: pa.DataType) -> bool:
    """Whether a column holds whole numbers or floats."""
    return bool(pa.types.is_floating(stored) or pa.types.is_integer(stored))


def _metadata_type(stored: pa.DataType) -> pa.DataType:
    # `datasets` has no type for views.
    return pa.string() if pa.types.is_string_view(stored) else stored


def _id_type(stored: pa.DataType) -> pa.DataType | None:
    if pa.types.is_integer(stored):
        return pa.string()
    return _text_type(stored) if not pa.types.is_null(stored) else None


def _text_type(stored: pa.DataType) -> pa.DataType | None:
    if pa.types.is_string(stored) or pa.types.is_large_string(stored):
        return stored
    return pa.string() if pa.types.is_null(stored) or pa.types.is_string_view(stored) else None


def _grade_type(stored: pa.DataType) -> pa.DataType | None:
    return pa.int64() if pa.types.is_integer(stored) or pa.types.is_null(stored) else None


def _photo_type(stored: pa.DataType) -> pa.DataType | None:
    inner = stored.value_type if is_list(stored) else stored
    if pa.types.is_null(inner):
        return stored
    if not pa.types.is_struct(inner):
        return None
    fields = {inner.field(i).name: inner.field(i).type for i in range(inner.num_fields)}
    wanted = {
        "bytes": (pa.types.is_binary, pa.types.is_large_binary),
        "path": (pa.types.is_string, pa.types.is_large_string),
    }
    for name, allowed in wanted.items():
        if name in fields and not any(is_type(fields[name]) for is_type in (*allowed, pa.types.is_null)):
            return None
    return stored if fields.keys() & wanted.keys() else None


def is_list(stored: pa.DataType) -> bool:
    """Whether a column holds a list per row, of any kind."""
    return bool(pa.types.is_list(stored) or pa.types.is_large_list(stored) or pa.types.is_fixed_size_list(stored))


def has_text(stored: pa.DataType) -> bool:
    """Whether a column's values can be written as text: not structs, maps or bytes, nor lists of them."""
    if is_list(stored) or pa.types.is_dictionary(stored):
        return has_text(stored.value_type)
    return not (pa.types.is_nested(stored) or "binary" in str(stored))


def _unify(schemas: Sequence[pa.Schema], folder: Folder, table: str, files: Sequence[str]) -> pa.Schema:
    first = schemas[0]
    for path, schema in zip(files, schemas, strict=True):
        different = sorted(set(first.names) ^ set(schema.names))
        if different:
            raise CatalogueError(
                f"column {different[0]!r} is not in all files of table {table!r}",
                f"catalogue {folder.name!r}, file {os.path.relpath(path, folder.root)!r}",
                f"Write all files with the columns of {os.path.basename(files[0])!r}: {', '.join(first.names)}.",
            )
    with reading(f"catalogue {folder.name!r}, files of table {table!r}", "Write all of them with the same types."):
        return pa.unify_schemas(list(schemas), promote_options="permissive")


def check_split_name(split: str, place: str) -> None:
    """Refuses a name that is not one of `SPLITS`; ``place`` says who was given it."""
    if split not in SPLITS:
        raise CatalogueError(f"split {split!r} does not exist", place, f"Use one of {', '.join(SPLITS)}, or None.")
