"""The judgements of a catalogue: from a table of ids and grades to qrels between rows, with every bad one named."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue_checks import cell, check_text, first_true
from mmfusion.data.catalogue_error import CatalogueError
from mmfusion.data.qrels import DuplicateJudgementError, Qrels

logger = logging.getLogger("mmfusion")


def build_qrels(tables: Mapping[str, datasets.Dataset], source: str, unknown: str) -> Qrels:
    """Qrels between rows of the queries and rows of the products; ``unknown`` as for `Catalogue.load`."""
    table = tables["qrels"]
    place = f"catalogue {source!r}, table 'qrels'"
    check_text(table, place)
    _check_grades(table, place)
    rows: dict[str, npt.NDArray[np.int64]] = {}
    kept = np.ones(len(table), dtype=bool)
    for column, owner in (("query_id", "queries"), ("product_id", "products")):
        rows[column] = _find_rows(table, column, tables[owner])
        missing = rows[column] < 0
        if missing.any():
            _report_unknown(table, column, owner, missing, place, unknown)
            kept &= ~missing
    if not kept.any():
        raise CatalogueError("no judgement is left", place, "Check that the ids are written as in the other tables.")
    grade = table.data.column("grade").to_numpy()
    try:
        return Qrels(rows["query_id"][kept], rows["product_id"][kept], grade[kept])
    except DuplicateJudgementError as error:
        query = cell(tables["queries"], "query_id", error.query)
        product = cell(tables["products"], "product_id", error.product)
        twice = np.flatnonzero((rows["query_id"] == error.query) & (rows["product_id"] == error.product))
        raise CatalogueError(
            f"query {query!r} and product {product!r} are judged {len(twice)} times, with grades "
            f"{', '.join(str(grade[at]) for at in twice[:3])}",
            f"{place}, rows {', '.join(map(str, twice[:3]))}",
            "Keep one judgement per pair.",
        ) from error


def _check_grades(qrels: datasets.Dataset, place: str) -> None:
    column = qrels.data.column("grade")
    row = first_true(pc.or_kleene(pc.is_null(column), pc.less(column, 0)))
    if row is not None:
        query, product = cell(qrels, "query_id", row), cell(qrels, "product_id", row)
        raise CatalogueError(
            f"the grade of query {query!r} and product {product!r} is {cell(qrels, 'grade', row)}",
            f"{place}, column 'grade', row {row}",
            "Grades are integers of at least 0: write one, or remove the judgement.",
        )


def _find_rows(qrels: datasets.Dataset, column: str, owner: datasets.Dataset) -> npt.NDArray[np.int64]:
    """Rows in ``owner`` of the ids named by the qrels, int64; -1 where there is none."""
    ids = owner.data.column(column)
    named = qrels.data.column(column).cast(ids.type)
    return pc.fill_null(pc.index_in(named, value_set=ids), -1).to_numpy().astype(np.int64)


def _report_unknown(
    qrels: datasets.Dataset, column: str, owner: str, missing: npt.NDArray[np.bool_], place: str, unknown: str
) -> None:
    rows = np.flatnonzero(missing)
    distinct = pc.unique(qrels.data.column(column).filter(pa.array(missing)))
    first = ", ".join(repr(value) for value in distinct[:3].to_pylist())
    problem = (
        f"{len(rows):,} of {len(qrels):,} judgements name {len(distinct):,} ids that table {owner!r} does not hold: "
        f"{first}{', ...' if len(distinct) > 3 else ''}"
    )
    where = f"{place}, column {column!r}, first in row {rows[0]}"
    if unknown == "error":
        raise CatalogueError(
            problem, where, f"Add them to {owner!r}, remove the judgements, or load with unknown='drop'."
        )
    logger.warning("%s: %s. These judgements are dropped.", where, problem)
