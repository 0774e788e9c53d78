"""What readers of research data sets share: rows by column name, and queries that many rows repeat."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.items import Imported, ImportLog, Query, ReadSettings, Split
from mmfusion.importers.source import Source, SourceFile
from mmfusion.importers.splits import normalised_query, split_named
from mmfusion.importers.tables import TextTable, open_table

# Columns of what names a row without an id, and of its photos.
KEY, PHOTOS = "__key__", "photos"
_QUERY, _PRODUCT, _GRADE = ("query-id", "query_id"), ("corpus-id", "corpus_id"), ("score", "relevance")
_ITERATION = re.compile("[qQ]?[0-9]")
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")


def tables_of(source: Source) -> list[TextTable]:
    """The tables among the files of a source."""
    return [table for file in source.tables if (table := open_table(file)) is not None]


def warn_of_unread(tables: Iterable[TextTable], read: Iterable[TextTable], what: str, log: ImportLog) -> None:
    """Warns of tables that a format does not know."""
    known = set(map(id, read))
    for table in tables:
        if id(table) not in known:
            log.warn(f"{table.file.name} is not a table of {what} and is not read")


def records(table: TextTable, log: ImportLog) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and values by column of each row."""
    for line, cells in table.rows(log):
        yield line, dict(zip(table.columns, cells, strict=True))


def cell(row: dict[str, Any], *names: str) -> str:
    """Text of the first of these columns that the row has; "" where there is none."""
    value = next((row[name] for name in names if name in row), "")
    return value.strip() if isinstance(value, str) else str(value)


def photos_in(value: Any) -> list[str | bytes]:
    """Photos of a cell: a path, the bytes of a file, a struct with `bytes` or `path`, or a list of these."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, list):
        return [photo for one in value for photo in photos_in(one)]
    return [value] if value else []


def whole_number(text: str) -> int:
    """A number without a fraction, "3" or "3.0".

    Raises:
        ValueError: It is another text; says so in a few words.
    """
    if not _WHOLE.fullmatch(text.strip()):
        raise ValueError(f"grade is not a whole number: {text!r}")
    return int(text.strip().partition(".")[0])


def split_asked(settings: ReadSettings, part: str, usual: Split | None) -> Split | None:
    """The split of a part of a data set: the one that was asked for, or the usual one.

    Raises:
        CatalogueError: What was asked for is not a split.
    """
    asked = settings.splits.get(part)
    if asked is None:
        return usual
    if split_named(asked) is None:
        raise CatalogueError(f"{asked!r} is not a split", f"--splits, {part!r}", "Use train, val or test.")
    return split_named(asked)


def has_trec_lines(file: SourceFile) -> bool:
    """Whether most lines are judgements of TREC: query, 0 or Q0, product and a whole number."""
    lines = [line.split() for line in file.head.decode("utf-8", "replace").splitlines()[:20]]
    fitting = sum(
        len(cells) == 4 and bool(_ITERATION.fullmatch(cells[1]) and _WHOLE.fullmatch(cells[-1])) for cells in lines
    )
    return fitting > sum(map(bool, lines)) / 2


def is_judgement_table(table: TextTable | None) -> bool:
    """Whether a table has the columns of judgements of BEIR."""
    names = set(table.columns) if table else set()
    return all(names.intersection(some) for some in (_QUERY, _PRODUCT, _GRADE))


def judgements_in(file: SourceFile, log: ImportLog) -> Iterator[tuple[str, str, int]]:
    """Query id, product id and grade of each line of judgements of BEIR or TREC; -1 (spam, not relevant) is 0."""
    for line, cells in _rows_of_judgements(file, log):
        try:
            if len(cells) not in (3, 4):
                raise ValueError(f"not query, (0,) product and grade: {' '.join(cells)[:80]!r}")
            yield cells[0], cells[-2], max(whole_number(cells[-1]), 0)
        except ValueError as error:
            log.reject(file.name, line, str(error))


def _rows_of_judgements(file: SourceFile, log: ImportLog) -> Iterator[tuple[int, list[str]]]:
    table = open_table(file)
    if table is not None and is_judgement_table(table):
        for line, row in records(table, log):
            yield line, [cell(row, *names) for names in (_QUERY, _PRODUCT, _GRADE)]
        return
    with file.open() as stream:
        for line, text in enumerate(io.TextIOWrapper(stream, "utf-8-sig", "replace"), 1):
            if cells := [one.strip() for one in (text.split("\t") if text.count("\t") > 1 else text.split())]:
                yield line, cells


def shown_as(imported: Imported, names: Mapping[str, str]) -> Imported:
    """What a reader found, with other names for columns that the files do not have."""
    mapping = {target: names.get(column, column) for target, column in imported.mapping.items()}
    return replace(imported, mapping=mapping)


def refuse_columns(settings: ReadSettings, what: str) -> None:
    """Refuses columns that somebody names for a format whose columns are fixed.

    Raises:
        CatalogueError: Some are named.
    """
    if settings.columns or settings.id_column:
        given = "--columns" if settings.columns else "--id_column"
        remedy = "Leave it out, or read the products with --format generic."
        raise CatalogueError(f"the columns of {what} are fixed", given, remedy)


def with_unjudged(queries: QueryCollector, texts: Mapping[str, str]) -> list[Query]:
    """What was collected, and the queries that no judgement names."""
    judged = queries.queries
    ids = {query.query_id for query in judged}
    return judged + [Query(query_id, text) for query_id, text in texts.items() if query_id not in ids]


class QueryCollector:
    """Queries of a data set whose rows repeat them, each once, in the order of their first row.

    Attributes:
        queries: What was collected. An id that is in several splits is several queries: beyond the first, its id ends
            in the split.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, Split | None], Query] = {}
        self._ids: set[str] = set()

    @property
    def queries(self) -> list[Query]:
        return list(self._known.values())

    def add(self, query_id: str, text: str, split: Split | None = None, kind: str | None = None) -> str:
        """Adds a query, and returns the id by which judgements name it.

        Raises:
            ValueError: It has no text or no id, or had another text before; says so in a few words.
        """
        known = self._known.get((query_id, split))
        if known is None:
            if not query_id or not text.strip():
                raise ValueError(f"{'query' if query_id else 'query id'} is empty")
            name = query_id if query_id not in self._ids else f"{query_id}-{split or 'again'}"
            self._ids.add(name)
            known = self._known[query_id, split] = Query(name, text, split, kind)
        elif known.text != text and normalised_query(known.text) != normalised_query(text):
            raise ValueError(f"query id has another text before: {query_id!r} is {known.text!r}")
        return known.query_id
