"""Product exports of Shopify."""

import json
from pathlib import Path

import pytest
from importer_reading import read, write

from mmfusion.data.catalogue_schema import CatalogueError

HEADER = (
    "Handle,Title,Body (HTML),Vendor,Type,Tags,Published,Option1 Name,Option1 Value,Option2 Name,Option2 Value,"
    "Variant SKU,Variant Inventory Qty,Variant Inventory Policy,Variant Price,Variant Barcode,Image Src,Image Position,"
    "Variant Image,Gift Card,Included / Schweiz,Price / Schweiz,Stoff (product.metafields.custom.fabric),Status"
)


def export(folder: Path, *rows: dict[str, str], header: str = HEADER, name: str = "export.csv") -> Path:
    columns = header.split(",")
    lines = [",".join('"' + row.get(column, "").replace('"', '""') + '"' for column in columns) for row in rows]
    return write(folder, name, "\n".join([header, *lines]) + "\n")


def test_rows_of_a_handle_are_a_product(tmp_path: Path) -> None:
    found = read(
        export(
            tmp_path,
            {
                "Handle": "pot",
                "Title": "Pot",
                "Body (HTML)": "<p>Of clay &amp; glass</p>",
                "Vendor": "Ovenly",
                "Type": "Pots",
                "Tags": 'clay, "red, dark"',
                "Published": "TRUE",
                "Option1 Name": "Colour",
                "Option1 Value": "Red",
                "Option2 Name": "Size",
                "Option2 Value": "1 l",
                "Variant SKU": "007",
                "Variant Inventory Qty": "0",
                "Variant Inventory Policy": "deny",
                "Variant Price": "1.200,50",
                "Variant Barcode": "'04006381333931",
                "Image Src": "b.jpg",
                "Image Position": "2",
                "Variant Image": "d.jpg",
                "Price / Schweiz": "99",
                "Stoff (product.metafields.custom.fabric)": "Clay",
                "Status": "active",
            },
            {"Handle": "pot", "Image Src": "c.jpg", "Image Position": "10"},
            {
                "Handle": "pot",
                "Option1 Value": "Blue",
                "Option2 Value": "1 l",
                "Variant Price": "900,00",
                "Variant Inventory Qty": "-1",
                "Variant Inventory Policy": "continue",
                "Image Src": "a.jpg",
                "Image Position": "1",
                "Variant Image": "c.jpg",
            },
        )
    )
    assert found.format == "shopify" and found.imported.variants == "product"
    (pot,) = found.products.values()
    assert (pot.item_id, pot.title, pot.description) == ("pot", "Pot", "Of clay & glass")
    assert pot.photos == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert pot.metadata == {
        "brand": "Ovenly",
        "product_type": "Pots",
        "category": "Pots",
        "tags": ["clay", "red, dark"],
        "stoff": "Clay",
        "sku": "007",
        "barcode": "04006381333931",
        "price": 900.0,
        "availability": "backorder",
        "colour": "Red, Blue",
        "size": "1 l",
        "num_variants": 2,
    }
    assert found.product_of == {"007": "pot", "pot-Blue-1 l": "pot"}


def test_an_export_of_matrixify(tmp_path: Path) -> None:
    header = (
        "ID,Handle,Command,Title,Body HTML,Type,Category: ID,Category: Name,Category,Image Src,Variant Price,"
        "Metafield: custom.cloth [single_line_text_field],Variant Metafield: gems.care [string]"
    )
    row = {
        "ID": "65",
        "Handle": "cap",
        "Title": "Cap",
        "Body HTML": "<p>Soft</p>",
        "Type": "Hats",
        "Category": "Clothing > Hats",
        "Variant Price": "9.00",
        "Metafield: custom.cloth [single_line_text_field]": "Linen",
        "Variant Metafield: gems.care [string]": "cold",
    }
    cap = read(export(tmp_path, row, header=header)).products["cap"]
    assert (cap.title, cap.description) == ("Cap", "Soft")
    assert cap.metadata == {
        **{"category": "Clothing > Hats", "product_type": "Hats", "price": 9.0, "num_variants": 1},
        **{"cloth": "Linen", "care": "cold"},
    }


def test_variants_as_products(tmp_path: Path) -> None:
    pot = {"Handle": "pot", "Title": "Pot", "Option1 Name": "Colour", "Option1 Value": "Red", "Variant SKU": "1"}
    lid = {"Handle": "lid", "Title": "Lid", "Option1 Name": "Title", "Option1 Value": "Default Title"}
    rows = [
        {**pot, "Variant Image": "r.jpg"},
        {"Handle": "pot", "Option1 Value": "Blue", "Variant SKU": "2", "Image Src": "all.jpg"},
        {"Handle": "pot", "Option1 Value": "Green", "Variant SKU": "2", "Variant Image": "r.jpg"},
        {**lid, "Variant Price": "3"},
    ]
    found = read(export(tmp_path, *rows), variants="item")
    # An SKU that two variants share names none of them.
    assert found.titles() == {
        "1": "Pot - Red",
        "pot-Blue": "Pot - Blue",
        "pot-Green": "Pot - Green",
        "lid": "Lid",
    }
    assert [item.photos for item in found.products.values()] == [["r.jpg"], ["all.jpg"], ["r.jpg"], []]
    assert found.products["lid"].metadata["price"] == 3.0
    assert list(read(export(tmp_path, *rows), variants="photo").products) == ["1", "pot-Blue", "lid"]


