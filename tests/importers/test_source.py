"""The files behind what somebody types."""

import gzip
from pathlib import Path

import pytest
from importer_reading import write

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers import open_source


def names(*given: str | Path, folder: Path) -> list[str]:
    return [file.name for file in open_source([str(one) for one in given], folder / "downloads").files]


def test_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c/d.jpg", ".hidden", "__MACOSX/a.csv", "c/.DS_Store"):
        write(tmp_path / "shop", name, "x")
    shop = tmp_path / "shop"
    assert names(shop, folder=tmp_path) == ["a.csv", "b.csv", "c/d.jpg"]
    assert names(shop / "b.csv", shop / "a.csv", shop / "b.csv", folder=tmp_path) == [f"{shop}/b.csv", f"{shop}/a.csv"]
    assert names(shop / "*.csv", folder=tmp_path) == [f"{shop}/a.csv", f"{shop}/b.csv"]


def test_tables_photos_and_folders(tmp_path: Path) -> None:
    for name in ("a.csv", "c/d.JPG"):
        write(tmp_path, name, "x")
    source = open_source([str(tmp_path)], tmp_path / "downloads")
    assert [file.name for file in source.tables] == ["a.csv"]
    assert [file.is_photo for file in source.files] == [False, True]
    assert tmp_path in source.folders


@pytest.mark.parametrize("name", ["feed.xml.gz", "feed.xml"])
def test_compressed_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    (file,) = open_source([str(write(tmp_path, name, gzip.compress(b"<rss/>")))], tmp_path / "downloads").files
    assert file.suffix == ".xml" and file.head == b"<rss/>"


def test_a_url(tmp_path: Path) -> None:
    url = f"file://{write(tmp_path, 'shop/goods.csv', 'id,title')}"
    (file,) = open_source([url], tmp_path / "downloads").files
    assert file.name == "goods.csv" and file.head == b"id,title"
    write(tmp_path, "shop/goods.csv", "id,title,price")
    assert open_source([url], tmp_path / "downloads").files[0].head == b"id,title,price"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nothing.csv", r"nothing\.csv: there is no such file or folder.*Check the spelling"),
        ("empty", r"empty: no files are found"),
        ("shop.zip", r"shop\.zip: is an archive.*Unpack it"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path, "shop.zip", "PK")
    with pytest.raises(CatalogueError, match=problem):
        names(tmp_path / name, folder=tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (file,) = open_source([str(write(tmp_path, "a.csv", "x"))], tmp_path / "downloads").files
    file.path.unlink()
    with pytest.raises(CatalogueError, match=r"a\.csv: cannot be read.*Check that the file is complete"):
        _ = file.head
