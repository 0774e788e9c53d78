"""What must hold of the rows of a catalogue: ids, texts, splits, paths of photos, grades.

All checks are vectorised over Arrow columns, as a Python loop over ten million rows takes minutes.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue_schema import SPLITS, CatalogueError, is_list, reading
from mmfusion.data.photos import FETCH_PHOTOS, is_url
from mmfusion.data.qrels import DuplicateJudgementError, Qrels

logger = logging.getLogger(__name__)

# Judges tell a handful of levels apart; more are scores.
_MOST_LEVELS = 10
# A number that a name of a file begins with.
_NUMBER = re.compile(r"(\d+)(?![0-9A-Za-z])")
# Enough to see how ids are written.
_FIRST_ROWS = 1_000


def check_products(products: pa.Table, source: str, photo_root: str | None) -> None:
    """Raises an error naming the first bad text, id, split or path of a photo."""
    place = f"catalogue {source!r}, table 'products'"
    _check_table(products, "product_id", place, null_split=True)
    if "image" in products.column_names:
        check_photo_paths(products["image"], photo_root, place)
        _warn_of_lost_zeros(products.slice(0, _FIRST_ROWS), place)


def check_queries(queries: pa.Table, source: str) -> None:
    """Raises an error naming the first bad text, id or split, or blank query."""
    place = f"catalogue {source!r}, table 'queries'"
    _check_table(queries, "query_id", place, null_split=False)
    blank = pc.or_kleene(pc.is_null(queries["query"]), pc.equal(pc.utf8_trim_whitespace(queries["query"]), ""))
    problem = "query {query_id!r} has the blank text {query!r}"
    _check_none(queries, "query", blank, problem, place, "Write its text, or remove the query and its judgements.")


def check_photo_paths(column: pa.ChunkedArray, photo_root: str | None, place: str) -> None:
    """Raises an error naming the first photo that is stored as a path out of the catalogue's folder."""
    start = 0
    for chunk in column.chunks:
        rows, paths = photo_paths(chunk)
        at = pc.index(_leaves(paths, photo_root), True).as_py()
        if at >= 0:
            path, where = paths[at].as_py(), f"{place}, column 'image', row {start + rows[at].as_py()}"
            if is_url(path):
                raise CatalogueError(f"the photo is the URL {path!r}, which is not fetched here", where, FETCH_PHOTOS)
            outside = "it is not in a local folder" if photo_root is None else f"that is outside {photo_root!r}"
            raise CatalogueError(
                f"the photo is stored as the path {path!r}, and {outside}",
                where,
                "Store the photo's bytes, or a path relative to the catalogue's folder.",
            )
        start += len(chunk)


def _warn_of_lost_zeros(products: pa.Table, place: str) -> None:
    """Says so where photos are named after ids that begin with zeros, and the ids do not."""
    ids, named, lost = products["product_id"].to_pylist(), 0, []
    start = 0
    for chunk in products["image"].chunks:
        rows, photos = _each_photo(chunk)
        paths = pc.struct_field(photos, "path").to_pylist() if _has(photos, "path") else []
        for row, path in zip(rows.to_pylist(), paths, strict=bool(paths)):
            number = _NUMBER.match(os.path.basename(path or ""))
            if number is not None and ids[start + row].isdecimal():
                named += 1
                if number[1] != ids[start + row] and number[1] == ids[start + row].zfill(len(number[1])):
                    lost.append((ids[start + row], path))
        start += len(chunk)
    if len(lost) * 2 > named:
        logger.warning(
            "%s: ids seem to have lost their leading zeros, as product %r has the photo %r: they were read as numbers. "
            "Read ids as texts (pandas: dtype=str), or let `mmfusion import` read the file.",
            *(place, *lost[0]),
        )


def photo_paths(chunk: pa.Array) -> tuple[pa.Array, pa.Array]:
    """(row in the chunk, path) of the photos that have a path and no bytes; never touches the bytes."""
    rows, chunk = _each_photo(chunk)
    paths = pc.struct_field(chunk, "path") if _has(chunk, "path") else pa.nulls(len(rows))
    if pa.types.is_null(paths.type):
        paths = paths.cast(pa.string())
    by_path = pc.is_valid(paths)
    if _has(chunk, "bytes"):
        by_path = pc.and_(by_path, pc.is_null(pc.struct_field(chunk, "bytes")))
    return rows.filter(by_path), paths.filter(by_path)


def _each_photo(chunk: pa.Array) -> tuple[pa.Array, pa.Array]:
    """(row in the chunk, photo) of all photos, nulls included."""
    if is_list(chunk.type):
        return pc.list_parent_indices(chunk), pc.list_flatten(chunk)
    return pa.array(np.arange(len(chunk))), chunk


def _has(photos: pa.Array, name: str) -> bool:
    return bool(pa.types.is_struct(photos.type)) and photos.type.get_field_index(name) >= 0