def test_a_file_that_somebody_sorted(tmp_path: Path) -> None:
    rows = [
        {"Handle": "a", "Option1 Value": "Blue", "Variant SKU": "2", "Variant Price": "4"},
        {"Handle": "b", "Title": "B", "Variant Price": "1", "Status": "draft"},
        {"Handle": "a", "Title": "A", "Option1 Name": "Colour", "Option1 Value": "Red", "Variant SKU": "1"},
    ]
    (product,) = read(export(tmp_path, *rows)).products.values()
    assert product.title == "A" and product.metadata["colour"] == "Red, Blue" and product.metadata["price"] == 4.0


def test_variants_that_nothing_tells_apart(tmp_path: Path) -> None:
    rows = [{"Handle": "a", "Title": "A", "Variant Price": "5"}, {"Handle": "a", "Variant Price": "4"}]
    found = read(export(tmp_path, *rows), variants="item")
    assert list(found.products) == ["a-1", "a-2"] and not found.log.left_out


@pytest.mark.parametrize(
    ("status", "published", "reason"),
    [
        ("draft", "false", "Status draft, Published false"),
        ("Archived", "true", "Status archived"),
        ("unlisted", "", "Status unlisted"),
        ("", "FALSE", "Published false"),
    ],
)
def test_unpublished_products(tmp_path: Path, status: str, published: str, reason: str) -> None:
    file = export(
        tmp_path,
        {"Handle": "a", "Title": "A", "Variant Price": "1", "Status": status, "Published": published},
        {"Handle": "a", "Variant Price": "2"},
        {"Handle": "b", "Title": "B", "Variant Price": "1", "Status": "active", "Published": "true"},
    )
    found = read(file)
    assert list(found.products) == ["b"] and found.log.left_out == {reason: 1}
    assert list(read(file, unpublished=True).products) == ["a", "b"]


def test_the_header_since_2025_and_several_files(tmp_path: Path) -> None:
    since = (
        "Title,URL handle,Description,Status,Published on online store,SKU,Option1 name,Option1 value,Price,"
        "Product image URL,Image position,Variant image URL"
    )
    new = export(
        tmp_path,
        {
            "Title": "Cup",
            "URL handle": "0042",
            "Description": "Tea",
            "Status": "Active",
            "Price": "4.50",
            "SKU": "C",
            "Product image URL": "cup.jpg",
        },
        header=since,
        name="new.csv",
    )
    old = export(tmp_path, {"Handle": "lid", "Title": "Lid", "Variant Price": "3"}, name="old.csv")
    write(tmp_path, "other.csv", "a,b\n1,2\n")
    write(tmp_path, "stock.csv", "Handle,Title,Option1 Name,Option1 Value,SKU,Location,Available\nlid,Lid,,,C,Here,3\n")
    found = read(tmp_path)
    assert (new.name, old.name) == ("new.csv", "old.csv")
    assert found.titles() == {"0042": "Cup", "lid": "Lid"}
    assert found.products["0042"].description == "Tea" and found.products["0042"].metadata["price"] == 4.5
    unread = [one.partition(" ")[0].rpartition("/")[2] for one in found.log.warnings]
    assert unread == ["other.csv", "stock.csv"]


def test_ids_of_another_column(tmp_path: Path) -> None:
    rows = [
        {"Handle": "a", "Title": "A", "Variant SKU": "01", "Variant Price": "1"},
        {"Handle": "b", "Title": "B", "Variant SKU": "02", "Variant Price": "1"},
    ]
    assert list(read(export(tmp_path, *rows), id_column="Variant SKU").products) == ["01", "02"]
    del rows[1]["Variant SKU"]
    with pytest.raises(CatalogueError, match="line 3: 'b' has no Variant SKU"):
        read(export(tmp_path, *rows), id_column="Variant SKU")


def test_columns_that_the_user_names(tmp_path: Path) -> None:
    row = {"Handle": "a", "Title": "A", "Body (HTML)": "<p>Long</p>", "Vendor": "Acme pot", "Variant Price": "1"}
    file = export(tmp_path, row)
    found = read(file, columns={"title": "vendor", "maker": "Title"})
    assert found.titles() == {"a": "Acme pot"} and found.products["a"].metadata["maker"] == "A"
    with pytest.raises(CatalogueError, match=r"there is no column 'Nom'.*Handle, Title"):
        read(file, columns={"title": "Nom"})
    with pytest.raises(CatalogueError, match="column 'Title' is to be title and description"):
        read(file, columns={"title": "Title", "description": "Title"})


def test_rows_without_a_handle_are_rejected(tmp_path: Path) -> None:
    found = read(export(tmp_path, {"Handle": "a", "Title": "A"}, {"Title": "B"}))
    assert found.log.rejected == [(str(tmp_path / "export.csv"), 3, "no Handle")]


@pytest.mark.parametrize("name", ["products_export_1.csv", "products_export_2025.csv"])
def test_samples(samples: Path, name: str) -> None:
    folder = samples / "shopify"
    expected = json.loads((folder / "expected.json").read_text())["files"][name]
    found = read(folder / name)
    assert list(found.products) == expected["product_ids"]
    photos = {item: len(one.photos) for item, one in found.products.items()}
    assert photos == expected["photos_listed"]
    assert found.log.left_out.total() == len(expected.get("dropped", {}))
    for product, title in expected.get("title", {}).items():
        assert found.products[product].title == title
    for product, description in expected.get("description", {}).items():
        assert found.products[product].description == description
    for column in ("price", "num_variants"):
        for product, value in expected.get(column, {}).items():
            assert found.products[product].metadata[column] == value
    for product, order in expected.get("photo_order", {}).items():
        assert [str(one).split("/")[-1].split("?")[0] for one in found.products[product].photos] == order
    if "num_products_with_all_statuses" in expected:
        assert len(read(folder / name, unpublished=True).products) == expected["num_products_with_all_statuses"]
