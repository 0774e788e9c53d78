"""What is a duplicate: the same product, photo or title; and the data module that keeps them apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from two_ranks import build_model

from mmfusion.data import product_keys as module
from mmfusion.data.catalogue import Catalogue, CatalogueError
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.product_keys import group_keys, product_keys
from mmfusion.data.toy_catalogue import write_toy_catalogue

PHOTOS = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def photo(content: bytes | None = None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": content, "path": path}


def catalogue(folder: Path, **columns: Any) -> Catalogue:
    count = len(next(iter(columns.values())))
    ids = [f"p{row}" for row in range(count)]
    folder.mkdir()
    pq.write_table(pa.table({"product_id": ids, "title": ["t"] * count, **columns}), folder / "products.parquet")
    pq.write_table(pa.table({"query_id": ["q"], "query": ["x"]}), folder / "queries.parquet")
    pq.write_table(pa.table({"query_id": ["q"], "product_id": ["p0"], "grade": [1]}), folder / "qrels.parquet")
    return Catalogue.load(folder, cache_dir=folder / "cache")


def alike(keys: np.ndarray) -> set[tuple[int, int]]:
    column = keys[:, 0]
    return {(a, b) for a in range(len(column)) for b in range(a) if column[a] == column[b] and column[a] >= 0}


def test_titles_are_alike_without_case_and_outer_blanks_and_a_lacking_one_is_like_no_other(tmp_path: Path) -> None:
    titles = ["Red dress", " red DRESS ", "Blue dress", None, "", "  ", None]
    assert alike(product_keys(catalogue(tmp_path / "c", title=pa.array(titles)), ["title"])) == {(1, 0)}


def test_photos_are_alike_by_bytes_or_path_of_the_first_and_none_is_like_no_other(tmp_path: Path) -> None:
    images = [
        [photo(b"a", "1.png")],
        [photo(b"a", "2.png"), photo(b"chart")],
        [photo(b"b"), photo(b"chart")],
        [photo(None, "x.png")],
        [photo(None, None), photo(None, "x.png")],
        None,
        [],
        [photo()],
    ]
    found = catalogue(tmp_path / "c", image=pa.array(images, PHOTOS))
    assert alike(product_keys(found, ["photo"])) == {(1, 0), (4, 3)}
    assert alike(product_keys(catalogue(tmp_path / "d", title=["a", "b"]), ["photo"])) == set()


def test_photos_are_hashed_once_for_a_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = catalogue(tmp_path / "c", image=pa.array([[photo(b"a")], [photo(b"b")]], PHOTOS))
    first = product_keys(found, ["photo"])
    monkeypatch.setattr(module, "_hash", lambda _: pytest.fail("read again"))
    again = Catalogue.load(tmp_path / "c", cache_dir=tmp_path / "c" / "cache")
    assert (product_keys(again, ["photo"]) == first).all()


def test_groups_are_the_values_of_any_plain_column(tmp_path: Path) -> None:
    found = catalogue(tmp_path / "c", kind=["x", "y", None, "x"], size=[1.5, 2.0, 1.5, None], parts=[[1], [2], [], []])
    kind, size = group_keys(found, "kind"), group_keys(found, "size")
    assert kind[0] == kind[3] != kind[1] and kind[2] == -1
    assert size[0] == size[2] != size[1] and size[3] == -1
    with pytest.raises(CatalogueError, match=r"group_by names the column 'colour'.*kind, size, parts"):
        group_keys(found, "colour")
    with pytest.raises(CatalogueError, match=r"'parts', whose values are list"):
        group_keys(found, "parts")


def test_an_unknown_kind_of_duplicate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"no_duplicates names 'photos'.*product, photo, title"):
        product_keys(catalogue(tmp_path / "c", title=["a"]), ["photos"])


def test_the_data_module_keeps_titles_and_categories_apart(tmp_path: Path) -> None:
    write_toy_catalogue(tmp_path / "catalogue", num_products=300)
    found = Catalogue.load(tmp_path / "catalogue", cache_dir=tmp_path / "cache")
    _, processor = build_model(tmp_path / "backbones")
    options: dict[str, Any] = {"batch_size": 4, "no_duplicates": ["product", "photo", "title"], "extra_products": 2}
    loader = MMFusionDataModule(found, processor, photos=False, group_by="category", **options).train_dataloader()
    categories = group_keys(found, "category")
    of_one = 0
    for batch in loader:
        rows = batch["product_rows"].numpy()
        titles = [title.strip().lower() for title in found.titles(rows) if title]
        assert len(set(titles)) == len(titles) and len(set(rows.tolist())) == len(rows) == 6
        of_one += len(set(categories[rows[:4]].tolist())) == 1
    assert of_one > len(loader) / 2
