"""Marqo-GS-10M (arXiv:2404.08535): rows of query, product and position, in four parts by what was seen in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmfusion.importers.collect import (
    QueryCollector,
    cell,
    photos_in,
    records,
    refuse_columns,
    split_asked,
    tables_of,
    warn_of_unread,
    whole_number,
)
from mmfusion.importers.items import Imported, ImportLog, Item, Judgement, ReadSettings, Split
from mmfusion.importers.registry import register_importer
from mmfusion.importers.source import Source
from mmfusion.importers.splits import derived_query_id
from mmfusion.importers.tables import TextTable

# Names of the parts, those of their files (1: queries or products that training lacks), and their usual splits.
_PARTS: dict[str, tuple[str, Split]] = {
    "in_domain": ("query_0_product_id_0", "train"),
    "novel_document": ("query_0_product_id_1", "test"),
    "novel_query": ("query_1_product_id_0", "test"),
    "zero_shot": ("query_1_product_id_1", "test"),
}


@register_importer("gs10m")
class Gs10mImporter:
    """Reads its parts; a part, e.g. novel_query, is the kind of its queries, and `splits` may give it another split."""

    summary = "Marqo-GS-10M"

    def recognises(self, source: Source) -> bool:
        return any(_is_part(table) for table in tables_of(source))

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        refuse_columns(settings, "Marqo-GS-10M")
        tables = tables_of(source)
        parts = [table for table in tables if _is_part(table)]
        warn_of_unread(tables, parts, "Marqo-GS-10M", log)
        rows = _Rows(parts, settings, log)
        if "val" not in rows.splits.values():
            log.warn("""There are no val queries; make some of a part, e.g. --splits '{"novel_query": "val"}'.""")
        return Imported(
            items=rows.items(),
            mapping={"product_id": "product_id", "title": "title", "image": "image", "query": "query"},
            queries=lambda: rows.queries.queries,
            judgements=lambda: rows.judgements,
            judgement_rule="score_linear (101 - position): 76 to 100 is 3, 51 to 75 is 2, 26 to 50 is 1, less is 0",
            val_from_train=False,
        )


def _is_part(table: TextTable) -> bool:
    names = set(table.columns)
    return names >= {"query", "product_id", "title"} and bool(names & {"score_linear", "pair_id"})


def _part_of(table: TextTable) -> str | None:
    name = table.file.path.name.lower()
    return next((part for part, (file, _) in _PARTS.items() if part in name or file in name), None)


class _Rows:
    """Reads rows once: for products while somebody asks for them, for queries and judgements beside that."""

    def __init__(self, tables: Sequence[TextTable], settings: ReadSettings, log: ImportLog) -> None:
        order = [*_PARTS, None]
        # Training comes first, so that a query of several parts has its own id there.
        self._tables = sorted(tables, key=lambda table: order.index(_part_of(table)))
        self.splits = {part: split_asked(settings, part, usual) for part, (_, usual) in _PARTS.items()}
        self._log = log
        self.queries, self.judgements = QueryCollector(), list[Judgement]()

    def items(self) -> Iterator[Item]:
        """Each product once, with the first title and photo of its rows."""
        waiting: dict[str, Item] = {}
        done: set[str] = set()
        for table in self._tables:
            part = _part_of(table)
            for line, row in records(table, self._log):
                product_id = cell(row, "product_id")
                try:
                    self._judge(row, product_id, part)
                except ValueError as error:
                    self._log.reject(table.file.name, line, str(error))
                    continue
                if product_id in done:
                    continue
                item = waiting.setdefault(product_id, Item(product_id, place=table.place(line)))
                item.title = item.title or cell(row, "title")
                item.photos = item.photos or photos_in(row.get("image"))
                if any(isinstance(photo, bytes) for photo in item.photos):
                    # Photos are not held in memory.
                    done.add(product_id)
                    yield waiting.pop(product_id)
        yield from waiting.values()

    def _judge(self, row: dict[str, str], product_id: str, part: str | None) -> None:
        if not product_id:
            raise ValueError("product_id is empty")
        score = whole_number(row["score_linear"]) if "score_linear" in row else 101 - whole_number(row["position"])
        text = cell(row, "query")
        split = self.splits[part] if part else None
        query_id = self.queries.add(cell(row, "query_id") or derived_query_id(text), text, split, part)
        self.judgements.append(Judgement(query_id, product_id, min(max((score - 1) // 25, 0), 3)))
