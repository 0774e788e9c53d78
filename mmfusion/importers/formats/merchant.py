"""Product feeds of Google Merchant Center: RSS, Atom, and tables; Meta and others read the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.columns import as_told, by_name, key, shown
from mmfusion.importers.html_text import html_to_text
from mmfusion.importers.items import Imported, ImportLog, Item, ReadSettings
from mmfusion.importers.registry import register_importer
from mmfusion.importers.source import Source, SourceFile
from mmfusion.importers.tables import TextTable, open_table
from mmfusion.importers.values import Prices, availability, split_photos
from mmfusion.importers.xml_items import Fields, is_feed, xml_items

_NAMES = {
    "product_id": ("id",),
    "title": ("title",),
    "description": ("description", "summary", "content"),
    "image": ("image_link", "image", "additional_image_link", "additional_image_links"),
    "price": ("price",),
    "sale_price": ("sale_price",),
    "availability": ("availability",),
    "brand": ("brand",),
    "category": ("product_type", "google_product_category"),
    "group_id": ("item_group_id",),
}
# With ids, titles and photos, one of these tells a feed from other tables.
_MARKS = ("availability", "link", "googleproductcategory", "condition", "gtin", "itemgroupid", "additionalimagelink")
_SAMPLED = 200
_PREFIX = re.compile(r"^[a-z]{1,8}:")


@register_importer("merchant")
class Merchant:
    """An item is a product, unless products are asked for: then one of each `item_group_id`."""

    summary = "a product feed of Google Merchant"

    def recognises(self, source: Source) -> bool:
        """Whether a file is such a feed, or a table with its columns."""
        return any(is_feed(file) or _is_table(open_table(file)) for file in source.tables)

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        """Reads all feeds among the files.

        Raises:
            CatalogueError: No file is a feed, or columns do not fit the settings.
        """
        feeds = []
        for file in source.tables:
            if is_feed(file) or _is_table(open_table(file)):
                feeds.append(_Feed(file, settings))
            else:
                log.warn(f"{file.name} is not a feed of Google Merchant and is not read")
        if not feeds:
            raise CatalogueError(
                "no file is a feed of Google Merchant", str(source), "Give the feed, or leave out --format."
            )
        mapped = {target: names for feed in reversed(feeds) for target, names in feed.mapped.items()}
        return Imported(
            (item for feed in feeds for item in feed.items(log)),
            shown(mapped),
            variants="item",
            groups=settings.variants in ("product", "photo"),
            template="{title} {description}" if "description" in mapped else "{title}",
        )


def _is_table(table: TextTable | None) -> bool:
    names = {key(_PREFIX.sub("", column.lower())) for column in table.columns} if table is not None else set()
    return {"id", "title", "imagelink"} <= names and not names.isdisjoint(_MARKS)


class _Feed:
    """A feed and what its fields are."""

    def __init__(self, file: SourceFile, settings: ReadSettings) -> None:
        self.file, self.settings = file, settings
        self.sample = list(islice(self.fields(ImportLog()), _SAMPLED))
        if not self.sample:
            raise CatalogueError("no item can be read", file.name, "Check that the feed is complete.")
        names = list(dict.fromkeys(name for _, fields in self.sample for name in fields))
        self.mapped = as_told(by_name(names, _NAMES, several=("image", "category")), names, settings, file.name)
        if "product_id" not in self.mapped:
            problem = f"its items have no id (fields: {', '.join(names)})"
            raise CatalogueError(problem, file.name, "Name the field with --id_column …")

    def fields(self, log: ImportLog) -> Iterator[tuple[int, Fields]]:
        """Line and fields of each item."""
        table = None if is_feed(self.file) else open_table(self.file)
        if table is None:
            yield from xml_items(self.file, log)
            return
        names = [
            re.sub(r" \(\d+\)$", "", _PREFIX.sub("", column.lower())).replace(" ", "_") for column in table.columns
        ]
        for line, cells in table.rows(log):
            fields: Fields = {}
            for name, cell in zip(names, cells, strict=True):
                if isinstance(cell, str) and cell.strip():
                    fields.setdefault(name, []).append(cell.strip())
            yield line, fields

    def items(self, log: ImportLog) -> Iterator[Item]:
        """The products of the feed."""
        mapped = self.mapped
        price_name, sale_name = (mapped.get(name, [name])[0] for name in ("price", "sale_price"))
        values = (text for _, fields in self.sample for text in fields.get(price_name, []))
        prices = Prices(values, self.settings.locale)
        used = {name for target, names in mapped.items() if target in _NAMES and target != "category" for name in names}
        told = {names[0]: target for target, names in mapped.items() if target not in _NAMES}
        for line, fields in self.fields(log):
            item_id = _first(fields, mapped["product_id"])
            if not item_id:
                log.reject(self.file.name, line, f"no {mapped['product_id'][0]}")
                continue
            metadata: dict[str, Any] = {}
            price, currency = prices.read(_first(fields, [price_name]))
            if price is not None:
                metadata["price"] = price
                metadata |= {"currency": currency} if currency else {}
            if (sale := _first(fields, [sale_name])) and (sale_price := prices.read(sale)[0]) is not None:
                metadata["sale_price"] = sale_price
            if stock := _first(fields, mapped.get("availability", [])):
                metadata["availability"] = availability(stock)
            if brand := _first(fields, mapped.get("brand", [])):
                metadata["brand"] = brand
            # Google's own categories may be numbers, which nobody filters by.
            categories = [_first(fields, [name]) for name in mapped.get("category", [])]
            if category := next((one for one in categories if one and not one.isdigit()), ""):
                metadata["category"] = html_to_text(category)
            for name, texts in fields.items():
                if name not in used:
                    metadata[told.get(name, name)] = html_to_text(", ".join(texts))
            photos = [
                photo for name in mapped.get("image", []) for text in fields.get(name, []) for photo in _photos(text)
            ]
            yield Item(
                item_id,
                html_to_text(_first(fields, mapped.get("title", []))),
                html_to_text(_first(fields, mapped.get("description", []))),
                list(dict.fromkeys(photos)),
                metadata,
                _first(fields, mapped.get("group_id", [])) or None,
                place=f"{self.file.name}, line {line}",
            )
        prices.report(log, f"{self.file.name}, {price_name}")


def _first(fields: Fields, names: list[str]) -> str:
    return next((fields[name][0] for name in names if name in fields), "")


def _photos(text: str) -> list[str]:
    """Photos of a field; Meta writes <image><url>…</url></image>."""
    return split_photos(html_to_text(text) if text.startswith("<") else text)
