"""Judgements: what grading clicks and reading a file of ratings both come to, and the latter."""

from __future__ import annotations

import io
import math
import os
import re
import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.click_columns import NAMES, choose_columns, require_columns
from mmfusion.importers.collect import has_trec_lines
from mmfusion.importers.items import ImportLog
from mmfusion.importers.query_texts import normalise_query, unwanted_query
from mmfusion.importers.row_batches import Reject, read_table, row_batches
from mmfusion.importers.rows import TextTable
from mmfusion.importers.source import SourceFile, open_source

_COLUMNS: dict[str, tuple[str, ...]] = {
    "query": NAMES["query"],
    "query_id": ("query id", "queryid", "qid", "topic id", "topic"),
    "product_id": ("product id", "product uid", "corpus id", "docid", "doc id", "document", *NAMES["product_id"]),
    "grade": (
        "grade",
        "rating",
        "esci label",
        "label",
        "score linear",
        "relevance",
        "median relevance",
        "relevance score",
        "relevance label",
        "relevance grade",
        "score",
        "judgment",
        "judgement",
        "judgment rating",
        "rel",
        "gain",
    ),
}
# Labels in words, by scale: ESCI, WANDS, that of web search, and yes or no.
_SCALES: tuple[dict[str, int], ...] = (
    {"e": 3, "s": 2, "c": 1, "i": 0},
    {"exact": 3, "substitute": 2, "complement": 1, "irrelevant": 0},
    {"exact": 2, "partial": 1, "irrelevant": 0},
    {"perfect": 4, "excellent": 3, "good": 2, "fair": 1, "bad": 0},
    {"highly relevant": 2, "relevant": 1, "not relevant": 0, "irrelevant": 0},
    {"yes": 1, "true": 1, "no": 0, "false": 0},
)
_MOST_LEVELS = 10
# Line, query, product and label.
_Row = tuple[int, str, str, str]


@dataclass(frozen=True)
class Judgements:
    """Grades of queries and products.

    Attributes:
        queries: Queries that have a judgement, each once, in the order of the source: normalised texts, or ids where
            `by_id`.
        rows: (query, product id, grade), each pair once; grades are at least 0, and higher is better.
        rule: How the grades came about, with the source of the method; to be printed and stored.
        warnings: Sentences for the report.
        counts: Rows and pairs that were left out, by reason.
        by_id: Whether queries are named by ids.
        method: Name of the method that graded clicks; "" where a file gave the grades.
    """

    queries: list[str]
    rows: list[tuple[str, str, int]]
    rule: str
    warnings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    by_id: bool = False
    method: str = ""


def read_judgements(
    paths: str | Path | Sequence[str | Path],
    known_products: Container[str] | Mapping[str, str],
    *,
    known_queries: Container[str] = (),
    columns: Mapping[str, str] | None = None,
    reject: Reject | None = None,
    downloads: Path | None = None,
) -> Judgements:
    """Reads lists of judgements: a row per pair, with a header or without.

    Args:
        paths: Files, as `open_source` takes them: tables with columns of a query (text or id), product and grade, among
            them qrels of BEIR; or qrels of TREC (query, 0, product, grade).
        known_products: Ids of the catalogue; a mapping takes the ids of the file to those.
        known_queries: Ids of queries that are known already; a column "query" that holds these alone holds ids.
        columns: Column of the file by role, for what is not recognised: query, query_id, product_id, grade.
        reject: Gets file, line (from 1) and reason of every row that is left out.
        downloads: Folder for what is fetched from URLs; default: one that is removed afterwards.

    Returns:
        Judgements with the grades of `grade_labels`; a pair that is judged more than once has its highest grade. Where
        the files have texts of queries, these are normalised; else `by_id` is set, and queries are ids as written.

    Raises:
        CatalogueError: A file cannot be read, columns are missing, or no row is left.
    """
    log = ImportLog(reject)
    rows: list[tuple[str, int, str, str, str]] = []
    roles: set[str | None] = set()
    name = "grade"
    given = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    with tempfile.TemporaryDirectory() as folder:
        for file in open_source(given, downloads or Path(folder)).tables:
            role, name, found = _read(file, columns or {}, log)
            roles.add(role)
            rows += ((file.name, *row) for row in found)
    if len(roles) > 1:
        remedy = "Import one kind of file alone."
        raise CatalogueError("some files name queries by id, and some by text", ", ".join(given), remedy)
    queries = {row[2].strip() for row in rows}
    # A column "query" may hold ids, and a file without a header texts.
    by_id = roles == {"query_id"} or all(query in known_queries for query in queries)
    by_id |= roles == {None} and not any(" " in query for query in queries)
    grades, rule = grade_labels([row[4] for row in rows], name)
    judged: dict[tuple[str, str], int] = {}
    for (place, line, query, product, label), grade in zip(rows, grades, strict=True):
        query = query.strip() if by_id else normalise_query(query)
        product = product.strip()
        known = known_products.get(product) if isinstance(known_products, Mapping) else product
        unwanted = "" if by_id or not query else unwanted_query(query, known_products)
        if unwanted:
            log.reject(place, line, unwanted)
        elif not query or not product:
            log.reject(place, line, f"{'product' if query else 'query'} is blank")
        elif known is None or (known is product and product not in known_products):
            log.reject(place, line, f"product is unknown: {product[:100]!r}")
        elif grade is None:
            log.reject(place, line, f"grade is neither a number nor a known label: {label[:100]!r}")
        else:
            if (query, known) in judged:
                log.leave_out("pair is judged once more")
            judged[query, known] = max(grade, judged.get((query, known), 0))
    if not judged:
        most = log.rejected_by_reason.most_common(3)
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in most) or "there are no rows"
        remedy = "Product ids must be those of the catalogue; name other columns with --click_columns."
        raise CatalogueError(f"no judgement is left ({reasons})", ", ".join(given), remedy)
    return Judgements(
        list(dict.fromkeys(query for query, _ in judged)),
        [(*pair, grade) for pair, grade in judged.items()],
        rule,
        list(log.warnings),
        dict(log.rejected_by_reason + log.left_out),
        by_id,
    )


