"""Tables of products with any columns."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from importer_reading import Read, read, write

from mmfusion.data.catalogue_schema import CatalogueError


def table(folder: Path, text: str, **settings: object) -> Read:
    return read(write(folder, "goods.csv", text), **settings)


@pytest.mark.parametrize(
    ("header", "mapped"),
    [
        ("id,title,image,price", "id title image price"),
        ("Artikelnummer;Bezeichnung;Bild;Preis", "Artikelnummer Bezeichnung Bild Preis"),
        ("Référence;Désignation;Photo;Prix TTC", "Référence Désignation Photo Prix TTC"),
        ("código;Nombre;Imagen;Precio", "código Nombre Imagen Precio"),
        ("SKU;Nome;Immagine;Prezzo", "SKU Nome Immagine Prezzo"),
        ("Artikelcode;Naam;Afbeelding;Prijs", "Artikelcode Naam Afbeelding Prijs"),
        ("symbol;nazwa;zdjęcie;cena", "symbol nazwa zdjęcie cena"),
        ("商品コード;商品名;画像;価格", "商品コード 商品名 画像 価格"),
        ("product_number;name;cover_image;price_gross", "product_number name cover_image price_gross"),
        ("uniq_id,product_name,image_1,price (EUR)", "uniq_id product_name image_1 price (EUR)"),
    ],
)
def test_names_in_several_languages(tmp_path: Path, header: str, mapped: str) -> None:
    by = ";" if ";" in header else ","
    rows = "".join(by.join([f"00{n}", f"Pan {n}", f"p{n}.jpg", "3"]) + "\n" for n in range(3))
    found = table(tmp_path, f"{header}\n{rows}")
    if "(EUR)" in header:
        assert found.imported.mapping.pop("product_id") == "uniq_id"
        assert list(found.products) == ["000", "001", "002"]
        return
    assert " ".join(found.imported.mapping[name] for name in ("product_id", "title", "image", "price")) == mapped
    assert found.products["001"].title == "Pan 1" and found.products["001"].photos == ["p1.jpg"]
    assert found.products["001"].metadata == {"price": 3.0}


def test_further_columns_are_metadata_as_text(tmp_path: Path) -> None:
    found = table(tmp_path, "id,name,size,num_variants,usage\n1,Pan,007,3,NA\n2,Lid,,1,null\n")
    assert found.products["1"].metadata == {"size": "007", "num_variants (file)": "3", "usage": "NA"}
    assert found.products["2"].metadata == {"size": None, "num_variants (file)": "1", "usage": "null"}


def test_typed_columns(tmp_path: Path) -> None:
    text = (
        "id;title;price;currency;availability;category;brand;description\n"
        '1;Pan;"1.299,00";eur;in stock;Kitchen;Ovenly;<p>Of <b>iron</b></p>\n'
        "2;Lid;19,95 USD;;0;;;R&D\n"
        "3;Cup;soon;;;;;\n"
    )
    found = table(tmp_path, text)
    assert [item.metadata for item in found.products.values()] == [
        {"price": 1299.0, "currency": "EUR", "availability": "in_stock", "category": "Kitchen", "brand": "Ovenly"},
        {"price": 19.95, "currency": "USD", "availability": "out_of_stock", "category": None, "brand": None},
        {"price": None, "currency": None, "availability": None, "category": None, "brand": None},
    ]
    assert [item.description for item in found.products.values()] == ["Of iron", "R&D", ""]
    assert found.imported.template == "{title} {description}"
    assert any("'soon'" in one for one in found.log.warnings)


def test_the_currency_of_a_column(tmp_path: Path) -> None:
    found = table(tmp_path, "id,title,Preis (CHF)\n1,Pan,12\n", columns={"price": "Preis (CHF)"})
    assert found.products["1"].metadata == {"price": 12.0, "currency": "CHF"}


def test_photos_of_several_columns_and_lists(tmp_path: Path) -> None:
    text = (
        "id,title,additional_images,image 1,image 2\n"
        '1,Pan,"c.jpg|d.jpg",a.jpg,b.jpg\n2,Lid,"[""e.jpg"", ""f.jpg""]",a.jpg,a.jpg\n'
    )
    found = table(tmp_path, text)
    assert found.products["1"].photos == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert found.products["2"].photos == ["a.jpg", "e.jpg", "f.jpg"]
    found = table(tmp_path, text, columns={"image": ["image 2", "image 1"]})
    assert found.products["1"].photos == ["b.jpg", "a.jpg"]


def test_columns_known_by_content(tmp_path: Path) -> None:
    found = table(
        tmp_path, "kind,key,title,where\npan,x1,Pan,a/1.jpg\npan,x2,Lid,https://a.b/2.webp?v=1\npan,x3,Cup,\n"
    )
    assert found.imported.mapping == {"title": "title", "image": "where", "product_id": "key"}
    assert list(found.products) == ["x1", "x2", "x3"]


def test_columns_that_are_called_alike(tmp_path: Path) -> None:
    text = "weight,rank,listing_id,brand_name,Listing Title,Full Desc\n1.5,1,x1,Acme,Pan,Iron\n1.7,2,x2,Acme,Lid,Tin\n"
    found = table(tmp_path, text)
    assert found.imported.mapping == {
        "title": "Listing Title",
        "description": "Full Desc",
        "brand": "brand_name",
        "product_id": "listing_id",
    }


def test_ids_that_come_again_are_those_of_groups(tmp_path: Path) -> None:
    text = "product_id,sku,title,image\n1,01,Pan,a.jpg\n1,02,Pan,b.jpg\n1,03,Pan,a.jpg\n2,04,Lid,a.jpg\n"
    assert list(table(tmp_path, text).products) == ["01", "02", "03", "04"]
    assert list(table(tmp_path, text, variants="product").products) == ["1", "2"]
    assert list(table(tmp_path, text, variants="photo").products) == ["01", "02", "04"]


def test_a_language_of_several(tmp_path: Path) -> None:
    text = "id,title_en,title_de,name-fr_FR\n1,Pan,Pfanne,Poêle\n"
    assert table(tmp_path, text).titles() == {"1": "Pan"}
    assert table(tmp_path, text, locale="de").titles() == {"1": "Pfanne"}
    assert table(tmp_path, text, locale="fr-CH").titles() == {"1": "Poêle"}


def test_columns_that_the_user_names(tmp_path: Path) -> None:
    text = "a,b,title,c\n1,Pan,x,Red\n2,Lid,y,Blue\n"
    found = table(tmp_path, text, columns={"title": "b", "colour": "c"}, id_column="a")
    assert found.products["1"].metadata == {"title (file)": "x", "colour": "Red"}
    assert found.titles() == {"1": "Pan", "2": "Lid"}
    with pytest.raises(CatalogueError, match=r"goods\.csv: there is no column 'z'.*a, b, title, c"):
        table(tmp_path, text, columns={"title": "z"})
    with pytest.raises(CatalogueError, match="column 'a' is to be product_id and title"):
        table(tmp_path, text, columns={"id": "a", "title": "a"})
    with pytest.raises(CatalogueError, match="ids are to come from 'b' and from 'a'"):
        table(tmp_path, text, columns={"id": "a"}, id_column="b")


def test_a_table_without_titles_or_ids(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"no column is known to hold titles \(columns: id, kind\).*--columns"):
        table(tmp_path, "id,kind\n1,pan\n")
    with pytest.raises(CatalogueError, match=r"hold ids.*\(columns: title, kind\).*--id_column"):
        table(tmp_path, "title,kind\nPan,pan\nLid,pan\n")


def test_rows_without_an_id_are_rejected(tmp_path: Path) -> None:
    found = table(tmp_path, "id,title\n1,Pan\n ,Lid\n")
    assert [(line, reason) for _, line, reason in found.log.rejected] == [(3, "no id")]


def test_ids_that_became_floats(tmp_path: Path) -> None:
    found = table(tmp_path, "id,title\n12.0,Pan\n13.0,Lid\n")
    assert list(found.products) == ["12", "13"] and any("12.0" in one for one in found.log.warnings)
    assert list(table(tmp_path, "id,title\n12.0,Pan\n1.5,Lid\n").products) == ["12.0", "1.5"]


def test_json_with_nested_values(tmp_path: Path) -> None:
    row = {
        "id": 12345678901234567890,
        "title": "Pan",
        "body_html": "<p>Iron</p>",
        "images": [{"src": "a.jpg", "alt": "x"}, {"src": "b.jpg"}],
        "tags": ["new", "iron"],
        "size": {"w": 3},
        "price": {"amount": "12.50", "currency": "EUR"},
    }
    found = read(write(tmp_path, "goods.json", json.dumps({"products": [row, {**row, "id": 7}]})))
    pan = found.products["12345678901234567890"]
    assert (pan.title, pan.description, pan.photos) == ("Pan", "Iron", ["a.jpg", "b.jpg"])
    assert pan.metadata == {"tags": ["new", "iron"], "size": '{"w": "3"}', "price": 12.5, "currency": "EUR"}


def test_texts_in_several_languages_and_lists_of_categories(tmp_path: Path) -> None:
    rows = [
        {
            "item_id": "B01",
            "item_name": [{"language_tag": "de_DE", "value": "Pfanne"}, {"language_tag": "en_GB", "value": "Pan"}],
            "categories": ["Kitchen", "Pans"],
            "sale_price": "9.50 EUR",
        },
        {"item_id": "B02", "item_name": [{"language_tag": "fr_FR", "value": "Pot"}], "categories": "['Garden']"},
        {"item_id": "B03", "item_name": {"de": "Tasse", "en": "Cup"}, "categories": []},
    ]
    found = read(write(tmp_path, "goods.jsonl", "\n".join(map(json.dumps, rows))))
    assert found.titles() == {"B01": "Pan", "B02": "Pot", "B03": "Cup"}
    assert [item.metadata["category"] for item in found.products.values()] == ["Kitchen > Pans", "Garden", None]


def test_texts_by_language(tmp_path: Path) -> None:
    row = {"id": "1", "name": {"de": "Pfanne", "en-GB": "Pan", "fr": ""}, "categories": [{"id": 3, "name": "Kitchen"}]}
    text = json.dumps({"limit": 20, "next": 'a "b', "data": {"total": 1, "results": [row]}})
    file = write(tmp_path, "goods.json", text)
    assert read(file).titles() == {"1": "Pan"} and read(file, locale="de-AT").titles() == {"1": "Pfanne"}
    assert read(file).products["1"].metadata["category"] == "Kitchen"
    assert read(file, locale="fr").titles() == {"1": "Pfanne"}


def test_photos_in_columns_of_any_name(tmp_path: Path) -> None:
    rows = [{"id": "1", "title": "Pan", "media": [{"id": 7, "file": "/p/a.jpg"}, {"file": "/p/b.jpg"}]}]
    rows.append({"id": "2", "title": "Pot", "media": []})
    found = read(write(tmp_path, "goods.jsonl", "\n".join(map(json.dumps, rows))))
    assert found.products["1"].photos == ["/p/a.jpg", "/p/b.jpg"] and found.products["2"].metadata == {}


def test_no_sale(tmp_path: Path) -> None:
    found = table(tmp_path, "id,title,price,sale price\n1,Pan,5,0\n2,Pot,5,4\n")
    assert [item.metadata["sale_price"] for item in found.products.values()] == [None, 4.0]


def test_parquet_with_photos_in_it(tmp_path: Path) -> None:
    columns = {
        "item_id": pa.array([1, 2]),
        "name": ["Pan", "Lid"],
        "photos": pa.array([[{"bytes": b"p", "path": "x"}, {"bytes": None, "path": "y.jpg"}], None]),
        "vector": pa.array([b"\0", b"\1"]),
    }
    pq.write_table(pa.table(columns), tmp_path / "goods.parquet")
    found = read(tmp_path / "goods.parquet")
    assert [(item.title, item.photos) for item in found.products.values()] == [("Pan", [b"p", "y.jpg"]), ("Lid", [])]


def test_tables_of_a_folder_that_hold_no_products(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "sku,name\n1,Pan\n")
    write(tmp_path, "b.csv", "sku,title\n2,Lid\n")
    write(tmp_path, "clicks.csv", "query,product_id,clicks\npan,1,3\n")
    found = read(tmp_path)
    assert found.titles() == {"1": "Pan", "2": "Lid"}
    assert found.log.warnings == ["clicks.csv has no column of titles and is not read"]


def test_splits_of_the_file(tmp_path: Path) -> None:
    found = table(tmp_path, "id,title,split\n1,Pan,train\n2,Lid,dev\n3,Cup,\n")
    assert [item.metadata["split"] for item in found.products.values()] == ["train", "val", None]


@pytest.mark.parametrize("name", ["styles.csv", "hm/articles.csv"])
def test_fashion_samples(samples: Path, name: str) -> None:
    expected = json.loads((samples / "fashion" / "expected.json").read_text())["files"][name]
    found = read(samples / "fashion" / name)
    assert list(found.products) == expected["product_ids"]
    for product, title in expected["title"].items():
        assert found.products[product].title == title
    for product, usage in expected.get("usage", {}).items():
        assert found.products[product].metadata["usage"] == usage
    assert {str(line) for _, line, _ in found.log.rejected} == set(expected.get("bad_lines", {})) - {"3"}
    assert found.log.left_out.total() == len(expected.get("duplicates", {}))


def test_clicks_sample(samples: Path) -> None:
    found = read(samples / "clicks" / "products.csv")
    assert {name: item.photos for name, item in found.products.items()} == {
        name: [f"photos/{name}.jpg"] for name in ("007", "008", "009", "010")
    }
