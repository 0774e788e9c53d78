"""Catalogue: tables survive loading exactly, stay on disk, and every kind of bad input is named."""

import logging
import math
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmfusion.data.catalogue import Catalogue, CatalogueError
from mmfusion.data.toy_catalogue import write_toy_catalogue

Columns = dict[str, Any]
Tables = dict[str, Columns]
PHOTO = {"bytes": b"\x89PNG not decoded here", "path": "a.png"}
BLANK = {"bytes": None, "path": None}


def tables() -> Tables:
    return {
        "products": {
            "product_id": ["p0", "p1", "p2", "p3"],
            "title": ["Red dress", None, "   ", "👗 فستان أحمر 红色连衣裙"],
            "description": ["long", "", None, " kept as it is "],
            "image": [PHOTO, None, BLANK, PHOTO],
            "split": ["train", "train", "test", "test"],
            "price": [1.5, None, 3.0, 4.0],
        },
        "queries": {
            "query_id": ["q0", "q1", "q2"],
            "query": ["red dress", "فستان", "裙 👗"],
            "split": ["train", "test", "test"],
            "kind": ["visual", "textual", "mixed"],
        },
        "qrels": {
            "query_id": ["q2", "q0", "q0", "q1"],
            "product_id": ["p3", "p0", "p2", "p3"],
            "grade": [3, 3, 1, 0],
        },
    }


def write(folder: Path, content: Tables) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for table, columns in content.items():
        pq.write_table(pa.table(columns), folder / f"{table}.parquet")
    return folder


def load(folder: Path | str, tmp_path: Path, **options: Any) -> Catalogue:
    return Catalogue.load(folder, cache_dir=tmp_path / "cache", **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "shop", tables())


def test_load_gives_the_tables_and_the_judgements(folder: Path, tmp_path: Path) -> None:
    catalogue = load(folder, tmp_path)
    assert catalogue.product_ids.tolist() == ["p0", "p1", "p2", "p3"]
    assert catalogue.query_ids[1] == "q1"
    assert catalogue.qrels.grades([0, 1, 2], [0, 1, 2, 3]).tolist() == [[3, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 3]]
    assert catalogue.products[0]["image"] == PHOTO
    assert catalogue.products.cache_files and catalogue.queries.cache_files
    for part in ("4 products", "3 queries", "4 judgements", "shop"):
        assert part in repr(catalogue)


def test_text_is_exact_and_blank_text_is_lacking(folder: Path, tmp_path: Path) -> None:
    catalogue = load(folder, tmp_path)
    assert catalogue.titles([3, 1, 2, 0, 3]) == [
        "👗 فستان أحمر 红色连衣裙",
        "",
        "",
        "Red dress",
        "👗 فستان أحمر 红色连衣裙",
    ]
    assert [catalogue.product(row)["description"] for row in (3, 2)] == [" kept as it is ", ""]
    assert catalogue.query_texts([2, 1]) == ["裙 👗", "فستان"]
    assert catalogue.titles([]) == []
    assert catalogue.product(1) == {
        "product_id": "p1",
        "title": "",
        "description": "",
        "image": None,
        "split": "train",
        "price": None,
    }
    assert catalogue.product(2)["image"] is None
    assert catalogue.product(np.int64(0))["image"] == PHOTO


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_that_does_not_exist_is_an_index_error(folder: Path, tmp_path: Path, row: int) -> None:
    catalogue = load(folder, tmp_path)
    with pytest.raises(IndexError, match=f"row {row} does not exist. Rows are 0 to 3"):
        catalogue.product(row)
    with pytest.raises(IndexError, match=f"row {row} does not exist"):
        catalogue.titles([0, row])


def test_splits(folder: Path, tmp_path: Path) -> None:
    catalogue = load(folder, tmp_path)
    assert catalogue.product_rows("test").tolist() == [2, 3]
    assert catalogue.product_rows("val").tolist() == []
    assert catalogue.product_rows(None).tolist() == [0, 1, 2, 3]
    assert catalogue.product_rows("train").dtype == np.int64
    assert catalogue.query_rows("train").tolist() == [0]
    train = catalogue.split_qrels("train")
    assert (train.query.tolist(), train.product.tolist(), train.grade.tolist()) == ([0], [0], [3])
    assert len(catalogue.split_qrels(None)) == 4
    with pytest.raises(CatalogueError, match=r"split 'validation' does not exist.*train, val, test"):
        catalogue.query_rows("validation")


