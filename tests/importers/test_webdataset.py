"""Shards of webdataset as products."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from readers import read

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers import ReadSettings, find_importer, open_source
from mmfusion.importers.items import ImportLog


def write(path: Path, files: dict[str, Any]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_products_of_samples(tmp_path: Path) -> None:
    files = {
        "000.jpg": b"a",
        "000.json": {"item_id": "0071", "title": "Clay <b>pot</b>", "price": 12.5, "brand": "Wren"},
        "001.0.webp": b"b",
        "001.1.png": b"c",
        "001.json": {"item_id": "1E5", "title": "Tea pot"},
        "002.json": {"item_id": "20000000000000000001", "title": "No photo", "price": None},
    }
    write(tmp_path / "part-00.tar", files)
    write(tmp_path / "part-01.tar", {"000.jpg": b"d", "000.json": {"item_id": "4", "title": "Mat"}})
    found = read(tmp_path / "part-*.tar")
    assert found.format == "webdataset"
    assert {item.item_id: (item.title, item.photos) for item in found.items} == {
        "0071": ("Clay pot", [b"a"]),
        "1E5": ("Tea pot", [b"b", b"c"]),
        "20000000000000000001": ("No photo", []),
        "4": ("Mat", [b"d"]),
    }
    assert found.items[0].metadata["price"] == 12.5
    assert found.items[0].metadata["brand"] == "Wren"
    assert found.items[0].place.endswith("part-00.tar, sample 000")
    assert not found.imported.groups


def test_keys_and_captions_where_there_is_no_json(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.tar", {"x/0001.jpg": b"a", "x/0001.txt": b"a jar", "x/0002.txt": b"a lid"}))
    assert [(item.item_id, item.title) for item in found.items] == [("x/0001", "a jar"), ("x/0002", "a lid")]
    assert found.imported.mapping == {
        "product_id": "key of the sample",
        "title": "txt",
        "image": "photos of the sample",
    }


def test_ids_as_files(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.tar", {"7.jpg": b"a", "7.id": b"0042", "7.txt": b"a jar", "7.cls": b"3"}))
    assert [(item.item_id, item.metadata["cls"]) for item in found.items] == [("0042", "3")]


def test_the_key_stands_in_for_an_id_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "sizes.csv").write_text("shard,size\na.tar,2\n")
    write(tmp_path / "a.tar", {"7.json": {"id": "9", "title": "Jar"}, "8.json": {"title": "Lid"}})
    found = read(tmp_path)
    assert [(item.item_id, item.title) for item in found.items] == [("9", "Jar"), ("8", "Lid")]
    assert found.log.warnings == ["sizes.csv is not a table of shards and is not read"]


def test_columns_that_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"7.jpg": b"a", "7.json": {"id": "9", "nr": "08", "heading": "Jar"}})
    found = read(path, columns={"title": "heading"}, id_column="nr")
    assert [(item.item_id, item.title, item.photos) for item in found.items] == [("08", "Jar", [b"a"])]


def test_photos_are_read_one_product_at_a_time(tmp_path: Path) -> None:
    files = {f"{at:03}.{kind}": b"{}" if kind == "json" else bytes(9) for at in range(50) for kind in ("jpg", "json")}
    path = write(tmp_path / "a.tar", files | {"050.json": {"title": "x"}})
    source = open_source([str(path)], tmp_path)
    items = iter(find_importer(source)[1].read(source, ReadSettings(), ImportLog()).items)
    next(items)
    path.write_bytes(path.read_bytes()[: 4096 * 10])
    # The rest is read when it is asked for.
    assert sum(1 for _ in items) < 49


def test_without_a_shard(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,title\n1,Jar\n")
    with pytest.raises(CatalogueError, match="no tar file"):
        read(tmp_path / "a.csv", format="webdataset")


def test_sample(samples: Path) -> None:
    expected = json.loads((samples / "hf" / "expected.json").read_text())["webdataset"]
    found = read(samples / "hf" / "shard-000000.tar")
    assert found.ids == expected["product_ids"]
    assert {item.item_id: len(item.photos) for item in found.items} == expected["photos"]
    assert found.items[0].metadata["price"] == 50
