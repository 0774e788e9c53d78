"""A run says how many texts are longer than its model reads."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import SiglipImageProcessorPil

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.tables import ProductTable, QueryTable, log_cut_texts
from mmfusion.data.toy_encoders import build_tokenizer
from mmfusion.model import MMFusionProcessor

TITLES = ["red dress", "blue mug " * 3, "green shoe " * 8, ""]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("cut")
    ids = [f"p{number}" for number in range(len(TITLES))]
    tables = {
        "products": {"product_id": ids, "title": TITLES, "split": ["train"] * len(ids)},
        "queries": {"query_id": ["q0", "q1"], "query": ["dress", "mug " * 40], "split": ["train"] * 2},
        "qrels": {"query_id": ["q0", "q1"], "product_id": ["p0", "p1"], "grade": [3, 3]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return Catalogue.load(folder, cache_dir=folder / "cache")


def processor(length: int) -> MMFusionProcessor:
    image_processor = SiglipImageProcessorPil(size={"height": 8, "width": 8})
    return MMFusionProcessor(image_processor, build_tokenizer(), max_product_length=length, max_query_length=length)


def logged(table: ProductTable | QueryTable, rows: list[int], caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with caplog.at_level("INFO", logger="mmfusion"):
        log_cut_texts(table, np.array(rows))
    return caplog.text


def test_texts_are_counted_that_lose_tokens(catalogue: Catalogue, caplog: pytest.LogCaptureFixture) -> None:
    for length in (2, 4, 8, 12, 16, 30, 64):
        own = processor(length)
        tokens = [len(own.tokenizer(text)["input_ids"]) for text in TITLES]
        cut = sum(count > length for count in tokens)
        text = logged(ProductTable(catalogue, own), [0, 1, 2, 3], caplog)
        expected = f"{cut} of 4 product texts are longer than max_product_length {length} tokens, and are cut there"
        assert (expected in text) if cut else not text
    assert "1 of 2 queries are longer than max_query_length 8 tokens" in logged(
        QueryTable(catalogue, processor(8)), [0, 1], caplog
    )


def test_of_many_texts_a_sample_is_looked_at(
    catalogue: Catalogue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmfusion.data.tables._MOST_TEXTS", 2)
    text = logged(ProductTable(catalogue, processor(4)), [0, 1, 2], caplog)
    assert "1 of 2 sampled (of 3) product texts" in text


def test_training_says_it(catalogue: Catalogue, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="mmfusion"):
        MMFusionDataModule(catalogue, processor(8), batch_size=2).prepare_data()
    assert "product texts are longer" in caplog.text and "1 of 2 queries are longer" in caplog.text