def test_optional_columns_may_be_absent(tmp_path: Path) -> None:
    content = tables()
    for name in ("description", "image", "split"):
        del content["products"][name]
    for name in ("split", "kind"):
        del content["queries"][name]
    catalogue = load(write(tmp_path / "shop", content), tmp_path)
    assert catalogue.product_rows("test").tolist() == [0, 1, 2, 3]
    assert catalogue.query_rows("train").tolist() == [0, 1, 2]
    assert catalogue.product(0)["image"] is None


def test_integer_ids_and_dictionary_columns_become_strings(tmp_path: Path) -> None:
    content = tables()
    content["products"]["product_id"] = pa.array([10, 11, 12, 13], pa.int32())
    content["products"]["split"] = pa.array(content["products"]["split"]).dictionary_encode()
    content["products"]["description"] = [None] * 4
    content["qrels"]["product_id"] = [13, 10, 12, 13]
    catalogue = load(write(tmp_path / "shop", content), tmp_path)
    assert catalogue.product_ids.tolist() == ["10", "11", "12", "13"]
    assert catalogue.product(3)["product_id"] == "13"
    assert catalogue.product_rows("test").tolist() == [2, 3]
    assert catalogue.qrels.grades([0], [0]).tolist() == [[3]]


@pytest.mark.parametrize("layout", ["products/{}.parquet", "products-{}.parquet"])
def test_a_table_may_be_several_files(tmp_path: Path, layout: str) -> None:
    content = tables()
    products = pa.table(content.pop("products"))
    folder = write(tmp_path / "a [b] *c?", content)
    (folder / "products").mkdir()
    pq.write_table(products.slice(2), folder / layout.format("00001-of-00002"))
    first = products.slice(0, 2).set_column(4, "split", pa.array(["train", "train"]).dictionary_encode())
    pq.write_table(first, folder / layout.format("00000-of-00002"))
    catalogue = load(folder, tmp_path)
    assert catalogue.product_ids.tolist() == ["p0", "p1", "p2", "p3"]


def test_photos_in_lists_and_by_path(tmp_path: Path) -> None:
    content = tables()
    by_path = {"bytes": None, "path": "images/a.png"}
    content["products"]["image"] = [[PHOTO, by_path], [], None, [BLANK, None]]
    folder = write(tmp_path / "shop", content)
    catalogue = load(folder, tmp_path)
    found = {"bytes": None, "path": str(folder / "images" / "a.png")}
    assert catalogue.photo_root == str(folder)
    assert catalogue.product(0)["image"] == [PHOTO, found]
    assert [catalogue.product(row)["image"] for row in (1, 2, 3)] == [[], None, []]


