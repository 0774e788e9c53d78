"""Photos of a shop: found by what its export calls them, kept as paths or bytes, and counted where they are missing."""

from __future__ import annotations

import csv
import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmfusion.commands import parse_config
from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.data.photos import decode_photo
from mmfusion.importers import ImportLog, Item
from mmfusion.importers.importing import import_catalogue
from mmfusion.importers.photo_store import PhotoStore
from mmfusion.importers.photos import PhotoFolders, photos_of_item
from mmfusion.importers.settings import ImportSettings
from mmfusion.importers.write import PHOTO


def jpeg(shade: int = 90) -> bytes:
    file = BytesIO()
    Image.new("RGB", (24, 32), (shade, shade // 2, 40)).save(file, "JPEG")
    return file.getvalue()


def lay(folder: Path, *paths: str) -> Path:
    """A folder with photos that all differ."""
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(jpeg(20 + number))
    return folder


def found(folder: Path, written: str, item_id: str = "") -> str:
    photo = PhotoFolders([folder], ImportLog()).find(written, item_id)
    return photo if isinstance(photo, str) else photo.path


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("boots/1.jpg", "boots/1.jpg"),
        ("./boots/1.jpg", "boots/1.jpg"),
        ("boots\\1.jpg", "boots/1.jpg"),
        (r"C:\Users\eva\shop\sandals\1.jpg", "sandals/1.jpg"),
        ("/mnt/old/images/sandals/1.jpg", "sandals/1.jpg"),
        ("BOOTS/1.JPG", "boots/1.jpg"),
        ("https://cdn.example/a/b/oak%20chair.png?v=17&width=90", "wood/oak chair.PNG"),
        ("b/oak%20chair.png?v=17", "wood/oak chair.PNG"),
        ("//cdn.example/a/oak%20chair.png#top", "wood/oak chair.PNG"),
        ("https://cdn.example/oak chair.jpeg", "wood/oak chair.PNG"),
        ("oak chair", "wood/oak chair.PNG"),
        ("https://shop.example/image.php?w=90&file=/media/lime.webp", "lime.webp"),
        ("wood/100%25 wool.jpg", "wood/100% wool.jpg"),
        ("100% wool.jpg", "wood/100% wool.jpg"),
        ("https://shop.example/uploads/2024/03/fern-scaled.jpg", "fern.jpg"),
        ("https://shop.example/uploads/2024/03/fern-300x450.jpg", "fern-300x450.jpg"),
        ("https://shop.example/uploads/2024/03/fern-90x90.jpg", "fern.jpg"),
        ("https://cdn.example/fern_large.jpg?v=2", "fern.jpg"),
        ("https://cdn.example/fern_1024x1024@2x.jpg", "fern.jpg"),
        ("kelp.jpg", "kelp-scaled.jpg"),
        ("moor.jpg", "moor-600x600.jpg"),
        ("poster-50x70.jpg", "poster-50x70.jpg"),
        ("dusk.jpg", "dusk.jpg.webp"),
        ("cafe\u0301.jpg", "café.jpg"),
        ("photos/lime.webp", "lime.webp"),
    ],
)
def test_a_photo_is_found_by_what_an_export_calls_it(tmp_path: Path, written: str, path: str) -> None:
    folder = lay(
        tmp_path / "photos",
        *("boots/1.jpg", "sandals/1.jpg", "wood/oak chair.PNG", "wood/100% wool.jpg", "lime.webp"),
        *("fern.jpg", "fern-300x450.jpg", "kelp-scaled.jpg", "kelp-150x150.jpg", "moor-150x150.jpg"),
        *("moor-600x600.jpg", "poster.jpg", "poster-50x70.jpg", "dusk.jpg.webp", "café.jpg"),
    )
    assert found(folder, written) == path


def test_of_several_formats_that_is_taken_which_is_named(tmp_path: Path) -> None:
    folder = lay(tmp_path, "a.webp", "a.jpg", "a.png", "b.png", "b.webp", "c.JPG", "c.jpg")
    names = ["a.webp", "a.png", "a.gif", "b.jpg", "c.jpg", "c.JPG"]
    assert [found(folder, name) for name in names] == ["a.webp", "a.png", "a.jpg", "b.png", "c.jpg", "c.JPG"]


