"""Catalogues from records: each kind of input gives the values that were given, with the checks of loading."""

import math
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_encoders import tiny_processor

from mmfusion.data.catalogue import Catalogue, CatalogueError
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.photos import PhotoReader


def picture(shade: int = 90, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(shade).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(photo: Image.Image) -> bytes:
    file = BytesIO()
    photo.save(file, "PNG")
    return file.getvalue()


PRODUCTS: list[dict[str, Any]] = [
    {"product_id": "p0", "title": "Red dress", "split": "train", "price": 1.5},
    {"product_id": "p1", "title": None, "description": " as it is ", "split": "train", "price": 2.5},
    {"product_id": "p2", "title": "Mug", "description": "", "split": "test", "price": 3.5},
]
QUERIES = [
    {"query_id": "q0", "query": "red dress", "split": "train", "kind": "visual"},
    {"query_id": "q1", "query": "mug", "split": "test", "kind": "textual"},
]
QRELS = [
    {"query_id": "q1", "product_id": "p2", "grade": 3},
    {"query_id": "q0", "product_id": "p0", "grade": 2},
]


def as_iterable(rows: list[dict[str, Any]]) -> datasets.IterableDataset:
    def generate() -> Iterator[dict[str, Any]]:
        yield from rows

    return datasets.IterableDataset.from_generator(generate)


KINDS: dict[str, Any] = {
    "dicts": list,
    "generator": lambda rows: (dict(row) for row in rows),
    "pandas": pd.DataFrame,
    "arrow": pa.Table.from_pylist,
    "data set": datasets.Dataset.from_list,
    "shuffled data set": lambda rows: datasets.Dataset.from_list(rows[::-1]).select(range(len(rows) - 1, -1, -1)),
    "iterable data set": as_iterable,
}


def filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_table_gives_the_rows_that_were_given(kind: str) -> None:
    make = KINDS[kind]
    catalogue = Catalogue.from_records(*(make(filled(rows)) for rows in (PRODUCTS, QUERIES, QRELS)))
    assert catalogue.product_ids.tolist() == ["p0", "p1", "p2"] and catalogue.query_ids.tolist() == ["q0", "q1"]
    assert catalogue.titles([2, 1, 0]) == ["Mug", "", "Red dress"]
    assert [catalogue.product(row)["description"] for row in range(3)] == ["", " as it is ", ""]
    assert catalogue.query_texts([1, 0]) == ["mug", "red dress"]
    assert catalogue.product(1)["price"] == 2.5
    assert catalogue.product_rows("train").tolist() == [0, 1] and catalogue.query_rows("test").tolist() == [1]
    assert catalogue.qrels.grades([0, 1], [0, 1, 2]).tolist() == [[2, 0, 0], [0, 0, 3]]


def test_a_catalogue_in_memory_is_the_one_on_disk(tmp_path: Path) -> None:
    for name, rows in (("products", PRODUCTS), ("queries", QUERIES), ("qrels", QRELS)):
        pq.write_table(pa.Table.from_pylist(filled(rows)), tmp_path / f"{name}.parquet")
    loaded = Catalogue.load(tmp_path, cache_dir=tmp_path / "cache")
    made = Catalogue.from_records(PRODUCTS, QUERIES, QRELS)
    assert [made.product(row) for row in range(3)] == [loaded.product(row) for row in range(3)]
    assert made.contents_digest() == loaded.contents_digest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(png(picture(1)))
    return tmp_path


def read(catalogue: Catalogue, row: int = 0) -> list[bytes]:
    product = catalogue.product(row)
    return [
        photo.tobytes() for photo in PhotoReader(root=catalogue.photo_root)(product["product_id"], product["image"])
    ]


@pytest.mark.parametrize(
    "kind", ["path", "relative path", "text", "bytes", "PIL", "mapping of bytes", "mapping of path"]
)
def test_each_kind_of_photo_has_the_pixels_that_were_given(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    path = folder / "photos" / "1.png"
    photo = {
        "path": path,
        "relative path": "photos/1.png",
        "text": str(path),
        "bytes": path.read_bytes(),
        "PIL": picture(1),
        "mapping of bytes": {"bytes": path.read_bytes(), "path": "1.png"},
        "mapping of path": {"bytes": None, "path": "photos/1.png"},
    }[kind]
    expected = picture(1).tobytes()
    for image, photos in ((photo, [expected]), ([photo, None, photo], [expected] * 2), ([], []), (None, [])):
        product = {"product_id": "p", "title": "t", "image": image}
        assert read(Catalogue.from_records([product])) == photos
        assert read(Catalogue.from_records(pd.DataFrame([product]))) == photos
        other = {"product_id": "other", "title": "t", "image": [picture(2)]}
        assert read(Catalogue.from_records([product, other])) == photos


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_an_image_of_any_mode_is_kept_as_its_file_would_look(mode: str) -> None:
    catalogue = Catalogue.from_records([{"product_id": "p", "title": "t", "image": picture(3, mode)}])
    assert len(read(catalogue)[0]) == 12 * 10 * 3


def test_columns_of_arrow_hold_paths_bytes_or_structs(folder: Path) -> None:
    ids = {"product_id": ["a", "b"], "title": ["x", "y"]}
    expected = [picture(1).tobytes()]
    data = png(picture(1))
    for image in (
        pa.array([str(folder / "photos" / "1.png"), None]),
        pa.array([data, None], pa.binary()),
        pa.array([{"bytes": data, "path": None}, None]),
        pa.array([{"path": str(folder / "photos" / "1.png")}, None]),
        pa.array([[{"bytes": data, "path": None}], None]),
    ):
        catalogue = Catalogue.from_records(pa.table({**ids, "image": image}))
        assert read(catalogue, 0) == expected and read(catalogue, 1) == []


@pytest.mark.parametrize("iterable", [False, True])
def test_photos_of_data_sets_are_the_files_that_they_hold(iterable: bool) -> None:
    file = BytesIO()
    picture(4).save(file, "JPEG")
    features = datasets.Features(
        {"product_id": datasets.Value("string"), "title": datasets.Value("string"), "image": datasets.Image()}
    )
    columns = {"product_id": ["a", "b"], "title": ["x", "y"], "image": [{"bytes": file.getvalue(), "path": None}, None]}
    records = datasets.Dataset.from_dict(columns, features=features)
    catalogue = Catalogue.from_records(records.to_iterable_dataset() if iterable else records)
    assert catalogue.product(0)["image"] == {"bytes": file.getvalue(), "path": None}
    assert catalogue.product(1)["image"] is None


def test_a_photo_root_holds_all_paths(folder: Path) -> None:
    def make(image: Any) -> Catalogue:
        return Catalogue.from_records([{"product_id": "p", "title": "t", "image": image}], photo_root=folder)

    assert read(make("photos/1.png")) == read(make(folder / "photos" / "1.png")) == [picture(1).tobytes()]
    for path in ("../1.png", "photos/../../1.png", "/etc/passwd"):
        with pytest.raises(CatalogueError, match=r"'image', row 0.*outside.*Store the photo's bytes"):
            make(path)


@pytest.mark.parametrize("root", [None, "/"])
@pytest.mark.parametrize("url", ["https://shop.example/1.png", "HTTP://shop.example/1.png", "s3://shop/1.png"])
def test_a_url_names_the_way_to_its_photo(url: str, root: str | None) -> None:
    with pytest.raises(CatalogueError, match=rf"row 0: the photo is the URL '{url}'.*mmfusion import .* download"):
        Catalogue.from_records([{"product_id": "p", "title": "t", "image": url}], photo_root=root)


def test_products_alone_and_missing_values() -> None:
    rows = [
        {"product_id": 7, "title": math.nan, "description": pd.NA, "image": math.nan},
        {"product_id": 8, "title": "x", "image": pd.NA},
    ]
    for records in (rows, pd.DataFrame(rows)):
        catalogue = Catalogue.from_records(records)
        assert catalogue.product_ids.tolist() == ["7", "8"] and catalogue.titles([0, 1]) == ["", "x"]
        assert [catalogue.product(row)["image"] for row in (0, 1)] == [None, None]
        assert len(catalogue.queries) == len(catalogue.qrels) == 0 and catalogue.name == "memory"


def change(rows: list[dict[str, Any]], row: int, **values: Any) -> list[dict[str, Any]]:
    return [{**one, **values} if at == row else one for at, one in enumerate(rows)]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (([],), r"records: table 'products' has no rows"),
        (([{"title": "t"}],), r"column 'product_id' of table 'products' is missing"),
        ((change(PRODUCTS, 1, product_id=None),), r"'product_id', row 1: the id is None\. Give every row an id"),
        ((change(PRODUCTS, 2, product_id="p0"),), r"rows 0, 2: the id 'p0' is used by 2 rows"),
        ((change(PRODUCTS, 2, split="dev"),), r"'split', row 2: the split is 'dev'"),
        ((change(PRODUCTS, 0, title=3),), r"records, table 'products': cannot be read"),
        ((change(PRODUCTS, 1, image=3.5),), r"'image', row 1: the photo cannot be used: float where a photo"),
        ((change(PRODUCTS, 1, image={"url": "a"}),), r"'image', row 1: the photo cannot be used"),
        ((change(PRODUCTS, 1, image=Image.new("F", (2, 2))),), r"'image', row 1: the photo cannot be used"),
        ((PRODUCTS, change(QUERIES, 1, query=" ")), r"query 'q1' has the blank text ' '"),
        ((PRODUCTS, QUERIES, change(QRELS, 0, grade=-1)), r"the grade of query 'q1' and product 'p2' is -1"),
        ((PRODUCTS, QUERIES, change(QRELS, 0, grade=0.5)), r"column 'grade'.* not integers of at least 0"),
        ((PRODUCTS, QUERIES, change(QRELS, 0, product_id="x")), r"1 of 2 judgements name 1 ids.*'x'.*unknown='drop'"),
        ((PRODUCTS, None, QRELS), r"2 of 2 judgements name 2 ids that table 'queries' does not hold"),
        ((PRODUCTS, QUERIES, [*QRELS, QRELS[0]]), r"query 'q1' and product 'p2' are judged 2 times"),
    ],
)
def test_what_loading_would_not_take_is_an_error(tables: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CatalogueError, match=message) as caught:
        Catalogue.from_records(*tables)
    assert "\n" not in str(caught.value)


def test_judgements_of_unknown_ids_can_be_dropped() -> None:
    catalogue = Catalogue.from_records(PRODUCTS, QUERIES, change(QRELS, 0, product_id="x"), unknown="drop")
    assert len(catalogue.qrels) == 1


def test_a_catalogue_in_memory_trains() -> None:
    numbers = range(8)
    products = [{"product_id": n, "title": f"red dress {n}", "image": picture(n), "split": "train"} for n in numbers]
    queries = [{"query_id": n, "query": f"dress {n}", "split": "train"} for n in numbers]
    qrels = [{"query_id": n, "product_id": n, "grade": 1} for n in numbers]
    catalogue = Catalogue.from_records(products, queries, qrels)
    data = MMFusionDataModule(
        catalogue, tiny_processor(), batch_size=4, no_duplicates=["photo", "title"], num_workers=1
    )
    batches = list(data.train_dataloader())
    assert sorted(row for batch in batches for row in batch["product_rows"].tolist()) == list(numbers)
    assert all(torch.equal(batch["query_rows"], batch["product_rows"]) for batch in batches)
