"""Product exports of WooCommerce."""

import json
from pathlib import Path

import pytest
from importer_reading import read, write

from mmfusion.data.catalogue_schema import CatalogueError

ENGLISH = (
    "ID|Type|SKU|Name|Published|Is featured?|Visibility in catalog|Short description|Description|In stock?|"
    "Backorders allowed?|Sale price|Regular price|Categories|Tags|Images|Parent|Attribute 1 name|Attribute 1 value(s)|"
    "Meta: _x"
)
HEADERS = {
    "English": ENGLISH,
    "German": (
        "ID|Typ|Artikelnummer|Name|Veröffentlicht|Ist hervorgehoben?|Sichtbarkeit im Katalog|Kurzbeschreibung|"
        "Beschreibung|Vorrätig?|Rückstände erlaubt?|Angebotspreis|Regulärer Preis|Kategorien|Schlagwörter|Bilder|"
        "Übergeordnetes Produkt|Attribut 1 Name|Attribut 1 Wert(e)|Meta: _x"
    ),
    "French": (
        "ID|Type|UGS|Nom|Publié|Mis en avant ?|Visibilité dans le catalogue|Description courte|Description|En stock ?|"
        "Autoriser les commandes de produits en rupture ?|Tarif promo|Tarif régulier|Catégories|Étiquettes|Images|"
        "Parent|Nom de l’attribut 1|Valeur(s) de l’attribut 1|Méta : _x"
    ),
    "Spanish": (
        "ID|Tipo|SKU|Nombre|Publicado|¿Está destacado?|Visibilidad en el catálogo|Descripción corta|Descripción|"
        "¿Existencias?|¿Permitir reservas de productos agotados?|Precio rebajado|Precio normal|Categorías|Etiquetas|"
        "Imágenes|Superior|Nombre del atributo 1|Valor(es) del atributo 1|Meta: _x"
    ),
    "Italian": (
        "ID|Tipo|COD|Nome|Pubblicato|In primo piano?|Visibilità nel catalogo|Breve descrizione|Descrizione|In stock?|"
        "Abilita gli ordini arretrati?|Prezzo in offerta|Prezzo di listino|Categorie|Tag|Immagini|Genitore|"
        "Attributo 1 nome|Attributo 1 valuta(e)|Meta: _x"
    ),
    "Dutch": (
        "ID|Type|Artikelnummer|Naam|Gepubliceerd|Uitgelicht?|Zichtbaarheid in catalogus|Korte omschrijving|"
        "Beschrijving|Op voorraad?|Nabestellingen toestaan?|Actieprijs|Reguliere prijs|Categorieën|Tags|"
        "Afbeeldingen|Hoofd|Naam eigenschap 1|Waarde eigenschap 1|Meta: _x"
    ),
    "Polish": (
        "ID|Typ|SKU|Nazwa|Opublikowano|Wyróżniony produkt?|Widoczność w katalogu|Krótki opis|Opis|W magazynie?|"
        "Zamówienia oczekujące?|Cena promocyjna|Cena|Kategorie|Tagi|Obrazki|Element nadrzędny|Nazwa atrybutu 1|"
        "Wartości atrybutu 1|Pola: _x"
    ),
}
POT = {
    "ID": "7",
    "Type": "variable",
    "SKU": "pot",
    "Name": "Pot &amp; lid",
    "Published": "1",
    "Visibility in catalog": "visible",
    "Short description": "<p>Of clay</p>",
    "Description": r"Warm\nand [gallery ids=" "1" "] red",
    "In stock?": "1",
    "Categories": "Kitchen, Kitchen &gt; Pots",
    "Tags": "new, clay",
    "Images": "https://a.b/1.jpg, https://a.b/2.jpg",
    "Attribute 1 name": "Colour",
    "Attribute 1 value(s)": "Red, Blue",
}
RED = {
    "ID": "8",
    "Type": "variation",
    "Name": "Pot - Red",
    "Published": "1",
    "Visibility in catalog": "visible",
    "In stock?": "0",
    "Backorders allowed?": "1",
    "Regular price": "20",
    "Sale price": "15",
    "Parent": "id:7",
    "Images": "https://a.b/2.jpg",
    "Attribute 1 name": "Colour",
    "Attribute 1 value(s)": "Red",
}
BLUE = {**RED, "ID": "9", "SKU": "pot-blue", "Name": "Pot - Blue", "Parent": "pot", "Images": "https://a.b/3.jpg"}
CUP = {"ID": "10", "Type": "simple, virtual", "Name": "Cup", "Published": "1", "Regular price": "4,50"}