@pytest.mark.parametrize(
    "written", ["../secret.jpg", "/etc/secret.jpg", "..\\secret.jpg", "a/../../secret.jpg", "", "  "]
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, written: str) -> None:
    lay(tmp_path, "secret.jpg", "shop/a/1.jpg")
    assert found(tmp_path / "shop", written) == "no such file"
    assert found(tmp_path / "shop", written + str(tmp_path / "secret.jpg")) == "no such file"


def test_names_in_several_folders_are_told_apart_by_the_product_or_named_both(tmp_path: Path) -> None:
    lay(tmp_path, "4711/1.jpg", "4712/1.jpg", "old/lid.jpg", "new/lid.jpg")
    (tmp_path / "old" / "same.jpg").write_bytes(jpeg())
    (tmp_path / "new" / "same.jpg").write_bytes(jpeg())
    log = ImportLog()
    folders = PhotoFolders([tmp_path], log)
    photo = folders.find("1.jpg", "4712")
    assert not isinstance(photo, str) and photo.path == "4712/1.jpg"
    copy = folders.find("same.jpg")
    assert not isinstance(copy, str) and copy.path == "new/same.jpg"
    for _ in range(2):
        reason = folders.find("https://cdn.example/files/lid.jpg", "x")
        assert isinstance(reason, str) and "2 files have this name" in reason
    folders.warn()
    (warning,) = log.warnings
    assert str(tmp_path / "new/lid.jpg") in warning and str(tmp_path / "old/lid.jpg") in warning
    assert warning.startswith("2 photos ")


def test_of_two_folders_that_are_given_the_path_decides(tmp_path: Path) -> None:
    one, two = lay(tmp_path / "one", "a/1.jpg", "x.jpg"), lay(tmp_path / "two", "b/1.jpg", "y.jpg", "x.jpg")
    folders = PhotoFolders([one, two, one / "a"], ImportLog())
    assert folders.roots == [one, two]
    photo = folders.find("b/1.jpg")
    assert not isinstance(photo, str) and photo.file == str(two / "b/1.jpg")
    (two / "x.jpg").write_bytes((one / "x.jpg").read_bytes())
    photo = folders.find("x.jpg")
    assert not isinstance(photo, str) and photo.file == str(one / "x.jpg")
    (two / "x.jpg").write_bytes(jpeg(200))
    assert isinstance(folders.find("x.jpg"), str)
    photo = folders.find("two/x.jpg")
    assert not isinstance(photo, str) and photo.file == str(two / "x.jpg")


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("A7", ["a7.jpg", "a7_1.jpg", "a7_2.jpg", "a7_10.jpg"]),
        ("B-8", ["B-8-2.png", "B-8-3.png"]),
        ("cup", ["cup_front.jpg", "cup_back.jpg"]),
        ("900", ["900/1.jpg", "900/2.jpg", "900/10.jpg"]),
        ("0108775", ["010/0108775.jpg"]),
        ("108775", ["010/0108775.jpg"]),
        ("0000055", ["55_1.jpg"]),
        ("twice", ["twice.jpg"]),
        ("nobody", []),
        ("", []),
    ],
)
def test_photos_are_found_by_the_id_of_a_product(tmp_path: Path, name: str, paths: list[str]) -> None:
    lay(
        tmp_path,
        *("a7.jpg", "a7_10.jpg", "a7_2.jpg", "a7_1.jpg", "a70.jpg", "B-8-3.png", "B-8-2.png", "cup_back.jpg"),
        *("cup_front.jpg", "900/10.jpg", "900/2.jpg", "900/1.jpg", "010/0108775.jpg", "55_1.jpg"),
        *("twice.jpg", "twice.webp", "twice-150x150.jpg"),
    )
    folders = PhotoFolders([tmp_path], ImportLog())
    assert [photo.path for photo in folders.of_product(name)] == paths


