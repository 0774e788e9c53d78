"""Photos alone, as products without texts."""

from pathlib import Path

import pytest
from importer_reading import read, write


@pytest.mark.parametrize(
    ("names", "products"),
    [
        # each name is a product, and its zeros stay
        (["0001.jpg", "0002.PNG", "x y.webp"], {"0001": 1, "0002": 1, "x y": 1}),
        # names that lie in folders
        (["010/0101.jpg", "020/0202.jpg"], {"0101": 1, "0202": 1}),
        # further photos beside the first
        (["7.jpg", "7_2.jpg", "7-b.jpg", "7 (3).jpg", "8.jpg"], {"7": 4, "8": 1}),
        # counted from 1, with digits in the names
        (["a7_1.jpg", "a7_2.jpg", "a8_1.jpg", "a8_2.jpg", "a9_5.jpg"], {"a7": 2, "a8": 2, "a9_5": 1}),
        # a camera counts
        (["IMG_1.jpg", "IMG_2.jpg", "DSC_1.jpg", "DSC_2.jpg"], {"DSC_1": 1, "DSC_2": 1, "IMG_1": 1, "IMG_2": 1}),
        (["2031_1.jpg", "2031_2.jpg", "2031_3.jpg"], {"2031_1": 1, "2031_2": 1, "2031_3": 1}),
        # a folder for each product
        (["A/1.jpg", "A/2.jpg", "B/1.jpg"], {"A": 2, "B": 1}),
        # the same name in two formats
        (["1.jpg", "1.webp", "2.jpg"], {"1": 2, "2": 1}),
        # names that repeat, and no folder for each
        (["1.jpg", "B/1.jpg"], {"1": 1, "B/1": 1}),
    ],
)
def test_which_photos_are_a_product(tmp_path: Path, names: list[str], products: dict[str, int]) -> None:
    for name in names:
        write(tmp_path, name, "photo")
    found = read(tmp_path)
    assert found.format == "photo_folder"
    assert {one: len(item.photos) for one, item in found.products.items()} == products
    assert set(found.titles().values()) == {""}
    assert bool(found.log.warnings) == (len(products) < len(names))


def test_order_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("7_10.jpg", "7_2.jpg", "7.jpg"):
        write(tmp_path / "shop", name, "photo")
    monkeypatch.chdir(tmp_path)
    (item,) = read(Path("shop") / "*.jpg").products.values()
    assert item.photos == [str(tmp_path / "shop" / name) for name in ("7.jpg", "7_2.jpg", "7_10.jpg")]


def test_folders_are_categories(tmp_path: Path) -> None:
    for name in ("pans/1.jpg", "pots/2.jpg", "3.jpg"):
        write(tmp_path, name, "photo")
    found = read(tmp_path)
    categories = {name: item.metadata for name, item in found.products.items()}
    assert categories == {"1": {"category": "pans"}, "2": {"category": "pots"}, "3": {}}


def test_a_table_beside_the_photos_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", "photo")
    write(tmp_path, "goods.csv", "id,title\n1,Pan\n")
    assert read(tmp_path).format == "generic"
