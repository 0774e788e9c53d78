"""Reading a source with the importer that recognises it, for tests of formats."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfusion.importers import Imported, ImportLog, Item, Judgement, Query, ReadSettings, find_importer, open_source


@dataclass
class Read:
    """All that an importer made of a source."""

    format: str
    imported: Imported
    items: list[Item]
    queries: list[Query]
    judgements: list[Judgement]
    log: ImportLog

    @property
    def by_id(self) -> dict[str, Item]:
        return {item.item_id: item for item in self.items}

    @property
    def ids(self) -> list[str]:
        return [item.item_id for item in self.items]

    @property
    def splits(self) -> dict[str, str | None]:
        return {query.query_id: query.split for query in self.queries}

    @property
    def grades(self) -> dict[str, dict[str, int]]:
        """Grades of pairs whose query and product are there."""
        grades: dict[str, dict[str, int]] = {}
        for query_id, product_id, grade in self.judgements:
            if query_id in self.splits and product_id in self.by_id:
                grades.setdefault(query_id, {})[product_id] = grade
        return grades


def read(*paths: Path | str, format: str | None = None, **settings: Any) -> Read:
    """Reads files with the importer that recognises them, or the one of a name."""
    log = ImportLog()
    source = open_source([str(path) for path in paths], Path("downloads"))
    name, importer = find_importer(source, format)
    imported = importer.read(source, ReadSettings(**settings), log)
    items = list(imported.items)
    queries, judgements = ((one() if callable(one) else one) or [] for one in (imported.queries, imported.judgements))
    return Read(name, imported, items, list(queries), list(judgements), log)
