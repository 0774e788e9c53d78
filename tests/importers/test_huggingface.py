"""Data sets of Hugging Face: saved ones, imagefolders, and tables with photos."""

import io
import json
import os
import resource
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi
from loopback_hub.server import LoopbackHub
from PIL import Image
from readers import read

from mmfusion.data.catalogue_schema import CatalogueError

FEATURES = datasets.Features(
    {
        "sku": datasets.Value("string"),
        "name": datasets.Value("string"),
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=["pan", "lid"]),
        "price": datasets.Value("float64"),
    }
)


def photo(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (4, 4), colour)


def saved(*skus: str, features: datasets.Features = FEATURES) -> datasets.Dataset:
    rows = [
        {"sku": sku, "name": f"Lid {sku}", "picture": photo() if at else None, "kind": 1, "price": 2.5}
        for at, sku in enumerate(skus)
    ]
    return datasets.Dataset.from_list(rows, features=features)


def png(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(colour).save(path)


def test_saved_data_set(tmp_path: Path) -> None:
    saved("007", "1E5", "8").save_to_disk(tmp_path / "d", num_shards=2)
    found = read(tmp_path / "d")
    assert found.format == "huggingface"
    assert [(item.item_id, item.title, len(item.photos)) for item in found.items] == [
        ("007", "Lid 007", 0),
        ("1E5", "Lid 1E5", 1),
        ("8", "Lid 8", 1),
    ]
    assert found.items[1].photos[0][:4] == b"\x89PNG"
    assert found.items[1].metadata == {"kind": "lid", "price": 2.5}
    assert found.items[2].place == "data-00001-of-00002.arrow, line 1"


def test_saved_splits(tmp_path: Path) -> None:
    splits = {"train": saved("1", "2"), "validation": saved("3"), "test": saved("2")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path)
    found = read(tmp_path)
    assert [(item.item_id, item.metadata["split"]) for item in found.items] == [
        ("1", "train"),
        ("2", "train"),
        ("3", "val"),
        ("2", "test"),
    ]
    assert "'2' (train and test)" in found.log.warnings[0]


def test_rows_that_were_chosen_are_in_the_saved_order(tmp_path: Path) -> None:
    saved("1", "2", "3").select([2, 0]).save_to_disk(tmp_path / "d")
    assert read(tmp_path / "d").ids == ["3", "1"]
    state = tmp_path / "d" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(CatalogueError, match="another order"):
        read(tmp_path / "d")


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# Lids")
    for split, skus in (("train", ["1", "2"]), ("test", ["3", "4"])):
        pq.write_table(saved(*skus).data.table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    found = read(tmp_path)
    assert found.format == "huggingface"
    assert {item.item_id: (item.metadata["split"], len(item.photos)) for item in found.items} == {
        "1": ("train", 0),
        "2": ("train", 1),
        "3": ("test", 0),
        "4": ("test", 1),
    }


@pytest.mark.usefixtures("hub_client_environment")
def test_id_of_the_hub(hub: LoopbackHub) -> None:
    name, file = hub.unique("lids"), io.BytesIO()
    pq.write_table(saved("07", "8").data.table, file)
    HfApi().create_repo(name, repo_type="dataset")
    HfApi().upload_file(
        path_or_fileobj=file, path_in_repo="data/train-00000-of-00001.parquet", repo_id=name, repo_type="dataset"
    )
    found = read(name)
    assert (found.format, found.ids, len(found.items[1].photos)) == ("huggingface", ["07", "8"], 1)


def test_several_columns_and_lists_of_photos(tmp_path: Path) -> None:
    def struct(data: bytes | None, path: str | None = None) -> dict[str, Any]:
        return {"bytes": data, "path": path}

    rows = [
        {"id": "a", "title": "Jar", "front": struct(b"1"), "more": [struct(b"2"), struct(None, "x/3.jpg")]},
        {"id": "b", "title": "Lid", "front": struct(None), "more": []},
        {"id": "c", "title": "Pan", "front": None, "more": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert {item.item_id: item.photos for item in found.items} == {"a": [b"1", b"2", "x/3.jpg"], "b": [], "c": []}


def test_ids_from_the_names_of_photos(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": b"1", "path": name}, "text": text} for name, text in [("07.jpg", "a"), ("07.png", "b")]]
    pq.write_table(pa.Table.from_pylist([*rows, {"image": None, "text": "c"}]), tmp_path / "a.parquet")
    found = read(tmp_path)
    assert {item.item_id: item.title for item in found.items} == {"07": "a", "07-2": "b", "000003": "c"}
    assert found.imported.mapping == {"product_id": "name of the photo", "title": "text", "image": "image"}
    assert "Name one with --id_column" in found.log.warnings[0]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_imagefolder_with_several_photos_of_an_id_apart(tmp_path: Path, kind: str) -> None:
    rows = [
        {"file_name": "in/test_0001.png", "item_id": "0001", "title": "Jar", "brand": ""},
        {"file_name": "in/0002.png", "item_id": "0002", "title": "Lid", "brand": "Wren"},
        {"file_name": "in/0001 back.png", "item_id": "0001", "title": "", "brand": "Kite"},
    ]
    for row in rows:
        png(tmp_path / row["file_name"])
    path = tmp_path / f"metadata.{kind}"
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = read(tmp_path)
    assert found.format == "huggingface"
    # A photo named test… is a photo like others.
    assert {item.item_id: (item.title, item.photos) for item in found.items} == {
        "0001": ("Jar", [str(tmp_path / "in/test_0001.png"), str(tmp_path / "in/0001 back.png")]),
        "0002": ("Lid", [str(tmp_path / "in/0002.png")]),
    }
    assert found.by_id["0001"].metadata["brand"] == "Kite"
    assert not found.log.left_out


def test_imagefolders_of_splits_name_photos_from_their_own_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        png(tmp_path / split / "1.png")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,id,title\n1.png,{split},Jar\n")
    items = list(read(tmp_path).items)
    photos = {item.item_id: item.photos for item in items}
    assert photos == {split: [str(tmp_path / split / "1.png")] for split in ("train", "test")}
    assert [item.metadata["split"] for item in items] == ["train", "test"]


def test_imagefolder_without_ids_and_with_several_columns_of_names(tmp_path: Path) -> None:
    rows = [{"front_file_name": "a/1.png", "more_file_names": ["a/2.png", "a/3.png"], "text": "a jar"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (item,) = read(tmp_path).items
    assert (item.item_id, item.title) == ("a/1", "a jar")
    assert item.photos == [str(tmp_path / name) for name in ("a/1.png", "a/2.png", "a/3.png")]


@pytest.mark.parametrize("name", ["{}.parquet", "{}-00000-of-00001.parquet", "{}/0.parquet"])
def test_a_catalogue_is_none_to_import(tmp_path: Path, name: str) -> None:
    rows = {"products": {"product_id": "1", "title": "Jar"}, "queries": {"query_id": "1", "query": "jar"}}
    for table, row in (rows | {"qrels": {"query_id": "1", "product_id": "1", "grade": 1}}).items():
        path = tmp_path / name.format(table)
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist([row]), path)
    with pytest.raises(CatalogueError, match="is a catalogue already"):
        read(tmp_path)


def test_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,title\n1,Jar\n")
    with pytest.raises(CatalogueError, match="no data set of Hugging Face"):
        read(tmp_path / "a.csv", format="huggingface")


def test_sample(samples: Path) -> None:
    expected = json.loads((samples / "hf" / "expected.json").read_text())["imagefolder"]
    found = read(samples / "hf" / "imagefolder")
    assert found.ids == expected["product_ids"]
    assert {item.item_id: len(item.photos) for item in found.items} == expected["photos"]


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    for at in range(60):
        row = {"id": f"{at:02}", "title": "Jar", "image": {"bytes": b"1", "path": None}}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{at:02}.parquet")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, hard))
        found = read(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.ids == [f"{at:02}" for at in range(60)]
