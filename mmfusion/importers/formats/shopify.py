"""Product exports of Shopify, with the header of before 2025 and the one since."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.columns import Mapped, as_told, by_name, key
from mmfusion.importers.html_text import html_to_text
from mmfusion.importers.items import Imported, ImportLog, Item, ReadSettings
from mmfusion.importers.registry import register_importer
from mmfusion.importers.source import Source
from mmfusion.importers.tables import TextTable, open_table
from mmfusion.importers.values import Prices, boolean

_NAMES = {
    "product_id": ("Handle", "URL handle"),
    "title": ("Title",),
    "description": ("Body (HTML)", "Description"),
    "image": ("Image Src", "Product image URL"),
    "price": ("Variant Price", "Price"),
    "brand": ("Vendor",),
    "category": ("Product Category", "Category"),
    "product_type": ("Type",),
    "tags": ("Tags",),
    "sku": ("Variant SKU", "SKU"),
    "barcode": ("Variant Barcode", "Barcode"),
    "compare_at_price": ("Variant Compare At Price", "Compare-at price"),
    "published": ("Published", "Published on online store"),
    "status": ("Status",),
    "position": ("Image Position",),
    "variant_image": ("Variant Image", "Variant image URL"),
    "quantity": ("Variant Inventory Qty", "Inventory quantity"),
    "oversold": ("Variant Inventory Policy", "Continue selling when out of stock"),
    "gift_card": ("Gift Card",),
}
_OF_PRODUCT = ("brand", "product_type")
_SHOWN = ("product_id", "title", "description", "image", "price", "brand", "category", "product_type", "tags", "sku")
# Two of them tell a product export from other tables with handles; that of the inventory has options, too.
_MARKS = ("imagesrc", "productimageurl", "bodyhtml", "variantprice", "option1value", "option1name", "variantsku")

_PRICES = 1000
# "Material (product.metafields.custom.material)"; Matrixify writes "Metafield: custom.material [string]".
_METAFIELD = re.compile(r"(.*?) \(.*\.metafields\.|(?:variant )?metafield: (?:[\w-]+\.)?([^\[]*[^\[ ])", re.I)

Cells = dict[str, str]


@register_importer("shopify")
class Shopify:
    """A product: all rows of a handle. Rows without a title are variants, further photos, or both.

    Products whose status is not active or that are not published are left out, unless asked for. A variant's id is its
    SKU, where only it has it, else handle and options.
    """

    summary = "a product export of Shopify"

    def recognises(self, source: Source) -> bool:
        """Whether a table has the columns of the export."""
        return any(_is_export(open_table(file)) for file in source.tables)

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        """Reads all exports among the files.

        Raises:
            CatalogueError: No file is an export, or its columns do not fit the settings.
        """
        exports = []
        for file in source.tables:
            table = open_table(file)
            if table is None or not _is_export(table):
                log.warn(f"{file.name} is not an export of Shopify and is not read")
                continue
            exports.append((table, as_told(by_name(table.columns, _NAMES), table.columns, settings, file.name)))
        if not exports:
            remedy = "Export the products as CSV, or leave out --format."
            raise CatalogueError("no table is a product export of Shopify", str(source), remedy)
        survey = _Survey(exports)
        prices = Prices(survey.prices, settings.locale)

        def items() -> Iterator[Item]:
            for handle, group in _products(exports, log, adjacent=survey.adjacent):
                # The row with the title comes first, unless somebody sorted the file.
                group.sort(key=lambda cells: not cells["title"])
                reason = "" if settings.unpublished else _unpublished(group[0])
                if reason:
                    log.leave_out(reason)
                    continue
                yield from _items(handle, group, settings, prices, survey.shared_skus)
            prices.report(log, mapped.get("price", ["price"])[0])

        mapped = exports[-1][1]
        shown = {target: mapped[target][0] for target in _SHOWN if target in mapped}
        if "variant_image" in mapped:
            shown["image"] = ", ".join([shown.get("image", ""), mapped["variant_image"][0]]).strip(", ")
        template = "{title} {description}" if "description" in mapped else "{title}"
        own_ids = "product_id" in settings.columns or "id" in settings.columns or settings.id_column is not None
        # Two handles may have one id of another column.
        adjacent = survey.adjacent and not own_ids
        return Imported(items(), shown, groups=True, adjacent=adjacent, template=template)


class _Survey:
    """What has to be known of all rows before the first one is read.

    Attributes:
        adjacent: Whether the rows of each handle follow each other, as Shopify writes them.
        shared_skus: SKUs of several rows, which name none of them.
        prices: Some prices.
    """

    def __init__(self, exports: list[tuple[TextTable, Mapped]]) -> None:
        self.adjacent, self.shared_skus, self.prices = True, set[str](), list[str]()
        handles, skus, last = set[str](), set[str](), ""
        for table, mapped in exports:
            handle_place = _handle_place(table)
            sku_place, price_place = (
                table.columns.index(mapped[name][0]) if name in mapped else None for name in ("sku", "price")
            )
            for _, row in table.rows(ImportLog()):
                handle = row[handle_place]
                if handle != last:
                    self.adjacent = self.adjacent and handle not in handles
                    handles.add(handle)
                    last = handle
                if sku_place is not None and (sku := row[sku_place].strip()):
                    (self.shared_skus if sku in skus else skus).add(sku)
                if price_place is not None and len(self.prices) < _PRICES:
                    self.prices.append(row[price_place])


def _products(
    exports: list[tuple[TextTable, Mapped]], log: ImportLog, *, adjacent: bool
) -> Iterable[tuple[str, list[Cells]]]:
    """Handles and their rows."""
    rows = (cells for table, mapped in exports for cells in _rows(table, mapped, log))
    if adjacent:
        return ((handle, list(group)) for handle, group in groupby(rows, lambda cells: cells["handle"]))
    gathered: dict[str, list[Cells]] = {}
    for cells in rows:
        gathered.setdefault(cells["handle"], []).append(cells)
    return gathered.items()


def _handle_place(table: TextTable) -> int:
    return next(place for place, column in enumerate(table.columns) if key(column) in ("handle", "urlhandle"))


def _is_export(table: TextTable | None) -> bool:
    names = {key(column) for column in table.columns} if table is not None else set()
    is_inventory = {"location", "available"} <= names
    return (
        bool(names & {"handle", "urlhandle"})
        and "title" in names
        and len(names & set(_MARKS)) >= 2
        and not is_inventory
    )


def _rows(table: TextTable, mapped: Mapped, log: ImportLog) -> Iterator[Cells]:
    """Cells by column of the catalogue; metafields and options by their own names."""
    places = {target: table.columns.index(names[0]) for target, names in mapped.items()}
    by_key = {key(column): place for place, column in enumerate(table.columns)}
    handle_place = _handle_place(table)
    options = [
        (by_key[f"option{number}name"], by_key[f"option{number}value"])
        for number in (1, 2, 3)
        if f"option{number}name" in by_key and f"option{number}value" in by_key
    ]
    metafields = {
        (found[1] or found[2]).lower(): place
        for place, column in enumerate(table.columns)
        if (found := _METAFIELD.match(column))
    }
    for line, row in table.rows(log):
        handle = _unguarded(row[handle_place].strip())
        if not handle:
            log.reject(table.file.name, line, f"no {table.columns[handle_place]}")
            continue
        cells = {target: row[place].strip() for target, place in places.items()}
        cells = {**dict.fromkeys(_NAMES, ""), **cells, "handle": handle, "place": table.place(line)}
        cells |= {f"name {number}": row[name].strip() for number, (name, _) in enumerate(options)}
        cells |= {f"value {number}": row[value].strip() for number, (_, value) in enumerate(options)}
        for name, place in metafields.items():
            if row[place].strip():
                cells[f"meta {name}"] = row[place].strip()
        yield cells


def _unpublished(first: Cells) -> str:
    reasons = []
    if first["status"].lower() not in ("", "active"):
        reasons.append(f"Status {first['status'].lower()}")
    if boolean(first["published"]) is False:
        reasons.append("Published false")
    return ", ".join(reasons)


def _items(
    handle: str, group: list[Cells], settings: ReadSettings, prices: Prices, shared_skus: set[str]
) -> Iterator[Item]:
    first, with_options = group[0], settings.variants == "item"
    group_id = handle
    own_ids = settings.id_column is not None or "product_id" in settings.columns or "id" in settings.columns
    if own_ids:
        group_id = _unguarded(first["product_id"])
        if not group_id:
            name = settings.id_column or settings.columns.get("product_id") or settings.columns.get("id")
            raise CatalogueError(f"{handle!r} has no {name}", first["place"], "Name a column that every product has.")
    listed = [cells for cells in group if cells["image"]]
    listed.sort(key=lambda cells: int(cells["position"]) if cells["position"].isdigit() else len(group))
    metadata: dict[str, Any] = {name: first[name] for name in _OF_PRODUCT if first[name]}
    metadata["category"] = first["category"] or first["product_type"]
    metadata["tags"] = next(csv.reader([first["tags"]], skipinitialspace=True), []) if first["tags"] else []
    metadata |= {name[5:]: value for name, value in first.items() if name.startswith("meta ")}
    metadata |= {name: first[name] for name in settings.columns if name not in _NAMES and name != "id"}
    if boolean(first["gift_card"]):
        metadata["gift_card"] = True
    product = Item(
        group_id,
        first["title"],
        html_to_text(first["description"]),
        list(dict.fromkeys(cells["image"] for cells in listed)),
        {name: value for name, value in metadata.items() if value not in ("", [])},
        group_id,
        is_parent=True,
        place=first["place"],
    )
    variants = list(_variants(handle, group, prices, shared_skus, own_ids=own_ids))
    if len(variants) == 1 and variants[0].item_id in (handle, group_id):
        (variant,) = variants
        product.metadata |= variant.metadata
        product.photos += [photo for photo in variant.photos if photo not in product.photos]
        product.photo_name, product.is_parent = variant.photo_name, False
        yield product
        return
    yield product
    used = {group_id}
    for number, variant in enumerate(variants, 1):
        if variant.item_id in used:
            variant.item_id = f"{variant.item_id}-{number}"
        used.add(variant.item_id)
        variant.group_id = group_id
        if with_options and variant.title:
            variant.title = f"{first['title']} - {variant.title}"
        else:
            variant.title = ""
        yield variant


def _variants(
    handle: str, group: list[Cells], prices: Prices, shared_skus: set[str], *, own_ids: bool
) -> Iterator[Item]:
    """What is sold, with its options as title."""
    for cells in group:
        options = _options(cells, group[0])
        sku = _unguarded(cells["sku"])
        if not (options or sku or cells["price"]):
            continue
        item_id = sku if sku and cells["sku"] not in shared_skus else "-".join([handle, *options.values()])
        if own_ids and cells["product_id"]:
            item_id = _unguarded(cells["product_id"])
        yield Item(
            item_id,
            " / ".join(options.values()),
            photos=[cells["variant_image"]] if cells["variant_image"] else [],
            metadata={**_sold(cells, prices), **options},
            photo_name=sku or None,
            place=cells["place"],
        )


def _options(cells: Cells, first: Cells) -> dict[str, str]:
    """Values of a variant's options by name; the names stand in the first row of a product alone."""
    options = {}
    for number in range(3):
        name, value = first.get(f"name {number}", ""), cells.get(f"value {number}", "")
        if value and (name, value) != ("Title", "Default Title"):
            options[name.lower() or f"option {number + 1}"] = value
    return options


def _sold(cells: Cells, prices: Prices) -> dict[str, Any]:
    metadata: dict[str, Any] = {"sku": _unguarded(cells["sku"]), "barcode": _unguarded(cells["barcode"])}
    metadata["price"] = prices.read(cells["price"])[0]
    metadata["compare_at_price"] = prices.read(cells["compare_at_price"])[0]
    if cells["quantity"].lstrip("-").isdigit():
        oversold = cells["oversold"].lower() == "continue" or boolean(cells["oversold"])
        has_some = int(cells["quantity"]) > 0
        metadata["availability"] = "in_stock" if has_some else "backorder" if oversold else "out_of_stock"
    return {name: value for name, value in metadata.items() if value not in ("", None)}


def _unguarded(text: str) -> str:
    """Without the apostrophe that keeps Excel from reading digits as a number."""
    return text[1:] if text[:1] == "'" and text[1:2].isdigit() else text