def export(folder: Path, *rows: dict[str, str], header: str = ENGLISH) -> Path:
    columns = ENGLISH.split("|")
    lines = [",".join('"' + row.get(column, "").replace('"', '""') + '"' for column in columns) for row in rows]
    names = ",".join(f'"{name}"' for name in header.split("|"))
    return write(folder, "export.csv", ("\ufeff" + "\n".join([names, *lines]) + "\n").encode())


@pytest.mark.parametrize("language", HEADERS)
def test_a_product_with_its_variations(tmp_path: Path, language: str) -> None:
    found = read(export(tmp_path, RED, POT, BLUE, CUP, header=HEADERS[language]))
    assert found.format == "woocommerce"
    pot, cup = found.products["7"], found.products["10"]
    assert (pot.title, pot.description) == ("Pot & lid", "Of clay Warm and red")
    assert pot.photos == [f"https://a.b/{n}.jpg" for n in (1, 2, 3)]
    assert {name: pot.metadata[name] for name in sorted(pot.metadata)} == {
        "availability": "in_stock",
        "category": "Kitchen, Kitchen > Pots",
        "colour": "Red, Blue",
        "num_variants": 2,
        "price": 20.0,
        "sale_price": 15.0,
        "sku": "pot",
        "tags": ["new", "clay"],
    }
    assert (cup.title, cup.metadata["price"]) == ("Cup", 4.5)
    assert found.product_of == {"8": "7", "9": "7"}


def test_a_language_that_is_not_known(tmp_path: Path) -> None:
    header = "ID|T|SKU|Nimi|J|E|N|Lyhyt|Pitkä|V|O|A|H|K|M|Kuvat|Y|O1|O2|Meta: _x"
    found = read(export(tmp_path, CUP, POT, header=header))
    assert found.titles() == {"10": "Cup", "7": "Pot & lid"}
    assert found.products["7"].description == "Of clay Warm and red"


def test_an_export_with_all_columns_in_a_language_that_is_not_known(tmp_path: Path) -> None:
    columns = [f"α{number}" for number in range(42)]
    rows = {
        "ID Type SKU Name Published Visibility Summary Text Stock Sale Price Category Tags Photo Parent": range(15),
        "7 variable P Pot 1 visible Red Warm 1 - - Kitchen new p.jpg -": (),
        "8 variation P-1 Pot-1 1 visible - - 0 4,50 5,90 - - q.jpg id:7": (),
        "9 simple S Sieve -1 visible - - 1 - 3,00 - - s.jpg -": (),
    }
    # Places of these columns in the export of WooCommerce 9.
    places = (0, 1, 2, 4, 5, 7, 8, 9, 14, 24, 25, 26, 27, 29, 32)
    lines = [";".join(["ID", *columns[1:]])]
    for text in list(rows)[1:]:
        row = [""] * len(columns)
        for place, cell in zip(places, text.split(), strict=True):
            row[place] = cell.strip("-") if cell == "-" else cell
        lines.append(";".join(row))
    found = read(write(tmp_path, "export.csv", "\n".join(lines) + "\n"))
    assert (found.format, list(found.products), found.product_of) == ("woocommerce", ["7"], {"8": "7"})
    pot = found.products["7"]
    assert (pot.title, pot.description, pot.photos) == ("Pot", "Red Warm", ["p.jpg", "q.jpg"])
    assert [pot.metadata[name] for name in ("price", "sale_price", "category", "tags")] == [
        5.9,
        4.5,
        "Kitchen",
        ["new"],
    ]
    assert found.log.warnings == []


