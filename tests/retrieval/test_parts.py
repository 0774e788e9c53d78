"""Texts and photos that products share are read and encoded once, and the vectors are those of encoding them anew."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_encoders import tiny_model, tiny_processor

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.tables import ProductTable, text_lengths
from mmfusion.model import MMFusionModel
from mmfusion.retrieval.parts import PartBatch, PartEncoder, PartTable, part_batches, shown_parts

Products = list[tuple[str | None, list[bytes | None]]]


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


ONE, TWO, THREE, FOUR = map(photo, range(4))
BROKEN = ONE[:60]
# Texts of words that the tokenizer knows.
VARIANTS: Products = [
    ("red dress", [ONE]),
    ("red shoe with a long name of nine words", [TWO, THREE]),
    ("red dress", [TWO]),
    ("dress", [ONE, THREE]),
    ("shoe", [FOUR]),
    (None, [ONE]),
    ("red dress", []),
    ("acme", [BROKEN, TWO]),
    ("acme red", [None, BROKEN]),
    ("acme shoe", [BROKEN]),
    # More photos than are read, of which the second cannot be.
    ("red dress", [FOUR, BROKEN, ONE, TWO]),
    ("acme dress", [FOUR, BROKEN, ONE, TWO]),
    ("passage", [THREE, THREE]),
    (None, []),
    ("", []),
]
PLACEHOLDER: Products = [("query" + " red" * number, [ONE]) for number in range(17)]
GRID: Products = [(title, [picture]) for title in ("shoe", "shoe red", "dress") for picture in (ONE, TWO, THREE, FOUR)]
DISTINCT: Products = [("red " * (number % 5) + "acme" + " -" * number, [photo(number)]) for number in range(11)]


def table_of(products: Products, folder: Path) -> ProductTable:
    rows = [
        {"product_id": str(row), "title": title, "image": [{"bytes": one, "path": None} for one in photos]}
        for row, (title, photos) in enumerate(products)
    ]
    stored = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"product_id": pa.string(), "title": pa.string(), "image": pa.list_(stored)})
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "products.parquet")
    catalogue = Catalogue.load_products(str(folder), cache_dir=folder / "cache")
    return ProductTable(catalogue, tiny_processor(max_photos=3))


def planned(table: ProductTable, batch_size: int, *, share: bool = True) -> list[PartBatch]:
    rows = table.catalogue.product_rows(None)
    lengths = text_lengths(table.catalogue, table.processor.template_columns)[rows]
    return part_batches(rows, shown_parts(table, rows), lengths, batch_size, share=share)


def embedded(
    model: MMFusionModel, table: ProductTable, batches: list[PartBatch]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Vectors and modality weights by row."""
    encoder, inputs = PartEncoder(model), PartTable(table)
    found: dict[int, Any] = {}
    with torch.inference_mode():
        for batch in batches:
            given = inputs[batch]
            assert given.pop("product_rows").tolist() == batch.rows.tolist()
            output = encoder(batch, given)
            assert output.product_embeds is not None and output.modality_weights is not None
            pairs = zip(output.product_embeds, output.modality_weights, strict=True)
            found |= dict(zip(batch.rows.tolist(), pairs, strict=True))
    assert not encoder._texts and not encoder._photos, "no state is kept beyond its last use"
    assert sorted(found) == list(range(len(table.catalogue.products)))
    return tuple(np.stack([found[row][part].numpy() for row in sorted(found)]) for part in (0, 1))  # type: ignore


@pytest.mark.parametrize("fusion", ["gated", "cross_attention", "weighted_mean", "concat", "text_only", "image_only"])
@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_vectors_are_those_without_sharing(fusion: str, batch_size: int, tmp_path: Path) -> None:
    model, table = tiny_model(fusion=fusion), table_of(VARIANTS + PLACEHOLDER + GRID, tmp_path)
    shared, alone = planned(table, batch_size), planned(table, batch_size, share=False)
    assert any(batch.parts for batch in shared) and not any(batch.parts for batch in alone)
    for with_sharing, without in zip(embedded(model, table, shared), embedded(model, table, alone), strict=True):
        np.testing.assert_allclose(with_sharing, without, atol=1e-6)
    if fusion == "gated":
        # Two are without text and photo, and a title in three parts of the catalogue has the same photo twice.
        assert len(np.unique(embedded(model, table, shared)[0].round(4), axis=0)) >= 40


@pytest.mark.parametrize("products", [VARIANTS, PLACEHOLDER, GRID, VARIANTS + PLACEHOLDER + GRID])
def test_each_text_and_photo_is_read_and_encoded_once(
    products: Products, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, table = tiny_model(), table_of(products, tmp_path)
    texts: Counter[str] = Counter()
    photos: Counter[bytes] = Counter()
    encode_text, encode_vision = MMFusionModel._encode_text, MMFusionModel._encode_vision

    def count_texts(self: Any, ids: torch.Tensor, mask: torch.Tensor, *others: Any) -> Any:
        texts.update(str(row[seen.bool()].tolist()) for row, seen in zip(ids, mask, strict=True))
        return encode_text(self, ids, mask, *others)

    def count_photos(self: Any, pixels: torch.Tensor, *others: Any) -> Any:
        photos.update(one.numpy().tobytes() for one in pixels)
        return encode_vision(self, pixels, *others)

    monkeypatch.setattr(MMFusionModel, "_encode_text", count_texts)
    monkeypatch.setattr(MMFusionModel, "_encode_vision", count_photos)
    embedded(model, table, planned(table, 3))
    whole_lists = products[0] is VARIANTS[0]
    assert max(texts.values()) == 1, "a text is encoded once"
    # A list of more photos than are read counts as one photo, so that its photos come once more.
    assert max(photos.values()) <= (2 if whole_lists else 1) and len(photos) >= (
        4 if products is not PLACEHOLDER else 1
    )
    assert photos.total() <= len(photos) + (3 if whole_lists else 0)


def test_batches_of_what_nobody_shares_are_those_of_before(tmp_path: Path) -> None:
    table = table_of(DISTINCT, tmp_path)
    batches = planned(table, 4)
    lengths = np.array([len(title or "") for title, _ in DISTINCT])
    order = np.argsort(lengths, kind="stable")
    assert [batch.rows.tolist() for batch in batches] == [order[at : at + 4].tolist() for at in (0, 4, 8)]
    assert not any(batch.parts for batch in batches)
    given, expected = PartTable(table)[batches[1]], dict[str, Any](table[batches[1].rows])
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], value) for name, value in expected.items())


def test_a_batch_holds_as_many_products_with_something_new(tmp_path: Path) -> None:
    sizes = [len(batch) for batch in planned(table_of(GRID * 9, tmp_path), 4)]
    # 12 different products of 4 photos and 3 texts, each nine times: after the first ones nothing is new.
    assert sum(sizes) == 108 and max(sizes) == 16 and len(sizes) <= 9


def test_photos_are_not_read_where_the_table_has_none(tmp_path: Path) -> None:
    table = table_of(GRID, tmp_path)
    table.photos = False
    batches = planned(table, 4)
    assert all(not batch.new_photos for batch in batches)
    assert embedded(tiny_model(), table, batches)[1][:, 1].tolist() == [0.0] * len(GRID)
