"""Any table of products: CSV, TSV, JSON, Excel or Parquet, whose columns are known by their names or their content."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.collect import KEY, tables_of
from mmfusion.importers.columns import Mapped, as_told, by_name, key, shown
from mmfusion.importers.html_text import html_to_text
from mmfusion.importers.items import Imported, ImportLog, Item, ReadSettings
from mmfusion.importers.registry import register_importer
from mmfusion.importers.source import Source
from mmfusion.importers.splits import split_named
from mmfusion.importers.tables import Row, TextTable
from mmfusion.importers.values import Prices, availability, currency_in, listed, names_photo, split_photos

# Names of columns by what they hold, the surest first: English, German, French, Spanish, Italian, Dutch, and others.
_NAMES: dict[str, tuple[str, ...]] = {
    name: tuple(names.split(" | "))
    for name, names in {
        "product_id": (
            "product_id | item_id | article_id | article_number | id | _id | uniq_id | asin | parent_asin | sku | "
            "variant_sku | item_sku | item_number | item_no | internal_id | product_code | article_no | code | "
            "handle | produkt-id | artikel-id | artikelnummer | artikelnr | artikel-nr | art-nr | "
            "bestellnummer | référence | ref | ugs | id produit | id_producto | referencia | código | "
            "codice | codice articolo | id prodotto | artikelcode | productcode | productnummer | "
            "bestelnummer | varenummer | indeks | symbol | артикул | gtin | ean | ean13 | barcode | "
            "upc | mpn"
        ),
        "title": (
            "title | name | post_title | product_title | product_name | productdisplayname | display_name | "
            "prod_name | item_name | item_title | article_name | product | headline | titel | "
            "produktname | produkttitel | artikelname | artikelbezeichnung | bezeichnung | "
            "produktbezeichnung | nom | nom du produit | titre | désignation | libellé | nombre | "
            "nombre del producto | título | producto | titolo | nome | nome prodotto | prodotto | "
            "naam | productnaam | artikelnaam | nazwa | nazwa produktu | nome do produto | produto | "
            "benämning | namn | navn | produktnavn | název | название | наименование | 商品名 | 商品名称 | "
            "商品名稱 | 标题 | タイトル | 상품명 | "
            "caption | text | txt"
        ),
        "description": (
            "description | product_description | long_description | detail_desc | desc | body_html | "
            "body (html) | full_description | details | product_details | beschreibung | "
            "produktbeschreibung | artikelbeschreibung | langbeschreibung | langtext | description "
            "longue | descripción | descrizione | omschrijving | beschrijving | productomschrijving | "
            "opis | descrição | beskrivning | beskrivelse | popis | описание | 商品説明 | 商品描述 | 상품설명 | "
            "about_product | bullet_points | product_bullet_point | short_description | "
            "kurzbeschreibung | summary"
        ),
        "image": (
            "image | images | base_image | featured_image | cover_image | image_link | image_url | image_urls | "
            "image_src | img | imgs | img_url "
            "| img_src | main_image | main_image_url | primary_image | primaryimage | product_image | "
            "product_image_url | product_images | image_path | image_paths | image_file | image_name "
            "| image_filename | filename | file_name | picture | pictures | picture_url | photo | "
            "photos | photo_url | additional_image_link | additional_images | additional_image_urls | "
            "gallery | bild | bilder | bild-url | bildlink | bilddatei | produktbild | foto | fotos | "
            "imagen | imágenes | url imagen | immagine | immagini | afbeelding | afbeeldingen | "
            "imagem | imagens | zdjęcie | zdjęcia | obrazek | billede | obrázek | изображение | "
            "картинка | фото | 画像 | 图片 | 이미지"
        ),
        "price": (
            "price | regular_price | list_price | retail_price | unit_price | selling_price | "
            "actual_price | current_price | price_gross | gross_price | "
            "msrp | rrp | preis | verkaufspreis | bruttopreis | vk-preis | uvp | prix "
            "| prix ttc | tarif | precio | precio normal | pvp | prezzo | prijs | verkoopprijs | cena "
            "| preço | pris | hinta | цена | 価格 | 价格 | 가격"
        ),
        "sale_price": (
            "sale_price | special_price | discounted_price | discount_price | offer_price | angebotspreis | "
            "tarif promo | precio rebajado | prezzo in offerta | actieprijs | cena promocyjna | preço promocional"
        ),
        "currency": "currency | currency_code | währung | devise | moneda | valuta | moeda | waluta | валюта",
        "availability": (
            "availability | stock_status | in_stock | in stock? | is_in_stock | verfügbarkeit | "
            "lieferbarkeit | disponibilité | disponibilidad | disponibilità | beschikbaarheid | "
            "dostępność | disponibilidade | lagerstatus"
        ),
        "category": (
            "category | categories | product_category | product_category_tree | category_name | "
            "category_path | main_category | google_product_category | kategorie | kategorien | warengruppe | "
            "catégorie | catégories | categoría | categorías | categoria | categorie | kategoria | kategori | "
            "категория | カテゴリー | 分类 | 카테고리"
        ),
        "brand": (
            "brand | brand_name | product_brand | vendor | manufacturer | manufacturer_name | marke | hersteller | "
            "marque | fabricant | marca | merk | fabrikant | marka | producent | märke | mærke | značka | "
            "бренд | ブランド | 品牌 | 브랜드"
        ),
        "group_id": (
            "item_group_id | group_id | product_group_id | parent_id | parent_sku | parent | "
            "variant_group | style_id | style_code | model_id | master_id | product_code"
        ),
        "split": "split",
    }.items()
}
_TEXTS = (
    "product_id",
    "title",
    "description",
    "image",
    "price",
    "sale_price",
    "currency",
    "availability",
    "group_id",
    "split",
)
# Names that the catalogue uses itself.
_RESERVED = frozenset({*_NAMES, "image_url", "num_variants", "query_id", "grade"})
_SAMPLED = 500
# Not `id` and `no`: product_id, item_no.
_LANGUAGES = "en|de|fr|es|it|nl|pt|pl|sv|da|fi|nb|cs|sk|hu|ro|tr|ru|uk|el|ja|zh|ko|ar|he"
_LANGUAGE = re.compile(rf"[-_ (]+({_LANGUAGES})(?:[-_][A-Za-z]{{2}})?\)?$", re.IGNORECASE)
_TAG = re.compile(rf"({_LANGUAGES})([-_][A-Za-z]{{2}})?", re.IGNORECASE)
# Where no whole name is known: of the right kind, and not of something else.
_LIKE = {
    "title": re.compile(
        r"(?!.*(?:seo|meta|page|brand|category|seller|store|shop|type|group|color|colour)).*(?:title|productname|itemname)"
    ),
    "description": re.compile(r"(?!.*(?:seo|meta|category|short)).*(?:description|desc)"),
}
_ID_LIKE = re.compile(r".*(?:id|key|code|nr|no|num|number|ref|uuid|hash|sku)")
_DECIMAL = re.compile(r"-?\d+[.,]\d{1,4}")
_PHOTO_KEYS = ("bytes", "path", "url", "src", "href", "link", "image", "images", "file", "large", "hi_res", "thumb")


@register_importer("generic")
class Generic:
    """A row is a product. Columns that are not recognised are kept as metadata, as text."""

    summary = "a table of products"

    def recognises(self, source: Source) -> bool:
        """Whether any file is a table."""
        return bool(tables_of(source))

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        """Reads each table of products.

        Raises:
            CatalogueError: No table has titles and ids, or columns do not fit the settings.
        """
        tables = tables_of(source)
        if not tables:
            raise CatalogueError("no file is a table", str(source), "Give a CSV, TSV, JSON, Excel or Parquet file.")
        return read_tables(tables, settings, log)


def read_tables(tables: Sequence[TextTable], settings: ReadSettings, log: ImportLog) -> Imported:
    """Reads each table of products.

    Raises:
        CatalogueError: No table has titles and ids, or columns do not fit the settings.
    """
    plans = [_Plan(table, settings) for table in tables]
    chosen = [plan for plan in plans if plan.has_titles]
    for plan in plans:
        if chosen and plan not in chosen:
            log.warn(f"{plan.table.file.name} has no column of titles and is not read")
    for plan in chosen or plans[:1]:
        plan.complete()
    mapped = {target: names for plan in reversed(chosen) for target, names in plan.mapped.items()}
    return Imported(
        (item for plan in chosen for item in plan.items(log)),
        shown(mapped),
        variants="item",
        groups=settings.variants in ("product", "photo"),
        template="{title} {description}" if "description" in mapped else "{title}",
    )


class _Plan:
    """How the rows of a table become items.

    Attributes:
        table: The table.
        mapped: Its columns by column of the catalogue.
        sample: Its first rows.
    """

    sample: list[Row]

    def __init__(self, table: TextTable, settings: ReadSettings) -> None:
        self.table, self.settings = table, settings
        mapped = by_name(table.columns, _NAMES, several=("image", "product_id"))
        self._by_language(mapped)
        for target, pattern in _LIKE.items():
            like = [column for column in table.columns if pattern.fullmatch(key(column))]
            if like:
                mapped.setdefault(target, like[:1])
        self._by_number(mapped)
        self.mapped = mapped

    @property
    def has_titles(self) -> bool:
        """Whether a column holds titles, as its name or the user says."""
        return "title" in self.mapped or "title" in self.settings.columns

    def complete(self) -> None:
        """Looks into the first rows, where names do not say all.

        Raises:
            CatalogueError: Titles or ids are missing, or columns do not fit the settings.
        """
        table = self.table
        self.sample = table.sample(_SAMPLED)
        self._choose_id(self.mapped)
        self.mapped = as_told(self.mapped, table.columns, self.settings, table.file.name)
        if "product_id" not in self.mapped and KEY in table.columns:
            self.mapped["product_id"] = [KEY]
        self._by_content()
        if self.mapped.get("group_id") == self.mapped.get("product_id"):
            self.mapped.pop("group_id", None)
        columns = ", ".join(self.table.columns)
        if not self.has_titles:
            problem = f"no column is known to hold titles (columns: {columns})"
            raise CatalogueError(problem, self.table.file.name, """Name it: --columns '{"title": "…"}'.""")
        if "product_id" not in self.mapped:
            problem = f"no column is known to hold ids, one for each product (columns: {columns})"
            raise CatalogueError(problem, self.table.file.name, "Name it: --id_column …")

    def items(self, log: ImportLog) -> Iterator[Item]:
        """The products of the table."""
        table, mapped = self.table, self.mapped
        place_of = {column: place for place, column in enumerate(table.columns)}
        places = {target: place_of[names[0]] for target, names in mapped.items()}
        photo_places = [place_of[name] for name in mapped.get("image", [])]
        taken = {name for target in _TEXTS for name in mapped.get(target, [])}
        named = {names[0]: target for target, names in mapped.items() if target not in _TEXTS}
        others = [
            (named.get(column) or (column if column not in _RESERVED else f"{column} (file)"), place)
            for column, place in place_of.items()
            if column not in taken and column != KEY
        ]
        id_place, title_place, text_place = places["product_id"], places["title"], places.get("description")
        price_place, group_place = places.get("price"), places.get("group_id")
        currency_place, available_place = places.get("currency"), places.get("availability")
        prices = self._prices()
        key_place = place_of.get(KEY)
        as_float = self._ids_are_floats(id_place)
        if as_float:
            log.warn(f"{table.file.name}: ids such as {as_float} are read without '.0'")
        language = (self.settings.locale or "en")[:2].lower()
        for line, cells in table.rows(log):
            item_id = _text(cells[id_place]) or (_text(cells[key_place]) if key_place is not None else "")
            if not item_id:
                log.reject(table.file.name, line, f"no {table.columns[id_place]}")
                continue
            metadata: dict[str, Any] = {
                name: (_category if name == "category" else _kept)(cells[place]) for name, place in others
            }
            if price_place is not None:
                price, currency = prices.read(_text(cells[price_place]))
                metadata["price"] = price
                if currency_place is not None:
                    currency = _text(cells[currency_place]).upper() or currency
                if currency or prices.currency or currency_place is not None:
                    metadata["currency"] = currency or None
            if "sale_price" in places:
                # Shops write 0 where there is none.
                metadata["sale_price"] = prices.read(_text(cells[places["sale_price"]]))[0] or None
            if available_place is not None:
                metadata["availability"] = availability(_text(cells[available_place])) or None
            if "split" in places:
                metadata["split"] = split_named(_text(cells[places["split"]]))
            photos: list[str | bytes] = []
            for place in photo_places:
                if cells[place]:
                    photos += [photo for photo in _photos(cells[place]) if photo not in photos]
            yield Item(
                item_id.removesuffix(".0") if as_float else item_id,
                html_to_text(_text(cells[title_place], language)),
                html_to_text(_text(cells[text_place], language)) if text_place is not None else "",
                photos,
                metadata,
                (_text(cells[group_place]) or None) if group_place is not None else None,
                place=table.place(line),
            )
        if price_place is not None:
            prices.report(log, f"{table.file.name}, column {table.columns[price_place]!r}")

    def _choose_id(self, mapped: Mapped) -> None:
        """Of several columns that may hold ids, the first whose values differ; one before it is that of groups."""
        names = mapped.get("product_id", [])
        for name in names:
            place = self.table.columns.index(name)
            values = [_text(row.cells[place]) for row in self.sample]
            if len(set(values) - {""}) >= 0.9 * len(values):
                if name != names[0]:
                    mapped.setdefault("group_id", names[:1])
                mapped["product_id"] = [name]
                return
        mapped["product_id"] = names[:1]
        if not names:
            del mapped["product_id"]

    def _by_language(self, mapped: Mapped) -> None:
        """Takes title_de or "Name (en)" where there is no column `title`: of the locale, else the first."""
        for target in ("title", "description"):
            if target in mapped:
                continue
            found: dict[str, str] = {}
            for column in self.table.columns:
                language = _LANGUAGE.search(column)
                if language and key(column[: language.start()]) in map(key, _NAMES[target]):
                    found.setdefault(language[1].lower(), column)
            if found:
                wanted = (self.settings.locale or "")[:2].lower()
                mapped[target] = [found.get(wanted) or next(iter(found.values()))]

    def _by_number(self, mapped: Mapped) -> None:
        """Photos of columns "Image 1", "image2", in the order of the file; additional ones last."""
        known = set(map(key, _NAMES["image"]))
        names = [column for column in self.table.columns if key(column).rstrip("0123456789") in known]
        if names:
            mapped["image"] = sorted(names, key=lambda name: "additional" in key(name))

    def _by_content(self) -> None:
        """Ids and photos where no name says so."""
        used = {name for names in self.mapped.values() for name in names}
        free = [
            (column, place, [_text(row.cells[place]) for row in self.sample])
            for place, column in enumerate(self.table.columns)
            if column not in used
        ]
        if "image" not in self.mapped and "image" not in self.settings.columns:
            names = [column for column, place, _ in free if self._holds_photos(place)]
            if names:
                self.mapped["image"] = names
        if "product_id" not in self.mapped:
            ids = [
                column for column, _, cells in free if column not in self.mapped.get("image", ()) and _are_ids(cells)
            ]
            if ids:
                self.mapped["product_id"] = [min(ids, key=lambda column: not _ID_LIKE.fullmatch(key(column)))]

    def _holds_photos(self, place: int) -> bool:
        """Whether most cells that hold something name photos."""
        named = [
            [isinstance(one, str) and names_photo(one) for one in _photos(row.cells[place])] for row in self.sample
        ]
        return sum(map(any, named)) > 0.5 * sum(bool(row.cells[place]) for row in self.sample)

    def _prices(self) -> Prices:
        names = self.mapped.get("price")
        if not names:
            return Prices()
        place = self.table.columns.index(names[0])
        return Prices(
            (_text(row.cells[place]) for row in self.sample),
            self.settings.locale,
            currency_in(names[0].replace("_", " ")),
        )

    def _ids_are_floats(self, place: int) -> str:
        """An id such as 123.0, where all are written so: pandas makes them of a column with gaps."""
        ids = [_text(row.cells[place]) for row in self.sample]
        return ids[0] if ids and all(re.fullmatch(r"\d+\.0", one) for one in ids) else ""


def _text(cell: Any, language: str = "en") -> str:
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, dict):
        by_language = {name.lower(): value for name, value in cell.items() if value and _TAG.fullmatch(name)}
        if by_language and len(by_language) >= sum(map(bool, cell.values())):
            tag = next((one for one in by_language if one.startswith(language)), next(iter(by_language)))
            return _text(by_language[tag])
        # An amount with its currency.
        return " ".join(_text(value) for value in list(cell.values())[:2] if not isinstance(value, bytes))
    if isinstance(cell, list):
        return " ".join(map(_text, _in_one_language(cell)))
    return "" if isinstance(cell, bytes) else str(cell)


def _in_one_language(cell: list[Any]) -> list[Any]:
    """Of texts in several languages, as [{"language_tag": "en_US", "value": …}], the English one, else the first."""
    if not all(isinstance(one, dict) and "value" in one for one in cell):
        return cell
    english = [one for one in cell if str(one.get("language_tag", one.get("language", ""))).startswith("en")]
    return [one["value"] for one in (english or cell)[:1]]


def _category(cell: Any) -> Any:
    """A category as one text: the parts of a list, as a list or as it is written, are steps of a path."""
    if isinstance(cell, list) and all(isinstance(one, dict) for one in cell):
        cell = [name for one in cell if (name := _text(one.get("name") or one.get("title") or ""))]
    value = _kept(cell)
    if isinstance(value, str) and value.startswith("["):
        found = listed(value)
        value = value if found is None else found
    return " > ".join(value) if isinstance(value, list) else value


def _kept(cell: Any) -> Any:
    """A further cell as metadata: text, a list of texts, or JSON."""
    if isinstance(cell, str):
        return cell.strip() or None
    if isinstance(cell, bytes) or not cell:
        return None
    if isinstance(cell, list) and all(isinstance(one, str) for one in cell):
        return cell
    return json.dumps(cell, ensure_ascii=False, default=str)


def _photos(cell: Any) -> list[str | bytes]:
    if isinstance(cell, str):
        return list(split_photos(cell))
    if isinstance(cell, bytes):
        return [cell]
    if isinstance(cell, dict):
        return next((_photos(cell[name]) for name in _PHOTO_KEYS if cell.get(name)), [])
    return [photo for one in cell for photo in _photos(one)] if isinstance(cell, list) else []


def _are_ids(cells: Sequence[str]) -> bool:
    """Whether all are there, short, without blanks, each comes once, and they are no amounts."""
    return (
        bool(cells)
        and len(set(cells)) == len(cells)
        and all(re.fullmatch(r"[^\s/]{1,64}", cell) for cell in cells)
        and not all(_DECIMAL.fullmatch(cell) for cell in cells)
    )