def grade_labels(labels: Sequence[str], name: str = "grade") -> tuple[list[int | None], str]:
    """Grades of labels that are numbers or words, and the rule in words.

    - ESCI letters and words: E 3, S 2, C 1, I 0; words of WANDS and of web search alike.
    - Whole numbers up to 10 stay; negative ones (-1 of TREC: spam, not relevant) are 0.
    - Up to ten levels of other numbers up to 10 are counted through from the lowest: 0 if that is 0, else 1.
    - Larger numbers, and more than ten levels, are cut into four bands of equal width: 0 to 3.

    Args:
        labels: Labels of all rows, as written.
        name: The column's name, for the rule.

    Returns:
        Grades of at least 0, None where a label is neither; and the rule.

    >>> grade_labels(["E", "i"])
    ([3, 0], 'grade: e 3, s 2, c 1, i 0')
    >>> grade_labels(["100", "51", "25", "-1"], "score_linear")
    ([3, 2, 0, 0], 'score_linear 76-100: 3, 51-75: 2, 26-50: 1, 1-25: 0')
    """
    texts = [label.strip().lower() for label in labels]
    words = {text for text in texts if _number(text) is None and text}
    scale = next((scale for scale in _SCALES if words & set(scale) and words <= set(scale)), None) or next(
        (scale for scale in _SCALES if words & set(scale)), None
    )
    if scale is not None:
        return [
            scale.get(text) for text in texts
        ], f"{name}: {', '.join(f'{word} {grade}' for word, grade in scale.items())}"
    numbers = [_number(text) for text in texts]
    levels = sorted({max(number, 0.0) for number in numbers if number is not None})
    if not levels:
        return [None] * len(labels), name
    top = levels[-1]
    if len(levels) > _MOST_LEVELS or top > _MOST_LEVELS:
        return _banded(numbers, levels, name)
    if all(level.is_integer() for level in levels):
        below = " (negative: 0)" if any(number is not None and number < 0 for number in numbers) else ""
        return [None if number is None else max(int(number), 0) for number in numbers], f"{name} as in the file{below}"
    first = int(levels[0] > 0)
    ranks = {level: rank for rank, level in enumerate(levels, first)}
    rule = ", ".join(f"{level:g}: {rank}" for level, rank in reversed(ranks.items()))
    return [None if number is None else ranks[max(number, 0.0)] for number in numbers], f"{name} {rule}"


def _banded(numbers: Sequence[float | None], levels: Sequence[float], name: str) -> tuple[list[int | None], str]:
    top = levels[-1]
    if 90 <= top <= 100:
        top = 100.0
    grades = [None if one is None else max(0, math.ceil(4 * one / top - 1e-9) - 1) for one in numbers]
    edges = [top * quarter / 4 for quarter in range(5)]
    if all(level.is_integer() for level in levels):
        bands = [f"{math.floor(edges[grade]) + 1}-{math.floor(edges[grade + 1])}: {grade}" for grade in (3, 2, 1, 0)]
    else:
        bands = [*(f"above {edges[grade]:g}: {grade}" for grade in (3, 2, 1)), f"up to {edges[1]:g}: 0"]
    return grades, f"{name} {', '.join(bands)}"


def _number(text: str) -> float | None:
    """A finite number, also with a decimal comma."""
    if not re.fullmatch(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d{1,2})?", text, re.ASCII):
        return None
    return float(text.replace(",", "."))


def _read(file: SourceFile, given: Mapping[str, str], log: ImportLog) -> tuple[str | None, str, Iterator[_Row]]:
    """How queries are named (`query`, `query_id`, None: not known), the name of the grades, and the rows."""
    if not given and has_trec_lines(file):
        return "query_id", "relevance", _trec(file, log)
    table = read_table(file)
    header = getattr(table, "header", [])
    if not given and len(header) in (3, 4) and grade_labels(header[-1:])[0] != [None]:
        # There is no header: the first line is a judgement.
        first = [(1, header[0], header[-2], header[-1])]
        names = [table.columns[place] for place in (0, -2, -1)]
        return None, "grade", chain(first, _rows(table, names, log))
    mapping = choose_columns(table.columns, given, _COLUMNS, file.name)
    role = "query" if "query" in mapping else "query_id"
    needed = (role, "product_id", "grade")
    require_columns(mapping, ("query", *needed[1:]) if role not in mapping else needed, table.columns, file.name)
    return role, mapping["grade"], _rows(table, [mapping[one] for one in needed], log)


def _rows(table: TextTable, names: Sequence[str], log: ImportLog) -> Iterator[_Row]:
    for batch in row_batches(table, log):
        yield from zip(batch.lines, *map(batch.column, names), strict=True)


def _trec(file: SourceFile, log: ImportLog) -> Iterator[_Row]:
    with file.open() as stream:
        for line, text in enumerate(io.TextIOWrapper(stream, "utf-8-sig", "replace"), 1):
            cells = text.split()
            if len(cells) == 4:
                yield line, cells[0], cells[2], cells[3]
            elif cells:
                log.reject(file.name, line, f"not query, 0, product and grade: {text.strip()[:80]!r}")
