"""Checks of products and queries: ids, texts, splits and paths of photos.

All are vectorised over Arrow columns, as a Python loop over ten million rows takes minutes.
"""

from __future__ import annotations

import os
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue_error import CatalogueError, reading
from mmfusion.data.catalogue_schema import SPLITS, is_list


def check_products(products: datasets.Dataset, source: str, photo_root: str | None) -> None:
    """Refuses bad text, ids, splits and paths of photos."""
    place = f"catalogue {source!r}, table 'products'"
    check_text(products, place)
    _check_ids(products, "product_id", place)
    _check_splits(products, place, null_allowed=True)
    if "image" in products.column_names:
        check_photo_paths(products.data.column("image"), photo_root, place)


def check_queries(queries: datasets.Dataset, source: str) -> None:
    """Refuses bad text, ids and splits, and blank queries."""
    place = f"catalogue {source!r}, table 'queries'"
    check_text(queries, place)
    _check_ids(queries, "query_id", place)
    _check_splits(queries, place, null_allowed=False)
    text = queries.data.column("query")
    row = first_true(pc.or_kleene(pc.is_null(text), pc.equal(pc.utf8_trim_whitespace(text), "")))
    if row is not None:
        raise CatalogueError(
            f"query {cell(queries, 'query_id', row)!r} has the blank text {cell(queries, 'query', row)!r}",
            f"{place}, column 'query', row {row}",
            "Write its text, or remove the query and its judgements.",
        )


def check_text(table: datasets.Dataset, place: str) -> None:
    """Refuses bytes that are not UTF-8, which Arrow would otherwise report only when the row is read."""
    for name in table.column_names:
        column = table.data.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        start = 0
        for chunk in column.chunks:
            with reading(f"{place}, column {name!r}, rows {start} to {start + len(chunk) - 1}", "Write it as UTF-8."):
                chunk.validate(full=True)
            start += len(chunk)


def _check_ids(table: datasets.Dataset, name: str, place: str) -> None:
    column = table.data.column(name)
    row = first_true(pc.or_kleene(pc.is_null(column), pc.equal(column, "")))
    if row is not None:
        raise CatalogueError(
            f"the id is {cell(table, name, row)!r}", f"{place}, column {name!r}, row {row}", "Give every row an id."
        )
    if pc.count_distinct(column).as_py() == len(column):
        return
    counts = pc.value_counts(column)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    value, count = repeated[0]["values"].as_py(), repeated[0]["counts"].as_py()
    rows = pc.indices_nonzero(pc.equal(column, value))[:3].to_pylist()
    more = ", ..." if count > len(rows) else ""
    others = f" ({len(repeated):,} ids are used more than once)" if len(repeated) > 1 else ""
    raise CatalogueError(
        f"the id {value!r} is used by {count} rows{others}",
        f"{place}, column {name!r}, rows {', '.join(map(str, rows))}{more}",
        "Ids must be unique: remove the duplicates or rename them.",
    )


def _check_splits(table: datasets.Dataset, place: str, *, null_allowed: bool) -> None:
    if "split" not in table.column_names:
        return
    column = table.data.column("split")
    known = pc.is_in(column, value_set=pa.array(SPLITS, column.type))
    if null_allowed:
        known = pc.or_(known, pc.is_null(column))
    row = first_true(pc.invert(known))
    if row is not None:
        raise CatalogueError(
            f"the split is {cell(table, 'split', row)!r}",
            f"{place}, column 'split', row {row}",
            f"Use one of {', '.join(SPLITS)}, or remove the column.",
        )


def check_photo_paths(column: pa.ChunkedArray, photo_root: str | None, place: str, offset: int = 0) -> None:
    """Refuses photos stored as a path that leads out of the catalogue's folder."""
    start = offset
    for chunk in column.chunks:
        found = _photo_paths(chunk)
        if found is not None:
            rows, paths = found
            at = first_true(_leaves(paths, photo_root))
            if at is not None:
                where = "it is not in a local folder" if photo_root is None else f"that is outside {photo_root!r}"
                raise CatalogueError(
                    f"the photo is stored as the path {paths[at].as_py()!r}, and {where}",
                    f"{place}, column 'image', row {start + rows[at].as_py()}",
                    "Store the photo's bytes, or a path relative to the catalogue's folder.",
                )
        start += len(chunk)


def _photo_paths(chunk: pa.Array) -> tuple[pa.Array, pa.Array] | None:
    """(row in the chunk, path) of the photos that have a path and no bytes; never touches the bytes."""
    rows = pa.array(np.arange(len(chunk)))
    if is_list(chunk.type):
        rows, chunk = pc.list_parent_indices(chunk), pc.list_flatten(chunk)
    if not pa.types.is_struct(chunk.type) or chunk.type.get_field_index("path") < 0:
        return None
    paths = pc.struct_field(chunk, "path")
    by_path = pc.is_valid(paths)
    if chunk.type.get_field_index("bytes") >= 0:
        by_path = pc.and_(by_path, pc.is_null(pc.struct_field(chunk, "bytes")))
    if pa.types.is_null(paths.type) or not pc.any(by_path).as_py():
        return None
    return rows.filter(by_path), paths.filter(by_path)


def _leaves(paths: pa.Array, photo_root: str | None) -> pa.Array:
    if photo_root is None:
        return pc.is_valid(paths)
    upwards = pc.match_substring_regex(paths, r"(^|[/\\])\.\.([/\\]|$)")
    absolute = pc.match_substring_regex(paths, r"^([/\\]|[A-Za-z]:|[A-Za-z0-9+]+://)")
    inside = pc.starts_with(paths, photo_root.rstrip(os.sep) + os.sep)
    return pc.or_(upwards, pc.and_not(absolute, inside))


def first_true(mask: pa.ChunkedArray | pa.Array) -> int | None:
    """Position of the first True; None where there is none."""
    at = pc.index(mask, True).as_py()
    return None if at < 0 else int(at)


def cell(table: datasets.Dataset, column: str, row: int) -> Any:
    """One value as a Python object."""
    return table.data.column(column)[row].as_py()