def test_image_feature_stays_undecoded(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", tables())
    features = datasets.Features(
        {"product_id": datasets.Value("string"), "title": datasets.Value("string"), "image": datasets.Image()}
    )
    records = {"product_id": ["p0", "p2", "p3"], "title": ["a", "b", "c"], "image": [PHOTO, None, PHOTO]}
    datasets.Dataset.from_dict(records, features=features).to_parquet(folder / "products.parquet")
    catalogue = load(folder, tmp_path)
    assert catalogue.products[0]["image"] == {"bytes": PHOTO["bytes"], "path": "a.png"}
    assert catalogue.product(1)["image"] is None


def test_nothing_is_written_outside_the_cache_and_changed_files_are_read_again(folder: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in folder.rglob("*"))
    first = load(folder, tmp_path)
    again = load(folder, tmp_path)
    assert again.products.cache_files == first.products.cache_files
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "shop"}
    stat = (folder / "products.parquet").stat()
    content = tables()
    content["products"]["title"][0] = "A longer title than before"
    write(folder, content)
    os.utime(folder / "products.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load(folder, tmp_path).titles([0]) == ["A longer title than before"]


def read_in_worker(catalogue: Catalogue) -> tuple[str, str, int]:
    return catalogue.product(3)["title"], catalogue.product_ids[3], int(catalogue.qrels.grades([2], [3])[0, 0])


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_map_the_same_files(folder: Path, tmp_path: Path, method: str) -> None:
    catalogue = load(folder, tmp_path)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(read_in_worker, (catalogue,)) == ("👗 فستان أحمر 红色连衣裙", "p3", 3)


def test_a_pickle_holds_no_table(tmp_path: Path) -> None:
    content = tables()
    content["products"]["image"] = [{"bytes": os.urandom(300_000), "path": None}] * 4
    content["products"]["title"] = ["x" * 100_000] * 4
    catalogue = load(write(tmp_path / "shop", content), tmp_path)
    assert catalogue.titles([3]) == ["x" * 100_000]
    data = pickle.dumps(catalogue)
    assert len(data) < 50_000
    assert len(catalogue.product_ids) == 4 and len(catalogue.query_ids) == 3
    assert len(pickle.dumps(catalogue)) == len(data), "the ids that were read travel too"
    assert pickle.loads(data).product(0)["image"] == content["products"]["image"][0]


def test_an_error_survives_the_trip_from_a_worker() -> None:
    error = CatalogueError("problem", "place", "Remedy.")
    assert str(error) == "place: problem. Remedy."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(type(error)(str(error))) == str(error)


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
IDS = st.lists(TEXT | st.sampled_from(["a,b", "a\nb", "a\r\n", '"', "👗", "فستان", "红", "\u202eabc", " "]), min_size=1)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(IDS.map(lambda ids: list(dict.fromkeys(ids))), st.data())
def test_ids_and_texts_round_trip(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], data: st.DataObject
) -> None:
    tmp_path = tmp_path_factory.mktemp("ids")
    titles = data.draw(st.lists(st.none() | TEXT, min_size=len(ids), max_size=len(ids)))
    order = data.draw(st.permutations(range(len(ids))))
    content: Tables = {
        "products": {"product_id": ids, "title": titles},
        "queries": {"query_id": ids, "query": [f"x{text}" for text in ids]},
        "qrels": {
            "query_id": [ids[at] for at in order],
            "product_id": [ids[at] for at in order],
            "grade": [at + 1 for at in order],
        },
    }
    catalogue = load(write(tmp_path / "shop", content), tmp_path)
    rows = range(len(ids))
    assert catalogue.product_ids.tolist() == catalogue.query_ids.tolist() == ids
    assert catalogue.titles(rows) == [title if title and title.strip() else "" for title in titles]
    assert catalogue.query_texts(rows) == content["queries"]["query"]
    assert np.diag(catalogue.qrels.grades(rows, rows)).tolist() == [row + 1 for row in rows]
    assert int(catalogue.qrels.grades(rows, rows).sum()) == sum(row + 1 for row in rows)


# --- Bad input ---------------------------------------------------------------------------------------------------


def put(table: str, column: str, values: Any) -> Callable[[Tables], None]:
    def change(content: Tables) -> None:
        content[table][column] = values

    return change


