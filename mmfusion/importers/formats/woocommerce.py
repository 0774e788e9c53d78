"""Product exports of WooCommerce, with column names in several languages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.collect import tables_of
from mmfusion.importers.columns import Mapped, as_told, by_name, key, shown
from mmfusion.importers.html_text import html_to_text, wordpress_to_text
from mmfusion.importers.items import Imported, ImportLog, Item, ReadSettings
from mmfusion.importers.registry import register_importer
from mmfusion.importers.rows import Row
from mmfusion.importers.source import Source
from mmfusion.importers.tables import TextTable
from mmfusion.importers.values import Prices, availability, boolean, names_photo, split_photos

# In the order of the export: English, German, French, Spanish, Italian, Dutch, Polish, Portuguese, Swedish, Danish.
_NAMES: dict[str, tuple[str, ...]] = {
    name: tuple(names.split(" | "))
    for name, names in {
        "id": "ID",
        "type": "Type | Typ | Tipo | Type de produit",
        "sku": "SKU | Artikelnummer | Art.-Nr. | UGS | Référence | COD | Codice | Kod produktu | REF | Varenummer",
        "title": "Name | Nom | Nombre | Nome | Naam | Nazwa | Namn | Navn",
        "published": (
            "Published | Veröffentlicht | Publié | Publicado | Pubblicato | Gepubliceerd | Opublikowano | Publicerad | "
            "Udgivet"
        ),
        "visibility": (
            "Visibility in catalog | Sichtbarkeit im Katalog | Katalogsichtbarkeit | Visibilité dans le catalogue | "
            "Visibilidad en el catálogo | Visibilità nel catalogo | Zichtbaarheid in catalogus | "
            "Widoczność w katalogu | Visibilidade no catálogo | Synlighet i katalog | Synlighed i katalog"
        ),
        "summary": (
            "Short description | Kurzbeschreibung | Description courte | Descripción corta | Breve descrizione | "
            "Descrizione breve | Korte beschrijving | Korte omschrijving | Krótki opis | Descrição breve | "
            "Descrição curta | Kort beskrivning | Kort beskrivelse"
        ),
        "description": (
            "Description | Beschreibung | Descripción | Descrizione | Beschrijving | Omschrijving | Opis | Descrição | "
            "Beskrivning | Beskrivelse"
        ),
        "availability": (
            "In stock? | Vorrätig? | Auf Lager? | En stock ? | En inventaire? | ¿Existencias? | ¿En inventario? | "
            "¿Hay existencias? | In stock? | In magazzino? | Op voorraad? | W magazynie? | Em stock? | Em estoque? | "
            "I lager? | På lager?"
        ),
        "backorders": (
            "Backorders allowed? | Lieferrückstände erlaubt? | Rückstände erlaubt? | "
            "Autoriser les commandes de produits en rupture ? | ¿Permitir reservas de productos agotados? | "
            "Abilita gli ordini arretrati? | Nabestellingen toestaan?"
        ),
        "sale_price": (
            "Sale price | Angebotspreis | Tarif promo | Precio rebajado | Prezzo in offerta | Actieprijs | "
            "Cena promocyjna | Preço promocional | Reapris | Udsalgspris | Salgspris | Alennushinta | Akční cena | "
            "Zlevněná cena | Akciós ár | Акционная цена | Цена распродажи | İndirimli satış fiyatı | セール価格"
        ),
        "price": (
            "Regular price | Regulärer Preis | Normaler Preis | Tarif régulier | Precio normal | Prezzo di listino | "
            "Prezzo regolare | Reguliere prijs | Normale prijs | Cena | Preço normal | Preço | Ordinarie pris | "
            "Normalpris | Vanlig pris | Ordinær pris | Normaalihinta | Běžná cena | Normál ár | Базовая цена | "
            "Обычная цена | Normal fiyat | 通常価格"
        ),
        "category": (
            "Categories | Kategorien | Catégories | Categorías | Categorie | Categorieën | Kategorie | Categorias | "
            "Kategorier | Osastot | Kategóriák | Категории | Kategoriler | カテゴリー"
        ),
        "tags": (
            "Tags | Schlagwörter | Étiquettes | Etiquetas | Tag | Tagi | Etiketter | Stikkord | Avainsanat | Štítky | "
            "Címkék | Метки | Etiketler | タグ"
        ),
        "image": ("Images | Bilder | Imágenes | Immagini | Afbeeldingen | Obrazki | Zdjęcia | Imagens | Billeder"),
        "parent": (
            "Parent | Übergeordnetes Produkt | Parent product | Superior | Producto superior | Genitore | Hoofd | "
            "Bovenliggend | Element nadrzędny | Ascendente | Förälder | Overordnet | Forelder | Päätuote | Nadřazený | "
            "Szülő | Родительский | Ebeveyn | 親"
        ),
        "brand": "Brands | Brand | Marken | Marke | Marques | Marcas | Marca | Marchi | Merken | Merk | Marki",
    }.items()
}
_TYPES = (
    *("simple", "variable", "variation", "grouped", "external"),
    *("subscription", "variable-subscription", "subscription_variation", "bundle", "composite", "booking"),
)
_VISIBILITIES = ("visible", "catalog", "search", "hidden")
# Attributes are numbered, and their words stand in any order: "Attribute 1 name", "Naam eigenschap 1".
_ATTRIBUTE_NAME = re.compile("name|nom|naam|nazwa|namn|navn")
_ATTRIBUTE_VALUE = re.compile("value|wert|valeur|valor|valuta|waarde|wartosc|varde|vaerdi")
_ATTRIBUTE = re.compile("attribut|eigenschap|atrybut|atribut")
_SHOWN = ("product_id", "title", "description", "image", "price", "category", "brand", "tags")
_STRUCTURE = ("id", "type", "sku", "published", "visibility", "parent")
_SAMPLED = 100
# Name, Published, Is featured?, Visibility, Short description, Description.
_AROUND_VISIBILITY = {"title": -3, "published": -2, "summary": 1, "description": 2}
# Sale price, Regular price, Categories, Tags, Shipping class, Images, two limits of downloads, Parent.
_AROUND_PHOTOS = {"sale_price": -5, "price": -4, "category": -3, "tags": -2, "parent": 3}
# Columns of an export from which none was left out; where some were, those around the photos may be others.
_WHOLE = 30


@register_importer("woocommerce")
class WooCommerce:
    """A product with its variations, which name it by SKU or `id:44`. Ids are those of the column ID.

    Drafts, private and hidden products are left out, unless asked for. A product's price is its regular price, or that
    of its variations; the sale price is a column of its own.
    """

    summary = "a product export of WooCommerce"

    def recognises(self, source: Source) -> bool:
        """Whether a table has the columns of the export, in a language that is known."""
        return any(_mapped(table) is not None for table in tables_of(source))

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        """Reads all exports among the files.

        Raises:
            CatalogueError: No file is an export, its columns do not fit the settings, or a row lacks the id asked for.
        """
        exports = []
        for table in tables_of(source):
            known = _mapped(table)
            if known is None:
                log.warn(f"{table.file.name} is not an export of WooCommerce and is not read")
                continue
            # What a row is and which one it belongs to is the same, whatever else these columns are used for.
            mapped = as_told({"product_id": known["id"], **known}, table.columns, settings, table.file.name)
            kept = {name: known[name] for name in _STRUCTURE if name in known}
            exports.append(_Export(table, {**mapped, **kept}, settings, log))
            if unknown := [target for target in ("image", "price", "category") if target not in mapped]:
                log.warn(
                    f"{table.file.name}: no column is known for {', '.join(unknown)}; "
                    "name it with --columns, if there is one"
                )
        if not exports:
            remedy = "Export the products as CSV with their type and name, or leave out --format."
            raise CatalogueError("no table is a product export of WooCommerce", str(source), remedy)
        visible = shown({target: exports[0].mapped[target] for target in _SHOWN if target in exports[0].mapped})
        template = "{title} {description}" if {"description", "summary"} & exports[0].mapped.keys() else "{title}"
        return Imported((item for one in exports for item in one.items()), visible, groups=True, template=template)


def _mapped(table: TextTable) -> Mapped | None:
    """Columns of an export by what they hold; None if the table is none.

    Types and visibilities are written in English whatever the language of the header, and so tell an export; in a
    language that is not known here, the columns beside them and beside the photos are found by the order of the export.
    """
    mapped = by_name(table.columns, _NAMES)
    rows = [row.cells for row in table.first_rows(_SAMPLED)]
    if not all(isinstance(cell, str) for row in rows for cell in row):
        return None  # JSON of the REST interface
    kinds = _holding(table, rows, lambda cell: cell.split(",")[0].lower() in _TYPES)
    seen = _holding(table, rows, lambda cell: cell.lower() in _VISIBILITIES)
    if not kinds or not ("type" in mapped or seen):
        return None
    mapped |= {"type": kinds[:1], **({"visibility": seen[:1]} if seen else {})}
    mapped.setdefault("image", _holding(table, rows, lambda cell: all(map(names_photo, split_photos(cell))))[:1])
    used = {name for names in mapped.values() for name in names}
    around = [(mapped["visibility"][0], _AROUND_VISIBILITY)] if seen else []
    around += [(kinds[0], {"sku": 1})]
    around += [(name, _AROUND_PHOTOS) for name in mapped["image"][:1] if len(table.columns) >= _WHOLE]
    for anchor, steps in around:
        for target, step in steps.items():
            at = table.columns.index(anchor) + step
            if target not in mapped and 0 <= at < len(table.columns) and table.columns[at] not in used:
                mapped[target] = [table.columns[at]]
                used.add(table.columns[at])
    mapped.setdefault("id", mapped.get("sku", []))
    known = {target: names for target, names in mapped.items() if names}
    return known if "id" in known and "title" in known and len(known) >= 5 else None


def _holding(table: TextTable, rows: list[list[str]], test: Callable[[str], bool]) -> list[str]:
    """Columns most of whose cells fulfil a test."""
    found = []
    for place, column in enumerate(table.columns):
        filled = [cell for row in rows if (cell := row[place].strip())]
        if filled and sum(map(test, filled)) > 0.8 * len(filled):
            found.append(column)
    return found


class _Export:
    """The rows of an export, read whole: a variation may stand before its product."""

    def __init__(self, table: TextTable, mapped: Mapped, settings: ReadSettings, log: ImportLog) -> None:
        self.table, self.mapped, self.settings, self.log = table, mapped, settings, log
        self.places = {target: table.columns.index(names[0]) for target, names in mapped.items()}
        self.row_id = self.places["id"]
        self.photos = [table.columns.index(name) for name in mapped.get("image", [])]
        self.rows = list(table.rows(log))
        self.prices = Prices((self._cell(row, "price") for row in self.rows), settings.locale)
        self.attributes = _attributes(table.columns)
        # What a variation may call its product.
        self.products: dict[str, Row] = {}
        for row in self.rows:
            if self._kind(row) != "variation":
                self.products.setdefault(f"id:{row.cells[self.row_id].strip()}", row)
                if sku := self._cell(row, "sku"):
                    self.products.setdefault(sku, row)

    def items(self) -> Iterator[Item]:
        """Products and variations."""
        with_variations = {
            id(parent) for row in self.rows if self._kind(row) == "variation" and (parent := self._parent(row))
        }
        for row in self.rows:
            kind = self._kind(row)
            parent = self._parent(row) if kind == "variation" else None
            if kind == "variation" and parent is None and self._cell(row, "parent"):
                self.log.warn(
                    f"{self.table.place(row.line)}: its parent {self._cell(row, 'parent')!r} is not in the file"
                )
            reason = "" if self.settings.unpublished else self._unpublished(row, parent)
            if reason:
                self.log.leave_out(reason)
                continue
            yield self._item(row, parent, is_parent=kind == "variable" and id(row) in with_variations)
        self.prices.report(self.log, f"{self.table.file.name}, column {self.mapped.get('price', ['price'])[0]!r}")

    def _item(self, row: Row, parent: Row | None, *, is_parent: bool) -> Item:
        metadata: dict[str, Any] = {
            "category": html_to_text(self._cell(row, "category")),
            "brand": self._cell(row, "brand"),
        }
        metadata["tags"] = [tag.strip() for tag in self._cell(row, "tags").split(",") if tag.strip()]
        metadata["price"] = self.prices.read(self._cell(row, "price"))[0]
        metadata["sale_price"] = self.prices.read(self._cell(row, "sale_price"))[0]
        metadata["sku"] = self._cell(row, "sku")
        if stock := self._cell(row, "availability"):
            backorder = stock.strip().lower() == "backorder" or (
                stock == "0" and boolean(self._cell(row, "backorders"))
            )
            metadata["availability"] = "backorder" if backorder else availability(stock)
        for name_place, value_place in self.attributes:
            name, value = (str(row.cells[place]).strip() for place in (name_place, value_place))
            if name and value:
                metadata.setdefault(name.lower(), value)
        metadata |= {target: self._cell(row, target) for target in self.mapped if target not in (*_NAMES, "product_id")}
        descriptions = [wordpress_to_text(self._cell(row, name)) for name in ("summary", "description")]
        photos = [photo for place in self.photos for photo in split_photos(str(row.cells[place]))]
        return Item(
            self._id(row),
            html_to_text(self._cell(row, "title")),
            " ".join(text for text in descriptions if text),
            list(dict.fromkeys(photos)),
            {name: value for name, value in metadata.items() if value not in ("", None, [])},
            self._id(parent or row),
            is_parent,
            self._cell(row, "sku") or None,
            self.table.place(row.line),
        )

    def _id(self, row: Row) -> str:
        if own := self._cell(row, "product_id"):
            return own
        name, column = self._cell(row, "title"), self.mapped["product_id"][0]
        known = f"{self.table.columns[self.row_id]} {row.cells[self.row_id]} ({name!r})"
        remedy = f"Fill it in, or use another --id_column, e.g. {self.table.columns[self.row_id]}."
        raise CatalogueError(f"{known} has no {column}", self.table.place(row.line), remedy)

    def _cell(self, row: Row, target: str) -> str:
        place = self.places.get(target)
        return str(row.cells[place]).strip() if place is not None else ""

    def _kind(self, row: Row) -> str:
        """`simple` of "simple, downloadable, virtual", `variation` of "subscription_variation"."""
        kind = self._cell(row, "type").split(",")[0].strip().lower()
        return "variation" if kind.endswith("variation") else "variable" if kind.startswith("variable") else kind

    def _parent(self, row: Row) -> Row | None:
        return self.products.get(self._cell(row, "parent"))

    def _unpublished(self, row: Row, parent: Row | None) -> str:
        for one in (parent, row):
            if one is None:
                continue
            published = self._cell(one, "published")
            if published and published != "1" and not boolean(published):
                meaning = {"-1": " (draft)", "0": " (private)"}.get(published, "")
                return f"Published {published}{meaning}"
            if self._cell(one, "visibility").lower() == "hidden":
                return "hidden in catalog"
        return ""


def _attributes(columns: list[str]) -> list[tuple[int, int]]:
    """Places of each attribute's name and value."""
    found: dict[str, dict[str, int]] = {}
    for place, column in enumerate(columns):
        number, name = re.search(r"\d+", column), key(column)
        if number and _ATTRIBUTE.search(name):
            rest = _ATTRIBUTE.sub("", name)
            kind = "value" if _ATTRIBUTE_VALUE.search(rest) else "name" if _ATTRIBUTE_NAME.search(rest) else ""
            if kind:
                found.setdefault(number[0], {}).setdefault(kind, place)
    return [(one["name"], one["value"]) for one in found.values() if len(one) == 2]
