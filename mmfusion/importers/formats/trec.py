"""Judgements and topics as TREC writes them, beside products of any other format."""

from __future__ import annotations

import html
import re
from dataclasses import replace

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.collect import (
    QueryCollector,
    cell,
    has_trec_lines,
    judgements_in,
    records,
    split_asked,
    with_unjudged,
)
from mmfusion.importers.columns import by_name
from mmfusion.importers.formats.beir import judgement_files
from mmfusion.importers.items import Imported, ImportLog, Judgement, ReadSettings
from mmfusion.importers.registry import find_importer, register_importer
from mmfusion.importers.source import Source, SourceFile
from mmfusion.importers.splits import split_of_file
from mmfusion.importers.tables import open_table

_TOPIC = re.compile(r"<top(?:ic)?\b([^>]*)>(.*?)</top(?:ic)?\s*>", re.S | re.I)
_NUMBER = re.compile(r"number\s*=\s*[\"']?([^\"'\s>]+)|<num(?:ber)?>\s*(?:Number:)?\s*([^\s<]+)", re.I)
_TITLE = re.compile(r"<(?:title|query)>\s*(?:Topic:)?\s*([^<]+)", re.I)

_COLUMNS = {"number": ("query_id", "qid", "_id", "id", "topic", "number"), "text": ("query", "text", "title")}


@register_importer("trec")
class TrecImporter:
    """Reads lines of query, 0, product and grade; texts from topics (SGML, XML, `id<tab>text`) or `queries.jsonl`."""

    summary = "judgements of TREC with their products"

    def recognises(self, source: Source) -> bool:
        return any(has_trec_lines(file) for file in source.tables)

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        qrels = [file for file in source.tables if has_trec_lines(file)]
        texts: dict[str, str] = {}
        taken = {*qrels, *judgement_files(source)}
        for file in source.tables:
            if file not in taken and (found := _topics(file)):
                texts |= found
                taken.add(file)
        rest = tuple(file for file in source.files if file not in taken)
        if not qrels or all(file.is_photo for file in rest):
            missing = "the products are" if qrels else "no file of judgements is"
            remedy = (
                "Give the qrels (query, 0, product, grade), the queries, and the products: corpus.jsonl or a table."
            )
            raise CatalogueError(f"{missing} missing", str(source), remedy)
        _, importer = find_importer(Source(source.given, rest))
        imported = importer.read(Source(source.given, rest), settings, log)
        others = imported.queries() if callable(imported.queries) else imported.queries
        texts |= {query.query_id: query.text for query in others or []}
        queries, judgements = QueryCollector(), list[Judgement]()
        for file in qrels:
            split = split_asked(settings, file.path.name.partition(".")[0], split_of_file(file.path.name))
            for query_id, product_id, grade in judgements_in(file, log):
                if query_id in texts:
                    query_id = queries.add(query_id, texts[query_id], split)
                judgements.append(Judgement(query_id, product_id, grade))
        if not queries.queries:
            remedy = "Give queries.jsonl or the file of topics whose ids the judgements name."
            raise CatalogueError("the texts of the judged queries are missing", str(source), remedy)
        rule = "relevance of the qrels; below 0 is 0"
        return replace(imported, queries=with_unjudged(queries, texts), judgements=judgements, judgement_rule=rule)


def _topics(file: SourceFile) -> dict[str, str]:
    """Text of each topic by its number; empty where a file holds none."""
    if not re.search("topic|quer", file.path.name.lower()):
        return {}
    table = open_table(file)
    names = by_name(table.columns, _COLUMNS) if table else {}
    if table and len(names) == len(_COLUMNS):
        rows = (row for _, row in records(table, ImportLog()))
        return {cell(row, *names["number"]): cell(row, *names["text"]) for row in rows}
    with file.open() as stream:
        text = stream.read().decode("utf-8-sig", "replace")
    topics = {}
    for attributes, inside in _TOPIC.findall(text):
        number, title = _NUMBER.search(attributes + inside), _TITLE.search(inside)
        if number and title:
            topics[number[1] or number[2]] = " ".join(html.unescape(title[1]).split())
    if topics:
        return topics
    lines = [[part.strip() for part in line.split("\t")] for line in text.splitlines() if line.strip()]
    return {parts[0]: parts[1] for parts in lines} if all(len(parts) == 2 for parts in lines) else {}