def drop(table: str, column: str | None = None) -> Callable[[Tables], None]:
    def change(content: Tables) -> None:
        if column is None:
            del content[table]
        else:
            del content[table][column]

    return change


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 3, 4], dtype=np.int32)), pa.py_buffer(b"a\xff\xfeb")]
)
NO_ROWS = pa.array([], pa.string())
BAD: dict[str, tuple[Callable[[Tables], None], list[str]]] = {
    "missing table": (drop("queries"), ["'queries' is missing", "products.parquet", "Add queries.parquet or"]),
    "missing product id": (drop("products", "product_id"), ["'product_id'", "products.parquet", "Add it, or rename"]),
    "missing title": (drop("products", "title"), ["'title'", "'products'", "is missing", "Add it, or rename"]),
    "missing query": (drop("queries", "query"), ["'query'", "'queries'", "is missing", "Add it, or rename"]),
    "missing grade": (drop("qrels", "grade"), ["'grade'", "'qrels'", "is missing", "Add it, or rename"]),
    "float ids": (
        put("products", "product_id", [0.0, 1.0, 2.0, 3.0]),
        ["'product_id'", "double", "products.parquet", "Convert it to strings or integers"],
    ),
    "title of numbers": (put("products", "title", [1, 2, 3, 4]), ["'title'", "int64", "Convert it to strings"]),
    "query of numbers": (put("queries", "query", [1, 2, 3]), ["'query'", "int64", "Convert it to strings"]),
    "split of numbers": (put("queries", "split", [0, 1, 2]), ["'split'", "int64", "Convert it to strings"]),
    "image of text": (put("products", "image", ["a"] * 4), ["'image'", "string", "struct with `bytes` and `path`"]),
    "image of other structs": (put("products", "image", [{"url": "a"}] * 4), ["'image'", "url", "struct with `bytes`"]),
    "image bytes of text": (put("products", "image", [{"bytes": "a"}] * 4), ["'image'", "struct with `bytes`"]),
    "float grade": (put("qrels", "grade", [1.0, 2.0, 3.0, 0.5]), ["'grade'", "double", "Convert it to integers"]),
    "boolean grade": (put("qrels", "grade", [True] * 4), ["'grade'", "bool", "Convert it to integers"]),
    "null grade": (
        put("qrels", "grade", [3, 3, None, 0]),
        ["'q0'", "'p2'", "is None", "row 2", "'grade'", "remove the judgement"],
    ),
    "all grades null": (put("qrels", "grade", [None] * 4), ["'q2'", "'p3'", "is None", "row 0"]),
    "negative grade": (
        put("qrels", "grade", [3, 3, 1, -2]),
        ["'q1'", "'p3'", "is -2", "row 3", "'grade'", "remove the judgement"],
    ),
    "duplicate product": (
        put("products", "product_id", ["p0", "p3", "p2", "p3"]),
        ["'p3'", "2 rows", "'products'", "rows 1, 3", "remove the duplicates"],
    ),
    "many duplicates": (
        put("products", "product_id", ["p0", "p0", "p3", "p3"]),
        ["'p0'", "rows 0, 1", "2 ids are used more than once"],
    ),
    "duplicate query": (
        put("queries", "query_id", ["q0", "q0", "q0"]),
        ["'q0'", "3 rows", "'queries'", "rows 0, 1, 2", "remove the duplicates"],
    ),
    "null product id": (put("products", "product_id", ["p0", None, "p2", "p3"]), ["None", "'product_id'", "row 1"]),
    "empty query id": (put("queries", "query_id", ["q0", "q1", ""]), ["''", "'query_id'", "row 2", "Give every row"]),
    "null id in the judgements": (
        put("qrels", "product_id", ["p3", None, "p2", "p3"]),
        ["'qrels'", "'product_id'", "None", "row 1"],
    ),
    "unknown products": (
        put("qrels", "product_id", ["p3", "x1", "x2", "x1"]),
        [
            "3 of 4 judgements",
            "2 ids",
            "'x1', 'x2'",
            "'qrels'",
            "'products'",
            "row 1",
            "--unknown_judgements drop",
            "unknown='drop'",
        ],
    ),
    "unknown query": (
        put("qrels", "query_id", ["q2", "q0", "zz", "q1"]),
        ["1 of 4 judgements", "'zz'", "'qrels'", "'queries'", "row 2", "unknown='drop'"],
    ),
    "pair judged twice": (
        lambda content: content["qrels"].update(query_id=["q0", "q1", "q0", "q1"], product_id=["p0", "p0", "p0", "p1"]),
        ["'q0'", "'p0'", "2 times", "grades 3, 1", "rows 0, 2", "Keep one judgement"],
    ),
    "unknown split of a query": (
        put("queries", "split", ["train", "validation", "test"]),
        ["'validation'", "'queries'", "'split'", "row 1", "train, val, test"],
    ),
    "null split of a query": (put("queries", "split", ["train", None, "test"]), ["None", "'split'", "row 1"]),
    "unknown split of a product": (
        put("products", "split", ["train", None, "dev", "test"]),
        ["'dev'", "'products'", "row 2", "train, val, test"],
    ),
    "null query": (put("queries", "query", ["a", None, "b"]), ["'q1'", "None", "'query'", "row 1", "Write its text"]),
    "blank query": (put("queries", "query", ["a", "b", " \n"]), ["'q2'", "' \\n'", "row 2", "Write its text"]),
    "not UTF-8": (put("queries", "query", NOT_UTF8), ["'queries'", "'query'", "rows 0 to 2", "Write it as UTF-8"]),
    "no products": (
        lambda content: content.update(products={"product_id": NO_ROWS, "title": NO_ROWS}),
        ["'products' has no rows", "shop", "Write at least one row"],
    ),
    "path out of the folder": (
        put("products", "image", [PHOTO, None, BLANK, {"bytes": None, "path": "images/../../x.png"}]),
        ["'images/../../x.png'", "'image'", "row 3", "outside", "relative to the catalogue's folder"],
    ),
    "absolute path": (
        put("products", "image", [PHOTO, {"bytes": None, "path": "/etc/passwd"}, BLANK, None]),
        ["'/etc/passwd'", "row 1", "outside"],
    ),
    "a URL": (
        put("products", "image", [PHOTO, {"bytes": None, "path": "https://shop.example/1.jpg"}, BLANK, None]),
        ["the URL 'https://shop.example/1.jpg'", "row 1", "mmfusion import", "--photos download"],
    ),
    "names of photos as texts": (
        put("products", "image", ["1.jpg", "https://shop.example/2.jpg", None, None]),
        ["'image'", "has type string", "--photos DIR", "--photos download"],
    ),
    "path out of the folder in a list": (
        put("products", "image", [[PHOTO], None, [PHOTO, {"bytes": None, "path": "../x.png"}], []]),
        ["'../x.png'", "'image'", "row 2", "outside"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_refused_by_value_place_and_remedy(tmp_path: Path, name: str) -> None:
    change, parts = BAD[name]
    content = tables()
    change(content)
    with pytest.raises(CatalogueError) as caught:
        load(write(tmp_path / "shop", content), tmp_path)
    for part in [*parts, "shop"]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_ids_can_be_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = tables()
    content["qrels"].update(query_id=["q2", "zz", "q0", "q1"], product_id=["p3", "p0", "x1", "x2"])
    folder = write(tmp_path / "shop", content)
    with caplog.at_level(logging.WARNING, logger="mmfusion"):
        catalogue = load(folder, tmp_path, unknown="drop")
    assert len(catalogue.qrels) == 1
    assert "1 of 4 judgements name 1 ids" in caplog.text and "2 of 4 judgements name 2 ids" in caplog.text
    assert caplog.text.count("dropped") == 2
    content["qrels"]["query_id"] = ["zz"] * 4
    with pytest.raises(CatalogueError, match="no judgement is left"):
        load(write(tmp_path / "shop", content), tmp_path, unknown="drop")
    with pytest.raises(CatalogueError, match=r"unknown='ignore'.*Use 'error' or 'drop'"):
        load(folder, tmp_path, unknown="ignore")


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1" + b"\x00" * 40 + b"PAR1"])
def test_a_file_that_is_not_parquet_is_named(folder: Path, tmp_path: Path, content: bytes) -> None:
    (folder / "queries.parquet").write_bytes(content)
    with pytest.raises(CatalogueError, match=r"queries\.parquet.*cannot be read.*complete Parquet file"):
        load(folder, tmp_path)


def test_damaged_data_behind_a_good_footer_is_named(folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "products.parquet").read_bytes())
    data[4:400] = os.urandom(396)
    (folder / "products.parquet").write_bytes(bytes(data))
    with pytest.raises(CatalogueError, match=r"'products\.parquet'.*cannot be read.*Write the file again"):
        load(folder, tmp_path)


def test_files_of_one_table_must_agree(folder: Path, tmp_path: Path) -> None:
    products = pq.read_table(folder / "products.parquet")
    (folder / "products.parquet").rename(folder / "products-0.parquet")
    pq.write_table(products.drop_columns(["price"]), folder / "products-1.parquet")
    with pytest.raises(CatalogueError, match=r"products-1\.parquet.*'price' is not in all files.*Write all files"):
        load(folder, tmp_path)
    pq.write_table(products.set_column(5, "price", pa.array(["a"] * 4)), folder / "products-1.parquet")
    with pytest.raises(CatalogueError, match=r"files of table 'products'.*price.*same types"):
        load(folder, tmp_path)
    pq.write_table(products, folder / "products.parquet")
    with pytest.raises(CatalogueError, match=r"more than once: products\.parquet and products-\*\.parquet.*Keep one"):
        load(folder, tmp_path)


def test_a_column_that_is_there_twice_is_named(folder: Path, tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["q"]), pa.array(["a"]), pa.array(["b"])], ["query_id", "query", "query"])
    pq.write_table(twice, folder / "queries.parquet")
    with pytest.raises(CatalogueError, match=r"queries\.parquet.*'query' is there twice.*Rename"):
        load(folder, tmp_path)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("{tmp}/absent", ["absent", "no such folder", "Give a folder"]),
        ("{tmp}/shop/products.parquet", ["products.parquet", "is a file", "folder that holds it"]),
        ("memory://absent-{id}", ["absent", "no such folder", "Give a folder"]),
        ("nonsense://shop", ["nonsense", "cannot be read", "Give a folder"]),
    ],
)
def test_a_source_that_is_not_there_is_named(folder: Path, tmp_path: Path, source: str, parts: list[str]) -> None:
    with pytest.raises(CatalogueError) as caught:
        load(source.format(tmp=tmp_path, id=tmp_path.name), tmp_path)
    for part in parts:
        assert part in str(caught.value)


