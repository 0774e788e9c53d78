"""What a reader of a shop's files makes of them, as products and as what was left out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfusion.importers import Imported, ImportLog, Item, ReadSettings, find_importer, open_source
from mmfusion.importers.variants import products_of


@dataclass
class Read:
    """All that came of reading.

    Attributes:
        format: Name of the format.
        imported: What the reader said.
        products: By id, in order.
        product_of: Product id by the id of a variant.
        log: What was left out.
    """

    format: str
    imported: Imported
    products: dict[str, Item]
    product_of: dict[str, str]
    log: ImportLog

    def titles(self) -> dict[str, str]:
        return {name: item.title for name, item in self.products.items()}


def read(*paths: Path, format: str | None = None, **settings: Any) -> Read:
    """Reads files as `mmfusion import` does, up to the photos."""
    log, product_of = ImportLog(), dict[str, str]()
    source = open_source([str(path) for path in paths], Path("downloads"))
    name, importer = find_importer(source, format)
    imported = importer.read(source, ReadSettings(**settings), log)
    variants = settings.get("variants") or imported.variants
    items = products_of(
        imported.items,
        variants,
        gather=imported.groups,
        adjacent=imported.adjacent,
        duplicates="first",
        log=log,
        product_of=product_of,
    )
    found = list(items)
    assert len({item.item_id for item in found}) == len(found)
    return Read(name, imported, {item.item_id: item for item in found}, product_of, log)


def write(folder: Path, name: str, text: str | bytes) -> Path:
    """A file with this content."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path