def build_qrels(products: pa.Table, queries: pa.Table, qrels: pa.Table, source: str, unknown: str) -> Qrels:
    """Qrels between rows of the queries and rows of the products; ``unknown`` as for `Catalogue.load`.

    Raises:
        CatalogueError: A grade is null or negative, a pair is judged twice, or (as asked) an id is not in its table.
    """
    place = f"catalogue {source!r}, table 'qrels'"
    _check_text(qrels, place)
    bad = pc.or_kleene(pc.is_null(qrels["grade"]), pc.less(qrels["grade"], 0))
    problem = "the grade of query {query_id!r} and product {product_id!r} is {grade}"
    remedy = "Grades are integers of at least 0: write one, or remove the judgement."
    _check_none(qrels, "grade", bad, problem, place, remedy)
    rows: dict[str, npt.NDArray[np.int64]] = {}
    for column, owner, table in (("query_id", "queries", queries), ("product_id", "products", products)):
        named = qrels[column].cast(table[column].type)
        rows[column] = pc.fill_null(pc.index_in(named, value_set=table[column]), -1).to_numpy().astype(np.int64)
        if (rows[column] < 0).any():
            _report_unknown(named, table[column], owner, rows[column] < 0, f"{place}, column {column!r}", unknown)
    kept = (rows["query_id"] >= 0) & (rows["product_id"] >= 0)
    if not kept.any():
        raise CatalogueError("no judgement is left", place, "Check that the ids are written as in the other tables.")
    grade = qrels["grade"].to_numpy()
    _warn_of_many_grades(np.unique(grade[kept]), place)
    try:
        return Qrels(rows["query_id"][kept], rows["product_id"][kept], grade[kept])
    except DuplicateJudgementError as error:
        query, product = queries["query_id"][error.query].as_py(), products["product_id"][error.product].as_py()
        twice = np.flatnonzero((rows["query_id"] == error.query) & (rows["product_id"] == error.product))
        raise CatalogueError(
            f"query {query!r} and product {product!r} are judged {len(twice)} times, with grades "
            f"{', '.join(str(grade[at]) for at in twice[:3])}",
            f"{place}, rows {', '.join(map(str, twice[:3]))}",
            "Keep one judgement per pair.",
        ) from error


def _warn_of_many_grades(levels: npt.NDArray[np.int64], place: str) -> None:
    """Says what a score from 0 to 100 does where a few levels are meant."""
    if len(levels) > _MOST_LEVELS:
        logger.warning(
            "%s: %d different grades, from %d to %d. Recall counts the highest alone (--relevant_grade sets another), "
            "and losses take each level for a rank of its own. `mmfusion import --judgements` cuts scores into 0 to 3.",
            *(place, len(levels), levels[0], levels[-1]),
        )


def _check_text(table: pa.Table, place: str) -> None:
    """Checks that texts are UTF-8, which Arrow would otherwise report only when the row is read."""
    for name in table.column_names:
        start = 0
        for chunk in table[name].chunks if "string" in str(table[name].type) else ():
            with reading(f"{place}, column {name!r}, rows {start} to {start + len(chunk) - 1}", "Write it as UTF-8."):
                chunk.validate(full=True)
            start += len(chunk)


def _check_table(table: pa.Table, id_column: str, place: str, *, null_split: bool) -> None:
    _check_text(table, place)
    missing = pc.or_kleene(pc.is_null(table[id_column]), pc.equal(table[id_column], ""))
    _check_none(table, id_column, missing, f"the id is {{{id_column}!r}}", place, "Give every row an id.")
    _check_unique(table, id_column, place)
    if "split" in table.column_names:
        split = table["split"]
        known = pc.is_in(split, value_set=pa.array([*SPLITS, *([None] if null_split else [])], split.type))
        remedy = f"Use one of {', '.join(SPLITS)}, or remove the column."
        _check_none(table, "split", pc.invert(known), "the split is {split!r}", place, remedy)


def _check_unique(table: pa.Table, name: str, place: str) -> None:
    column = table[name]
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


def _check_none(table: pa.Table, column: str, bad: pa.ChunkedArray, problem: str, place: str, remedy: str) -> None:
    """Raises an error for the first row that is bad; ``problem`` is formatted with the row's values by column."""
    row = pc.index(bad, True).as_py()
    if row >= 0:
        named = [name for name in table.column_names if f"{{{name}" in problem]
        values: dict[str, Any] = table.select(named).slice(row, 1).to_pylist()[0]
        raise CatalogueError(problem.format_map(values), f"{place}, column {column!r}, row {row}", remedy)


def _leaves(paths: pa.Array, photo_root: str | None) -> pa.Array:
    if photo_root is None:
        return pc.is_valid(paths)
    upwards = pc.match_substring_regex(paths, r"(^|[/\\])\.\.([/\\]|$)")
    absolute = pc.match_substring_regex(paths, r"^([/\\]|[A-Za-z]:|[A-Za-z0-9+]+://)")
    inside = pc.starts_with(paths, photo_root.rstrip(os.sep) + os.sep)
    return pc.or_(upwards, pc.and_not(absolute, inside))


def _with_other_zeros(name: str | None, known: pa.ChunkedArray) -> str:
    """A hint where an unknown id is known with other leading zeros."""
    if not name or not name.isdecimal():
        return ""
    found = known.filter(pc.match_substring_regex(known, f"^0*{name.lstrip('0')}$"))
    return f" ({found[0].as_py()!r} is there: leading zeros were lost, so read ids as texts)" if len(found) else ""


def _report_unknown(
    named: pa.ChunkedArray, known: pa.ChunkedArray, owner: str, missing: npt.NDArray[np.bool_], place: str, unknown: str
) -> None:
    rows = np.flatnonzero(missing)
    distinct = pc.unique(named.filter(pa.array(missing)))
    first = ", ".join(repr(value) for value in distinct[:3].to_pylist())
    problem = (
        f"{len(rows):,} of {len(named):,} judgements name {len(distinct):,} ids that table {owner!r} does not hold: "
        f"{first}{', ...' if len(distinct) > 3 else ''}{_with_other_zeros(distinct[0].as_py(), known)}"
    )
    where = f"{place}, first in row {rows[0]}"
    if unknown == "error":
        remedy = (
            f"Add them to {owner!r}, remove the judgements, or drop them: --unknown_judgements drop, from Python "
            "unknown='drop'."
        )
        raise CatalogueError(problem, where, remedy)
    logger.warning("%s: %s. These judgements are dropped.", where, problem)
