"""The Python API of lists in and vectors out: what it takes, what it gives, and what it says of bad input."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from published_model import write_model_folder

from mmfusion import MMFusionModel, MMFusionProcessor, Retriever
from mmfusion.retrieval import ProductIndex, Searcher
from mmfusion.retrieval.fingerprint import model_fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("retriever") / "model", matryoshka_dims=[32])


@pytest.fixture(scope="module")
def retriever(folder: Path) -> Retriever:
    return Retriever.from_pretrained(folder, device="cpu")


def photo(colour: str, size: int = 40) -> Image.Image:
    return Image.new("RGB", (size, size + 8), colour)


def png(colour: str) -> bytes:
    file = io.BytesIO()
    photo(colour).save(file, "PNG")
    return file.getvalue()


NO_PHOTO = [None, float("nan"), [], "", {"bytes": None, "path": None}, [{"bytes": None, "path": ""}]]


def products() -> list[dict[str, Any]]:
    return [
        {"product_id": "a", "title": "Summer dress, long and light", "image": photo("red"), "price": 30},
        {"product_id": "b", "title": "Mug", "image": None, "price": 9},
        {"product_id": "c", "title": "", "image": [photo("blue"), photo("green")], "price": 70},
        {"product_id": "d", "title": "Trousers with pockets", "price": 45},
    ]


def test_vectors_are_those_of_model_and_processor(folder: Path, retriever: Retriever) -> None:
    model, processor = MMFusionModel.from_pretrained(folder).eval(), MMFusionProcessor.from_pretrained(folder)
    texts = ["red dress", "a blue mug with a handle", "x"]
    with torch.inference_mode():
        asked = model.get_query_features(**processor(queries=texts)).numpy()
        shown = model.get_product_features(**processor(products=products())).numpy()
    vectors = retriever.encode_queries(texts), retriever.encode_products(products())
    for found, expected in zip(vectors, (asked, shown), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(retriever.similarity(*vectors).numpy(), asked @ shown.T, atol=1e-5)


def test_order_and_batches_change_no_vector(retriever: Retriever) -> None:
    whole = retriever.encode_products(products())
    np.testing.assert_allclose(retriever.encode_products(products()[::-1], batch_size=1)[::-1], whole, atol=1e-6)


def test_one_text_or_product_gives_one_vector(retriever: Retriever) -> None:
    np.testing.assert_allclose(retriever.encode_queries("mug"), retriever.encode_queries(["mug"])[0], atol=1e-6)
    assert retriever.encode_products(products()[0]).shape == (retriever.dimension,)


def test_empty_lists_give_no_vectors(retriever: Retriever) -> None:
    assert retriever.encode_queries([]).shape == retriever.encode_products([]).shape == (0, retriever.dimension)


def test_tensors_are_given_where_they_are_asked_for(retriever: Retriever) -> None:
    found = retriever.encode_queries(["mug"], convert_to_tensor=True, show_progress_bar=False)
    assert isinstance(found, torch.Tensor) and found.dtype == torch.float32


def test_a_photo_may_come_in_any_form(retriever: Retriever, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    forms = [
        photo("red"),
        png("red"),
        str(tmp_path / "red.png"),
        tmp_path / "red.png",
        {"bytes": png("red"), "path": None},
        {"bytes": None, "path": str(tmp_path / "red.png")},
        [png("red")],
        [None, png("red")],
    ]
    found = retriever.encode_products([{"title": "Dress", "image": form} for form in forms])
    np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), atol=1e-6)
    without = retriever.encode_products([{"title": "Dress", "image": form} for form in NO_PHOTO])
    np.testing.assert_allclose(without, np.broadcast_to(without[0], without.shape), atol=1e-6)
    assert np.abs(found[0] - without[0]).max() > 1e-3


def test_relative_paths_start_at_the_working_folder(
    retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    monkeypatch.chdir(tmp_path)
    forms = ["red.png", {"bytes": None, "path": "red.png"}, png("red")]
    found = retriever.encode_products([{"title": "a", "image": form} for form in forms])
    np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), atol=1e-6)


def test_a_url_needs_a_photo_loader(folder: Path, retriever: Retriever) -> None:
    shown = [{"title": "Dress", "image": "https://shop.example/red.png"}]
    with pytest.raises(ValueError, match="is a URL, which is not fetched by default"):
        retriever.encode_products(shown)
    asked = []

    def load(url: str) -> Image.Image:
        asked.append(url)
        return photo("red")

    loading = Retriever(retriever.model, retriever.processor, photo_loader=load)
    expected = retriever.encode_products([{"title": "Dress", "image": photo("red")}])
    np.testing.assert_allclose(loading.encode_products(shown), expected, atol=1e-6)
    stored = [{"title": "Dress", "image": {"bytes": None, "path": "https://shop.example/red.png"}}]
    np.testing.assert_allclose(loading.encode_products(stored), expected, atol=1e-6)
    assert asked == ["https://shop.example/red.png"] * 2


def tables() -> Iterator[tuple[str, Any]]:
    rows = [{"product_id": name, "title": f"Dress {name}", "image": png("red"), "price": 3.5} for name in "xyz"]
    yield "iterator", iter(rows)
    yield "pandas", pd.DataFrame(rows)
    yield "pandas rows", [row for _, row in pd.DataFrame(rows).iterrows()]
    yield "arrow", pa.Table.from_pylist(rows)
    dataset = datasets.Dataset.from_list(rows)
    yield "datasets", dataset
    yield "datasets with images", dataset.cast_column("image", datasets.Image())


@pytest.mark.parametrize(("kind", "table"), tables())
def test_rows_of_any_table_are_products(retriever: Retriever, kind: str, table: Any) -> None:
    expected = [{"product_id": name, "title": f"Dress {name}", "image": photo("red")} for name in "xyz"]
    np.testing.assert_allclose(retriever.encode_products(table), retriever.encode_products(expected), atol=1e-6)


def test_an_index_finds_filters_and_keeps_columns(retriever: Retriever, tmp_path: Path) -> None:
    searcher = retriever.index(products())
    vectors = dict(zip("abcd", retriever.encode_products(products()), strict=True))
    scores = {name: float(vector @ retriever.encode_queries("red dress")) for name, vector in vectors.items()}
    found = searcher.search("red dress", k=10)
    assert [hit.product_id for hit in found] == sorted(scores, key=scores.__getitem__, reverse=True)
    assert [hit.score for hit in found] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-5)
    assert {hit.product_id for hit in searcher.search("red dress", k=10, filter=[("price", "<", 40)])} == {"a", "b"}
    assert searcher.search(["red dress", "mug"], k=2)[0] == found[:2]
    assert found[0].metadata.keys() == {"title", "price"}
    searcher.index.save(tmp_path / "index")
    again = Searcher(retriever, ProductIndex.load(tmp_path / "index"))
    assert again.search("red dress", k=10) == found


def test_products_without_ids_are_found_by_position(retriever: Retriever) -> None:
    rows = [{"title": "Dress"}, {"title": "Mug"}]
    assert {hit.product_id for hit in retriever.index(rows).search("mug")} == {"0", "1"}


def test_shortened_vectors_are_the_first_components(retriever: Retriever) -> None:
    short, whole = (retriever.encode_products(products(), truncate_dim=dim) for dim in (32, None))
    np.testing.assert_allclose(short, whole[:, :32] / np.linalg.norm(whole[:, :32], axis=1, keepdims=True), atol=1e-5)
    assert retriever.index(products(), truncate_dim=32).search("mug", k=1)[0].product_id in "abcd"


def test_a_router_gives_views_of_unit_length(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", query_router=True)
    for dtype, off in (("float32", 1e-6), ("bfloat16", 1e-5)):
        retriever = Retriever.from_pretrained(folder, device="cpu", dtype=dtype)
        views = retriever.encode_products(products()[:1]).reshape(1, 3, -1)
        np.testing.assert_allclose(np.linalg.norm(views, axis=2), 1, atol=off)
        assert retriever.encode_queries("mug").shape == (retriever.dimension,)


def test_half_precision_changes_little_and_stays_the_same_model(folder: Path, retriever: Retriever) -> None:
    half = Retriever.from_pretrained(folder, device="cpu", dtype=torch.bfloat16)
    assert half.fingerprint == retriever.fingerprint == model_fingerprint(retriever.model, retriever.processor)
    found, expected = half.encode_products(products()), retriever.encode_products(products())
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert (found * expected).sum(1).min() > 0.99


def test_the_query_tower_alone_searches(folder: Path, retriever: Retriever) -> None:
    tower = Retriever.from_pretrained(folder, device="cpu", subfolder="query")
    np.testing.assert_allclose(tower.encode_queries(["mug"]), retriever.encode_queries(["mug"]), atol=1e-6)
    assert Searcher(tower, retriever.index(products()).index).search("mug", k=1)
    with pytest.raises(ValueError, match="query tower alone"):
        tower.encode_products(products())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda r: r.encode_queries(["mug", " "]), "Query 1 is ' '"),
        (lambda r: r.encode_queries(["mug", None]), "Query 1 is None"),
        (lambda r: r.encode_queries(["mug"], batch_size=0), "batch_size is 0; give at least 1"),
        (lambda r: r.encode_queries(["mug"], truncate_dim=999), "truncate_dim is 999; give 1 to"),
        (lambda r: r.encode_products("Dress"), "products is 'Dress'; give a list of dicts"),
        (lambda r: r.encode_products(["Dress"]), "Product 0 is 'Dress'; give a dict"),
        (lambda r: r.encode_products([{"name": "Dress"}]), "names the column 'title'"),
        (lambda r: r.encode_products([{"title": {"en": "Dress"}}]), "holds a struct"),
        (
            lambda r: r.encode_products([{"title": "a"}, {"product_id": "7", "title": "b", "image": b"no photo"}]),
            r"A photo of product 1 \('7'\) cannot be read",
        ),
        (lambda r: r.encode_products([{"title": "a", "image": "no/such.png"}]), "no file at"),
        (lambda r: r.encode_products([{"title": "a", "image": 7}]), "7 is a int; give a path"),
        (lambda r: r.index([{"title": "a", "product_id": "x"}] * 2), "'x' appears twice"),
        (lambda r: r.index([{"title": "a", "product_id": "x"}, {"title": "a"}]), "Product 1 has no product_id"),
        (lambda r: r.index([{"title": "a", "price": 3}, {"title": "a", "price": "cheap"}]), "Column 'price'"),
    ],
)
def test_bad_input_is_an_error_that_names_it(retriever: Retriever, call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(retriever)


def test_torch_for_gpus_on_a_machine_without_one_uses_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def current(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr("torch.accelerator.current_accelerator", current)
    assert Retriever.from_pretrained(folder).model.device.type == "cpu"


def test_arguments_out_of_range_are_errors(folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        Retriever.from_pretrained(folder, dtype="int8")
    with pytest.raises(ValueError, match="subfolder is 'towers'"):
        Retriever.from_pretrained(folder, subfolder="towers")


def test_products_that_share_texts_and_photos_get_the_vectors_that_they_get_alone(retriever: Retriever) -> None:
    red, blue = photo("red"), photo("blue")
    stored = io.BytesIO()
    blue.save(stored, "PNG")
    data = stored.getvalue()
    products: list[dict[str, Any]] = [
        {"title": "dress", "image": red},
        {"title": "shoe", "image": [red, blue]},
        {"title": "dress", "image": {"bytes": data, "path": None}},
        {"title": "dress"},
        {"title": "", "image": data},
        {"title": "dress", "image": [data, red]},
    ]
    encoded: list[int] = []
    encode = retriever.model._encode_vision

    def count(photos: torch.Tensor, *others: Any) -> Any:
        encoded.append(len(photos))
        return encode(photos, *others)

    alone = np.stack([retriever.encode_products(product) for product in products])
    retriever.model._encode_vision = count  # type: ignore[method-assign]
    try:
        for batch_size in (1, 2, 32):
            np.testing.assert_allclose(retriever.encode_products(products, batch_size=batch_size), alone, atol=1e-6)
    finally:
        del retriever.model._encode_vision
    # The red image, the blue one, and the bytes that it was saved as; in each of three runs.
    assert sum(encoded) == 3 * 3