def test_lost_zeros_and_photos_of_two_products_are_warned_of(tmp_path: Path) -> None:
    lay(tmp_path, "00071.jpg", "dress.jpg", "dress-2.jpg")
    log = ImportLog()
    folders = PhotoFolders([tmp_path], log)
    for item in (Item("71"), Item("dress"), Item("dress-2"), Item("x", photo_name="none")):
        photos_of_item(folders, item)
    folders.warn()
    assert [warning.partition(",")[0].split(" (")[0] for warning in log.warnings] == [
        "ids have other leading zeros than their photos",
        "1 photos belong to two products by their names",
    ]
    assert "'71' and '00071.jpg'" in log.warnings[0]


def test_photos_of_nobody_are_counted_without_smaller_copies_and_hidden_files(tmp_path: Path) -> None:
    lay(tmp_path, "used.jpg", "used-150x150.jpg", "nobody.png", "deep/er/one.webp", ".hidden.jpg", "__MACOSX/x.jpg")
    (tmp_path / "README").write_text("not a photo")
    folders = PhotoFolders([tmp_path], ImportLog(), skip=tmp_path / "catalogue")
    lay(tmp_path / "catalogue", "photos_downloaded/own.jpg")
    folders.find("used.jpg")
    assert [photo.path for photo in folders.unused()] == ["nobody.png", "deep/er/one.webp"]


def test_links_inside_are_followed_and_circles_end(tmp_path: Path) -> None:
    lay(tmp_path, "disk/a.jpg", "shop/b.jpg")
    (tmp_path / "shop" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "shop" / "circle").symlink_to(tmp_path / "shop")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "shop" / "more")
    folders = PhotoFolders([tmp_path / "shop"], ImportLog())
    assert sorted(photo.path for photo in folders.unused()) == ["b.jpg", "more/a.jpg"]


def test_a_folder_that_nobody_named_is_not_walked_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmfusion.importers.photos._MOST_FILES", 2)
    lay(tmp_path, *(f"{number}/{number}.jpg" for number in range(9)))
    log = ImportLog()
    assert len(list(PhotoFolders([tmp_path], log, given=False).unused())) == 3 and "--photos" in log.warnings[0]
    assert len(list(PhotoFolders([tmp_path], log).unused())) == 9


# --- What the catalogue keeps ---------------------------------------------------------------------------------------


def store(tmp_path: Path, *roots: Path, **options: Any) -> PhotoStore:
    (tmp_path / "catalogue").mkdir(exist_ok=True)
    log = ImportLog()
    folders = PhotoFolders(roots, log, skip=tmp_path / "catalogue")
    return PhotoStore(tmp_path / "catalogue", folders, log, tmp_path / "failed.csv", **options)


def table(rows: dict[str, list[dict[str, Any]]]) -> pa.Table:
    return pa.table(
        {"product_id": list(rows), "image": pa.array([own or None for own in rows.values()], pa.list_(PHOTO))}
    )


