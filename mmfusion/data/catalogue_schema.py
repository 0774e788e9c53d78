"""The tables of a catalogue: their columns, the types that these are read as, and the error for what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.model.errors import MMFusionError

SPLITS = ("train", "val", "test")
TABLES = ("products", "queries", "qrels")
TEMPLATE_KEY = b"product_template"
"""In the Parquet metadata of products: the product text that suits them."""
LANGUAGE_KEY = b"language"
"""There as well: ISO 639 code of titles and queries."""
GRADES_KEY = b"grades"
"""In that of judgements: how they came about."""

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
_EXPECTED = {
    "id": "strings or integers",
    "text": "strings",
    "photo": "a struct with `bytes` and `path`, or a list of such structs",
    "grade": "integers of at least 0",
}
_IMPORT = "; `mmfusion import … --photos DIR` does for names of files, and with `--photos download` for URLs"
_PHOTO_FIELDS = {"bytes": ("binary", "large_binary", "null"), "path": ("string", "large_string", "null")}


class CatalogueError(MMFusionError):
    """A catalogue cannot be used as it is; the message names the value, the place and the remedy."""

    def __init__(self, problem: str, place: str = "", remedy: str = "") -> None:
        # One finished string stays the only argument, so that the error survives a trip between processes.
        super().__init__(". ".join(part for part in (f"{place}: {problem}" if place else problem, remedy) if part))


@contextmanager
def reading(place: str, remedy: str) -> Iterator[None]:
    """Turns what a library raises while it reads into a `CatalogueError`."""
    try:
        yield
    except CatalogueError:
        raise
    except Exception as error:
        # The kinds differ by file system and version: OSError, ArrowInvalid, DatasetGenerationError, ImportError ...
        cause: BaseException = error
        while type(error).__module__.startswith("datasets") and cause.__cause__ is not None:
            cause = cause.__cause__
        raise CatalogueError(f"cannot be read ({first_line(cause)})", place, remedy) from error


def first_line(error: BaseException) -> str:
    """Kind of an error and the first line of its text."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no details').splitlines()[0][:300]}"


def target_schema(schema: pa.Schema, table: str, place: str) -> pa.Schema:
    """Checks the columns of a table and returns the types that they are read as.

    Raises:
        CatalogueError: A column is missing, there twice, or of the wrong type.
    """
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


def as_types(table: pa.Table, schema: pa.Schema, place: str, start: int = 0) -> pa.Table:
    """Rows of a table as the types of `target_schema`.

    Where all values of a column of texts or photos are missing, pandas writes NaN and DuckDB integers: these become
    nulls.

    Raises:
        CatalogueError: Such a column holds a number; ``start`` is the row of the table's first one.
    """
    table = table.select(schema.names)
    for at, field in enumerate(schema):
        column = table.column(at)
        if lacks_values(column.type, field):
            row = pc.index(pc.is_null(column, nan_is_null=True), False).as_py()
            if row >= 0:
                expected = _EXPECTED[ROLES[field.name]]
                raise CatalogueError(
                    f"column {field.name!r} has type {column.type}, not {expected}: it holds {column[row]}",
                    f"{place}, row {start + row}",
                    f"Convert it to {expected}.",
                )
            table = table.set_column(at, field, pa.nulls(len(table), field.type))
    return table.cast(schema)


def lacks_values(stored: pa.DataType, target: pa.Field) -> bool:
    """Whether numbers are stored where texts or photos belong, so that none of them may be a value."""
    return ROLES.get(target.name) in ("text", "photo") and _is_number(stored) and not _is_number(target.type)


def is_list(stored: pa.DataType) -> bool:
    """Whether a column holds a list per row, of any kind."""
    return bool(pa.types.is_list(stored) or pa.types.is_large_list(stored) or pa.types.is_fixed_size_list(stored))


def has_text(stored: pa.DataType) -> bool:
    """Whether a column's values can be written as text: not structs, maps or bytes, nor lists of them."""
    if is_list(stored) or pa.types.is_dictionary(stored):
        return has_text(stored.value_type)
    return not (pa.types.is_nested(stored) or "binary" in str(stored))


def is_photo(stored: pa.DataType) -> bool:
    """Whether a column holds photos: structs with ``bytes``, ``path`` or both, lists of them, or nulls."""
    inner = stored.value_type if is_list(stored) else stored
    if not pa.types.is_struct(inner):
        return bool(pa.types.is_null(inner))
    kinds = {field.name: str(field.type) for field in inner if field.name in _PHOTO_FIELDS}
    return bool(kinds) and all(kind in _PHOTO_FIELDS[name] for name, kind in kinds.items())


def _is_number(stored: pa.DataType) -> bool:
    return bool(pa.types.is_floating(stored) or pa.types.is_integer(stored))


def _target_type(field: pa.Field, table: str, place: str) -> pa.DataType:
    stored = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    role = COLUMNS[table].get(field.name, "metadata")
    target = _type_of_role(stored, role)
    if target is None:
        because = " (whole numbers become floats where one is missing)" if pa.types.is_floating(stored) else ""
        raise CatalogueError(
            f"column {field.name!r} of table {table!r} has type {field.type}, not {_EXPECTED[role]}",
            place,
            f"Convert it to {_EXPECTED[role]}{because}{'' if role != 'photo' else _IMPORT}.",
        )
    return target


def _type_of_role(stored: pa.DataType, role: str) -> pa.DataType | None:
    """The type that a column is read as; None where it cannot hold what it should."""
    if role == "metadata":
        # `datasets` has no type for views.
        return pa.string() if pa.types.is_string_view(stored) else stored
    if role == "grade":
        return pa.int64() if pa.types.is_integer(stored) or pa.types.is_null(stored) else None
    if role == "photo":
        # Numbers: perhaps a column without any value, see `as_types`.
        return stored if is_photo(stored) else pa.null() if _is_number(stored) else None
    if pa.types.is_string(stored) or pa.types.is_large_string(stored):
        return stored
    as_text = _is_number(stored) or pa.types.is_null(stored) if role == "text" else pa.types.is_integer(stored)
    return pa.string() if as_text or pa.types.is_string_view(stored) else None
