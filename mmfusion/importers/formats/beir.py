"""BEIR (arXiv:2104.08663): a corpus, queries, and judgements by split, as JSON lines and TSV or as Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.collect import (
    QueryCollector,
    cell,
    has_trec_lines,
    is_judgement_table,
    judgements_in,
    photos_in,
    records,
    refuse_columns,
    split_asked,
    tables_of,
    warn_of_unread,
    with_unjudged,
)
from mmfusion.importers.html_text import html_to_text
from mmfusion.importers.items import Imported, ImportLog, Item, Judgement, ReadSettings, Split
from mmfusion.importers.registry import register_importer
from mmfusion.importers.source import Source, SourceFile
from mmfusion.importers.splits import split_named, split_of_file
from mmfusion.importers.tables import TextTable, open_table
from mmfusion.importers.values import Prices

_ID = ("_id", "id")
_ORDER = ("train", "val", "test", None)


@register_importer("beir")
class BeirImporter:
    """Reads corpus and queries, and judgements by split, e.g. `qrels/train.tsv`, `dev.tsv` and `test.tsv`."""

    summary = "a data set of BEIR"

    def recognises(self, source: Source) -> bool:
        tables = tables_of(source)
        is_trec = any(has_trec_lines(file) for file in source.tables) and not judgement_files(source)
        return any(_role(table) == "corpus" for table in tables) and not is_trec

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        refuse_columns(settings, "BEIR")
        tables = tables_of(source)
        corpus = [table for table in tables if _role(table) == "corpus"]
        if not corpus:
            raise CatalogueError("the corpus is missing (_id, title, text)", str(source), "Give corpus.jsonl, too.")
        files = {file: _split_of(file, settings) for file in judgement_files(source)}
        known = [table for table in tables if _role(table) or table.file in files]
        warn_of_unread(tables, known, "BEIR", log)
        queries, judgements = QueryCollector(), list[Judgement]()
        texts = query_texts([table for table in tables if _role(table) == "queries"], log)
        # Training comes first, so that a query of several splits has its own id there.
        for file, split in sorted(files.items(), key=lambda pair: _ORDER.index(pair[1])):
            for query_id, product_id, grade in judgements_in(file, log):
                if query_id in texts:
                    query_id = queries.add(query_id, texts[query_id], split)
                judgements.append(Judgement(query_id, product_id, grade))
        return Imported(
            items=documents(corpus, log),
            mapping={"product_id": "_id", "title": "title", "description": "text"},
            queries=with_unjudged(queries, texts),
            judgements=judgements,
            judgement_rule="score; below 0 is 0",
            template="{title} {description}",
        )


def documents(tables: Sequence[TextTable], log: ImportLog) -> Iterator[Item]:
    """Documents of a corpus as items."""
    for table in tables:
        for line, row in records(table, log):
            if not cell(row, *_ID):
                log.reject(table.file.name, line, "_id is empty")
                continue
            metadata: dict[str, Any] = {}
            for name, value in row.items():
                # Usually a column `metadata` with an object.
                fields = value if isinstance(value, dict) and name != "image" else {name: value}
                metadata |= {key: one for key, one in fields.items() if isinstance(one, (str, list))}
            for name in (*_ID, "title", "text", "image", "metadata"):
                metadata.pop(name, None)
            if isinstance(metadata.get("price"), str):
                metadata["price"] = Prices().read(metadata["price"])[0]
            photos = photos_in(row.get("image"))
            title, text = html_to_text(cell(row, "title")), html_to_text(cell(row, "text"))
            yield Item(cell(row, *_ID), title, text, photos, metadata, place=table.place(line))


def query_texts(tables: Sequence[TextTable], log: ImportLog) -> dict[str, str]:
    """Text of each query by its id."""
    texts: dict[str, str] = {}
    for table in tables:
        for line, row in records(table, log):
            query_id, text = cell(row, *_ID), cell(row, "text")
            if not query_id or not text:
                log.reject(table.file.name, line, f"{'text' if query_id else '_id'} is empty")
            elif texts.setdefault(query_id, text) != text:
                log.reject(table.file.name, line, f"query id has another text before: {query_id!r}")
    return texts


def _split_of(file: SourceFile, settings: ReadSettings) -> Split | None:
    usual = split_of_file(file.path.name) or split_named(file.path.parent.name)
    return split_asked(settings, file.path.name.partition(".")[0], usual)


def judgement_files(source: Source) -> list[SourceFile]:
    """Files of judgements, by their columns or their folder."""
    return [file for file in source.tables if file.path.parent.name == "qrels" or is_judgement_table(open_table(file))]


def _role(table: TextTable) -> str | None:
    """Whether a table is the corpus or the queries, by its columns and the name of its file or folder."""
    names = set(table.columns)
    if not names.intersection(_ID) or "text" not in names:
        return None
    for name in (table.file.path.name, table.file.path.parent.name):
        for role in ("corpus", "queries"):
            if role in name.lower():
                return role
    return None if "_id" not in names else "corpus" if "title" in names else "queries"