def settled(photos: PhotoStore, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    parts = [one for part in photos.settled(table(rows)) for one in part.to_pylist()]
    return {one["product_id"]: one["image"] for one in parts}


def test_paths_go_through_a_link_below_the_catalogue(tmp_path: Path) -> None:
    one, two = lay(tmp_path / "one", "a/1.jpg", "a/2.jpg"), lay(tmp_path / "two", "b.jpg")
    own = lay(tmp_path / "catalogue", "export/c.jpg") / "export"
    for _ in range(2):
        photos = store(tmp_path, one, two, own)
        structs = photos.structs(Item("7", photos=["a/2.jpg", "a/1.jpg", "a/2.JPG", "b.jpg", "c.jpg"]))
        assert [photo["path"] for photo in structs] == [
            *("photos/a/2.jpg", "photos/a/1.jpg", "photos-2/b.jpg", "export/c.jpg")
        ]
        photos.check()
        photos.link()
        assert settled(photos, {"7": structs})["7"] == structs
        for photo in structs:
            assert decode_photo(photo, root=tmp_path / "catalogue").size == (24, 32)
    # The link of an earlier import, through which a table still goes, is left alone.
    other = lay(tmp_path / "other", "b.jpg")
    assert store(tmp_path, other).structs(Item("8", photos=["b.jpg"]))[0]["path"] == "photos-3/b.jpg"
    assert sorted(os.listdir(tmp_path / "catalogue")) == ["export", "photos", "photos-2"]


def test_photos_are_stored_as_bytes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmfusion.importers.photo_store._MOST_BYTES", 2 * len(jpeg()))
    folder = lay(tmp_path / "photos", *(f"{number}.jpg" for number in range(5)))
    photos = store(tmp_path, folder, embed=True)
    rows = {str(number): photos.structs(Item(str(number))) for number in range(5)}
    rows["none"] = photos.structs(Item("none"))
    (folder / "3.jpg").unlink()
    photos.check()
    photos.link()
    parts = list(photos.settled(table(rows)))
    assert [len(part) for part in parts] == [2, 3, 1], "a part has no more bytes than are to be in memory"
    kept = [one for part in parts for one in part.to_pylist()]
    assert [one["product_id"] for one in kept] == list(rows)
    assert kept[0]["image"] == [{"bytes": (folder / "0.jpg").read_bytes(), "path": "0.jpg"}]
    assert kept[3]["image"] is None and kept[5]["image"] is None
    assert photos.counts.missing == 1 and photos.counts.examples == [("3", "photos/3.jpg", "No such file or directory")]


def test_without_links_photos_are_stored_as_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    photos = store(tmp_path, lay(tmp_path / "photos", "a.jpg"))
    rows = {"a": photos.structs(Item("a"))}
    photos.link()
    assert settled(photos, rows)["a"][0]["bytes"] == (tmp_path / "photos" / "a.jpg").read_bytes()
    assert "Operation not permitted" in photos._log.warnings[0]


def test_bytes_of_a_reader_and_data_urls_are_kept(tmp_path: Path) -> None:
    photos = store(tmp_path)
    encoded = "data:image/jpeg;base64,/9j/"
    assert photos.structs(Item("a", photos=[jpeg(), jpeg(), encoded])) == [
        {"bytes": jpeg(), "path": None},
        {"bytes": b"\xff\xd8\xff", "path": None},
    ]
    assert photos.structs(Item("b", photos=[b"", "data:image/png;base64,%%"])) == []
    assert (photos.counts.named, photos.counts.found, photos.counts.products) == (5, 3, 1)


def test_counts_and_the_list_of_what_is_missing(tmp_path: Path) -> None:
    photos = store(tmp_path, lay(tmp_path / "photos", "a.jpg", "b_1.jpg", "b_2.jpg", "sku9.jpg", "nobody.jpg"))
    photos.structs(Item("1", photos=["a.jpg", "gone.jpg"]))
    photos.structs(Item("b"))
    photos.structs(Item("c", photos=["never.jpg"], photo_name="SKU9"))
    photos.structs(Item("d"))
    photos.structs(Item("e", photos=["x.jpg"]))
    photos.check()
    photos.close()
    counts = photos.counts
    assert (counts.named, counts.found, counts.missing, counts.by_id) == (6, 4, 2, 3)
    assert (counts.products, counts.unused) == (3, 1)
    with (tmp_path / "failed.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["product_id", "photo", "reason"],
        ["1", "gone.jpg", "no such file"],
        ["e", "x.jpg", "no such file"],
    ]


def test_fewer_than_half_is_an_error_with_the_paths_tried(tmp_path: Path) -> None:
    photos = store(tmp_path, lay(tmp_path / "photos", "a.jpg"))
    for name in ("a.jpg", "img/b.jpg", "https://cdn.example/c.jpg"):
        photos.structs(Item(name[0], photos=[name]))
    with pytest.raises(CatalogueError) as refused:
        photos.check()
    text = str(refused.value)
    assert "33% of the 3 photos" in text and "'img/b.jpg'" in text and str(tmp_path / "photos") in text
    assert "--photos DIR" in text and "--photos download" in text and "\n" not in text
    photos.check(allow_missing=True)


def test_files_that_are_no_photos_count_as_missing(tmp_path: Path) -> None:
    folder = lay(tmp_path / "photos", "a.jpg")
    for name in ("b", "c"):
        (folder / f"{name}.jpg").write_text("<html>404")
    photos = store(tmp_path, folder)
    for name in "abc":
        photos.structs(Item(name))
    with pytest.raises(CatalogueError, match=r"33% .*HTML"):
        photos.check()
    named = [line.partition("': ")[0][1:] for line in photos.unreadable]
    assert named == [str(folder / "b.jpg"), str(folder / "c.jpg")]
    photos.check(allow_missing=True)


def test_each_photo_of_bytes_counts(tmp_path: Path) -> None:
    photos = store(tmp_path, tmp_path / "nothing")
    for name, photo in (("a", b"<html>404"), ("b", b"<html>404 again"), ("c", jpeg())):
        photos.structs(Item(name, photos=[photo]))
    with pytest.raises(CatalogueError, match=r"33% of the 3 photos.*'a photo stored as bytes': "):
        photos.check()


def test_products_that_name_no_photo_do_not_count(tmp_path: Path) -> None:
    photos = store(tmp_path, tmp_path / "nothing")
    assert photos.structs(Item("a")) == []
    photos.check()


def test_folders_may_be_given_several_times(capsys: pytest.CaptureFixture[str]) -> None:
    for words, photos in (
        (["--photos", "a"], "a"),
        (["--photos", "a", "--photos=b", "--seed", "1", "--photos", "download"], ["a", "b", "download"]),
        (["--photos", "[a,b]"], ["a", "b"]),
        ([], None),
    ):
        assert parse_config("import", ["shop.csv", *words]).photos == photos
    with pytest.raises(SystemExit):
        parse_config("import", ["shop.csv", "--photos"])
    assert "expected one argument" in capsys.readouterr().err


# --- The samples ----------------------------------------------------------------------------------------------------


def test_photos_of_the_samples(samples: Path) -> None:
    log = ImportLog()
    shop = PhotoFolders([samples / "shopify" / "photos"], log)
    names = ["wren-red-front.jpg", "wren-detail.jpg?v=1", "mug-0042.png", "tee%20navy.jpg"]
    for name in names:
        assert not isinstance(shop.find(f"https://cdn.shopify.com/s/files/1/0001/products/{name}"), str)
    fashion = PhotoFolders([samples / "fashion" / "images"], log)
    assert [len(fashion.of_product(name)) for name in ("15970", "39386", "59263", "21379", "53759")] == [1] * 5
    assert len(list(fashion.unused())) == 1
    articles = PhotoFolders([samples / "fashion" / "hm"], log)
    ids = ("0108775015", "0108775044", "0990010001", "108775044")
    assert [len(articles.of_product(name)) for name in ids] == [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("source", "photos", "key"),
    [
        ("shopify/products_export_1.csv", "photos", "files products_export_1.csv photos_found_in_photos_folder"),
        ("merchant/feed.tsv", "photos", "files feed.tsv photos_found_in_photos_folder"),
        ("merchant/feed.xml", "photos", "files feed.xml photos_listed"),
        ("woocommerce", "photos", "files wc-product-export-1-6-2024-1717200000000.csv photos_listed"),
        ("fashion/styles.csv", "images", "files styles.csv photos"),
        ("fashion/hm/articles.csv", None, "files hm/articles.csv photos"),
        ("gs10m", None, "photos"),
        ("beir", None, "photos"),
        ("esci", None, "locale_us photos"),
        ("hf/imagefolder", None, "imagefolder photos"),
        ("hf/shard-000000.tar", None, "webdataset photos"),
    ],
)
def test_photos_of_the_samples_are_in_the_catalogue(
    samples: Path, tmp_path: Path, source: str, photos: str | None, key: str
) -> None:
    folder = samples / source.split("/")[0]
    settings = ImportSettings(photos=None if photos is None else str(folder / photos), locale="us")
    result = import_catalogue([str(samples / source)], tmp_path, settings)
    wanted = json.loads((folder / "expected.json").read_text())
    for name in key.split():
        wanted = wanted[name]
    rows = pq.read_table(tmp_path / "products.parquet", columns=["product_id", "image"]).to_pylist()
    found = {row["product_id"]: len(row["image"] or []) for row in rows}
    # "1, cut off: named when it is read"
    assert found == {name: int(str(count).partition(",")[0]) for name, count in wanted.items()}
    if source == "fashion/styles.csv":
        assert result.photos.unused == 1
        assert any("21379.jpg" in warning for warning in result.log.warnings), "a photo that is cut off is named"
    for row in rows:
        for photo in row["image"] or ():
            assert photo["bytes"] or (tmp_path / photo["path"]).is_file()