def test_a_revision_is_for_the_hub(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"revision='main' for a folder.*drop it"):
        load(folder, tmp_path, revision="main")


# --- URLs and the Hub -----------------------------------------------------------------------------------


def test_a_url_of_a_folder(folder: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    name = f"shop-{tmp_path.name}"
    memory.put(str(folder) + "/", f"/{name}/", recursive=True)
    for url in (f"memory://{name}", f"file://{folder}"):
        catalogue = load(url, tmp_path)
        assert catalogue.titles([0]) == ["Red dress"]
        assert catalogue.photo_root == (None if url.startswith("memory") else str(folder))
    memory.rm(f"/{name}", recursive=True)


def test_photos_by_path_are_refused_where_they_cannot_be_found(folder: Path, tmp_path: Path) -> None:
    content = tables()
    content["products"]["image"][3] = {"bytes": None, "path": "images/a.png"}
    write(folder, content)
    memory = fsspec.filesystem("memory")
    name = f"shop-{tmp_path.name}"
    memory.put(str(folder) + "/", f"/{name}/", recursive=True)
    with pytest.raises(
        CatalogueError, match=r"row 3.*'images/a\.png', and it is not in a local folder.*Store the photo"
    ):
        load(f"memory://{name}", tmp_path)
    memory.rm(f"/{name}", recursive=True)


def pretend_hub(
    monkeypatch: pytest.MonkeyPatch, folder: Path, cache: Path, *, products_in_two: bool = False
) -> list[Any]:
    """Answers for the Hub with data sets as `push_to_hub` would have stored them, Image features included."""
    calls: list[Any] = []
    original = datasets.load_dataset

    def answer(name: str, config: str, **options: Any) -> Any:
        calls.append((name, config, options.get("revision")))
        files = {"train": str(folder / f"{config}.parquet")}
        if config == "products" and products_in_two:
            files["test"] = files["train"]
        features = datasets.Features.from_arrow_schema(pq.read_schema(folder / f"{config}.parquet"))
        if "image" in features:
            image = datasets.Image()
            features["image"] = datasets.List(image) if isinstance(features["image"], datasets.List) else image
        return original("parquet", data_files=files, features=features, cache_dir=str(cache))

    monkeypatch.setattr("mmfusion.data.catalogue.datasets.load_dataset", answer)
    return calls


@pytest.mark.parametrize("on_the_hub", [False, True])
def test_products_without_their_photos(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_the_hub: bool
) -> None:
    if on_the_hub:
        pretend_hub(monkeypatch, folder, tmp_path / "downloaded")
    source = "someone/shop-data" if on_the_hub else str(folder)
    cache = tmp_path / "cache"
    whole = Catalogue.load_products(source, cache_dir=cache)
    bare = Catalogue.load_products(source, cache_dir=cache, photos=False)
    assert bare.products.column_names == [name for name in whole.products.column_names if name != "image"]
    assert bare.products.to_dict() == whole.products.remove_columns("image").to_dict()
    assert on_the_hub or not any(
        PHOTO["bytes"] in Path(file["filename"]).read_bytes() for file in bare.products.cache_files
    )


@pytest.mark.parametrize("several", [False, True])
def test_a_hub_data_set(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    content = tables()
    content["products"]["product_id"] = [10, 11, 12, 13]
    content["qrels"]["product_id"] = [13, 10, 12, 13]
    if several:
        content["products"]["image"] = [[PHOTO, PHOTO], [], [PHOTO], None]
    write(folder, content)
    local = load(folder, tmp_path)
    calls = pretend_hub(monkeypatch, folder, tmp_path / "cache")
    catalogue = load("someone/shop-data", tmp_path, revision="v1")
    assert calls == [("someone/shop-data", table, "v1") for table in ("products", "queries", "qrels")]
    assert catalogue.product_ids.tolist() == ["10", "11", "12", "13"]
    assert [catalogue.product(row) for row in range(4)] == [local.product(row) for row in range(4)]
    assert catalogue.products.cache_files
    assert pickle.loads(pickle.dumps(catalogue)).product(0) == local.product(0)


def test_hub_splits_need_a_column(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tables()
    del content["products"]["split"]
    pretend_hub(monkeypatch, write(folder, content), tmp_path / "cache", products_in_two=True)
    with pytest.raises(CatalogueError, match=r"'someone/shop', configuration 'products'.*2 splits.*Add the column"):
        load("someone/shop", tmp_path)


def test_a_hub_data_set_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub\nand a second line")

    monkeypatch.setattr("mmfusion.data.catalogue.datasets.load_dataset", refuse)
    with pytest.raises(CatalogueError, match=r"Hub data set 'someone/shop'.*Couldn't reach.*Check the id") as caught:
        load("someone/shop", tmp_path)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("MMFUSION_BENCH" not in os.environ, reason="MMFUSION_BENCH names no catalogue")
def test_a_real_catalogue(tmp_path: Path) -> None:
    catalogue = Catalogue.load(os.environ["MMFUSION_BENCH"], cache_dir=tmp_path)
    splits = [catalogue.split_qrels(split) for split in ("train", "val", "test")]
    assert all(len(qrels) > 0 for qrels in splits)


def test_columns_without_any_value_may_be_of_numbers_and_others_name_the_value(tmp_path: Path) -> None:
    missing = {"title": ["red", "blue"], "description": [math.nan, None], "image": pa.nulls(2, pa.int32())}
    pq.write_table(pa.table({"product_id": ["a", "b"], **missing}), tmp_path / "products.parquet")
    products = Catalogue.load_products(tmp_path, cache_dir=tmp_path / "cache")
    assert [products.product(row)["description"] for row in (0, 1)] == ["", ""]
    assert products.product(0)["image"] is None
    for name, number in (("description", 1.5), ("description", 3), ("image", 0.5)):
        pq.write_table(
            pa.table({"product_id": ["a", "b"], "title": ["x", "y"], name: [None, number]}),
            tmp_path / "products.parquet",
        )
        with pytest.raises(
            CatalogueError, match=rf"products.parquet', row 1: column '{name}' has type .*: it holds {number}\. Convert"
        ):
            Catalogue.load_products(tmp_path, cache_dir=tmp_path / "cache2")
    pq.write_table(pa.table({"product_id": [1.0, math.nan], "title": ["x", "y"]}), tmp_path / "products.parquet")
    with pytest.raises(
        CatalogueError, match=r"'product_id'.*double, not strings or integers.*become floats where one is missing"
    ):
        Catalogue.load_products(tmp_path, cache_dir=tmp_path / "cache3")


@pytest.mark.parametrize(
    ("column", "values", "split", "message"),
    [
        (
            "split",
            ["train"] * 3,
            "test",
            r"'test' has no queries with judgements \(train: 1\); give --split train, or write",
        ),
        (
            "kind",
            ["a"] * 3,
            "val",
            r"judgements \(train: 1, test: 1\); give --split train or test, or write val queries$",
        ),
        (
            "grade",
            [0, 3, 1, 0],
            "test",
            r"all 2 judgements of the split 'test' have grade 0, .* \(train: 1\); give --sp",
        ),
        (
            "product_id",
            ["p0", "p0", "p2", "p1"],
            "test",
            r"the 2 judgements of its queries are of products of other spl",
        ),
        ("product_id", ["p0", "p2", "p3", "p1"], "test", r"no other split has any.*; check the column 'split'"),
        ("kind", ["a"] * 3, "dev", "split 'dev' does not exist. Use one of train, val, test"),
    ],
)
def test_a_split_without_judged_queries_says_which_have_some(
    tmp_path: Path, column: str, values: list[Any], split: str, message: str
) -> None:
    content = tables()
    content["queries" if column in ("split", "kind") else "qrels"][column] = values
    catalogue = load(write(tmp_path / "shop", content), tmp_path)
    with pytest.raises(CatalogueError, match=message) as caught:
        catalogue.judged_queries(split)
    assert "\n" not in str(caught.value)


def test_judged_queries_are_those_with_a_judged_product_of_their_split(folder: Path, tmp_path: Path) -> None:
    catalogue = load(folder, tmp_path)
    assert catalogue.judged_queries("train").tolist() == [0] and catalogue.judged_queries("test").tolist() == [1, 2]
    assert catalogue.judged_queries(None).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("ids", "paths", "warned"),
    [
        (["108775", "7"], ["010/0108775.jpg", "0000007_2.jpg"], True),
        ([108775, 7], ["0108775.jpg", None], True),
        (["108775", "7"], [["0108775.jpg", "0108775-b.jpg"], None], True),
        (["0108775", "7"], ["0108775.jpg", "7.jpg"], False),
        (["108775", "7"], ["0108775.jpg", "7.jpg"], False),
        (["108775", "7"], ["0108775a.jpg", "front.jpg"], False),
        (["a7", "7"], ["0a7.jpg", None], False),
    ],
)
@pytest.mark.parametrize("stored", [True, False])
def test_ids_without_the_zeros_of_their_photos_are_a_warning(
    tmp_path: Path, ids: list[Any], paths: list[Any], warned: bool, stored: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def photo(path: str | None) -> dict[str, Any] | None:
        return None if path is None else {"bytes": b"photo" if stored else None, "path": path}

    images = [[photo(one) for one in path] if isinstance(path, list) else photo(path) for path in paths]
    folder = write(tmp_path / "shop", {"products": {"product_id": ids, "title": ["a", "b"], "image": images}})
    with caplog.at_level(logging.WARNING, logger="mmfusion"):
        Catalogue.load_products(folder, cache_dir=tmp_path / "cache")
    assert ("lost their leading zeros" in caplog.text and "dtype=str" in caplog.text) is warned


@pytest.mark.parametrize(
    ("known", "named", "hint"),
    [("0071", 71, "('0071' is there"), ("71", "0071", "('71' is there"), ("0171", "71", ""), ("a71", "71", "")],
)
def test_judgements_whose_ids_lost_their_zeros_are_told_so(tmp_path: Path, known: str, named: Any, hint: str) -> None:
    content: Tables = {
        "products": {"product_id": [known, "x"], "title": ["a", "b"]},
        "queries": {"query_id": ["q"], "query": ["mug"]},
        "qrels": {"query_id": ["q"], "product_id": [named], "grade": [1]},
    }
    with pytest.raises(CatalogueError, match="does not hold") as raised:
        load(write(tmp_path / "shop", content), tmp_path)
    assert ("leading zeros were lost" in str(raised.value)) is bool(hint) and hint in str(raised.value)


@pytest.mark.parametrize(("levels", "warned"), [(10, False), (11, True)])
def test_scores_in_place_of_grades_are_a_warning(
    tmp_path: Path, levels: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [f"p{row}" for row in range(levels)]
    content: Tables = {
        "products": {"product_id": ids, "title": ids},
        "queries": {"query_id": ["q"], "query": ["mug"]},
        "qrels": {"query_id": ["q"] * levels, "product_id": ids, "grade": list(range(90, 90 + levels))},
    }
    with caplog.at_level(logging.WARNING, logger="mmfusion"):
        load(write(tmp_path / "shop", content), tmp_path)
    said = f"{levels} different grades, from 90 to {89 + levels}" in caplog.text and "--relevant_grade" in caplog.text
    assert said is warned


@pytest.mark.parametrize("split_products", [True, False])
def test_queries_without_splits_are_train_queries_and_none_is_kept_for_a_test(
    tmp_path: Path, split_products: bool
) -> None:
    content = tables()
    del content["queries"]["split"]
    if not split_products:
        del content["products"]["split"]
    catalogue = load(write(tmp_path / "shop", content), tmp_path)
    for split in ("val", "test"):
        with pytest.raises(CatalogueError, match=rf"no column 'split'.*no[nt]e? is a {split} query.*--split train"):
            catalogue.judged_queries(split)
    assert 0 in catalogue.judged_queries("train").tolist()


def test_without_a_cache_folder_a_temporary_one_holds_the_tables(tmp_path: Path) -> None:
    write_toy_catalogue(tmp_path / "catalogue", num_products=40)
    before = sorted(path for path in tmp_path.rglob("*"))
    catalogue = Catalogue.load(tmp_path / "catalogue")
    (file,) = {Path(one["filename"]).parent for one in catalogue.products.cache_files}
    assert file.name.startswith("mmfusion-") or file.parent.name.startswith("mmfusion-")
    assert sorted(path for path in tmp_path.rglob("*")) == before