def test_columns_that_were_left_out_of_an_export(tmp_path: Path) -> None:
    text = "ID,Type,Name,Published,Visibility in catalog,Description,Images\n1,simple,Cup,1,visible,Blue,c.jpg\n"
    found = read(write(tmp_path, "export.csv", text))
    assert found.products["1"].description == "Blue"
    assert "no column is known for price, category" in found.log.warnings[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "magento.csv",
            "sku,product_type,name,visibility,price,base_image,additional_images\n"
            'M1,simple,Cup,"Catalog, Search",4.0000,/c/u/cup.jpg,"/c/u/2.jpg,/c/u/3.jpg"\n',
        ),
        (
            "rest.json",
            '[{"id": "M1", "type": "simple", "name": "Cup", "price": "4", "catalog_visibility": "visible",\n'
            '"images": [{"src": "/c/u/cup.jpg"}, {"src": "/c/u/2.jpg"}, {"src": "/c/u/3.jpg"}]}]',
        ),
    ],
)
def test_other_exports_with_types(tmp_path: Path, name: str, text: str) -> None:
    found = read(write(tmp_path, name, text))
    assert found.format == "generic" and found.products["M1"].metadata["price"] == 4.0
    assert found.products["M1"].photos == ["/c/u/cup.jpg", "/c/u/2.jpg", "/c/u/3.jpg"]


def test_variations_as_products(tmp_path: Path) -> None:
    found = read(export(tmp_path, POT, RED, BLUE, CUP), variants="item")
    assert found.titles() == {"8": "Pot - Red", "9": "Pot - Blue", "10": "Cup"}
    assert found.products["8"].description == "Of clay Warm and red"
    assert found.products["8"].metadata["availability"] == "backorder"
    assert list(read(export(tmp_path, POT, RED), variants="photo").products) == ["8"]


def test_a_variable_product_without_variations_is_sold(tmp_path: Path) -> None:
    assert list(read(export(tmp_path, POT, CUP), variants="item").products) == ["7", "10"]


def test_kinds_of_plugins(tmp_path: Path) -> None:
    box = {**POT, "Type": "variable-subscription"}
    found = read(export(tmp_path, box, {**RED, "Type": "subscription_variation"}, {**CUP, "Type": "bundle"}))
    assert list(found.products) == ["7", "10"] and found.product_of == {"8": "7"}


def test_variations_of_a_product_that_is_not_there(tmp_path: Path) -> None:
    found = read(export(tmp_path, {**RED, "Parent": "id:99"}, CUP))
    assert list(found.products) == ["8", "10"]
    assert "'id:99' is not in the file" in found.log.warnings[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Published": "-1"}, "Published -1 (draft)"),
        ({"Published": "0"}, "Published 0 (private)"),
        ({"Visibility in catalog": "hidden"}, "hidden in catalog"),
    ],
)
def test_unpublished_products(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    file = export(tmp_path, {**POT, **change}, RED, CUP)
    found = read(file)
    assert list(found.products) == ["10"] and found.log.left_out == {reason: 2}
    assert list(read(file, unpublished=True).products) == ["7", "10"]


def test_ids_by_sku(tmp_path: Path) -> None:
    found = read(export(tmp_path, POT, BLUE), id_column="SKU")
    assert list(found.products) == ["pot"] and found.product_of == {"pot-blue": "pot"}
    with pytest.raises(CatalogueError, match=r"export\.csv, line 3: ID 10 \('Cup'\) has no SKU"):
        read(export(tmp_path, POT, CUP), id_column="SKU")


def test_columns_that_the_user_names(tmp_path: Path) -> None:
    found = read(export(tmp_path, {**CUP, "Meta: _x": "A cup"}), columns={"title": "Meta: _x", "kind": "Type"})
    assert found.titles() == {"10": "A cup"}
    assert found.products["10"].metadata["kind"] == "simple, virtual"


def test_samples(samples: Path) -> None:
    folder = samples / "woocommerce"
    ((name, expected),) = json.loads((folder / "expected.json").read_text())["files"].items()
    found = read(folder / name)
    assert list(found.products) == expected["product_ids"]
    assert {one: len(item.photos) for one, item in found.products.items()} == expected["photos_listed"]
    assert found.log.left_out.total() == len(expected["dropped"])
    assert set(found.product_of) == set(expected["merged_into_parent"])
    for attribute in ("title", "description"):
        for product, text in expected[attribute].items():
            assert getattr(found.products[product], attribute) == text
    for product, price in expected["price"].items():
        assert found.products[product].metadata["price"] == price
    variants = read(folder / name, variants="item").products
    assert sorted(variants) == sorted(expected["variants_as_products"]["product_ids"])
    with pytest.raises(CatalogueError, match=r"ID 46 .*has no SKU"):
        read(folder / name, id_column="SKU")
