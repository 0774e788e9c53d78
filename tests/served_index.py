"""A tiny model and an index of drawn vectors, as the tests of the service need them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from commands import as_if_trained

from mmfusion.retrieval import ProductIndex
from mmfusion.retrieval.query_tower import load_query_tower
from mmfusion.retriever import Retriever
from mmfusion.training import starting_base

ODD_IDS = ["a,b", "line\nbreak", "🧥 parka", "50% off/../x?y#z", " "]


def write_served(folder: Path) -> Retriever:
    """Writes `toy_base`, and an index in `run/index` with the record that index.py leaves."""
    base = as_if_trained(starting_base(None, folder))
    encoder = Retriever(*load_query_tower(base))
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text(json.dumps({"complete": True, "base": base}))
    drawn_index(encoder, 200).save(folder / "run" / "index")
    return encoder


def drawn_index(encoder: Retriever, count: int, *, seed: int = 0, fingerprint: str = "") -> ProductIndex:
    """An index of drawn vectors, whose first ids are odd ones; its last product is called p<count - 1>."""
    vectors = np.random.default_rng(seed).normal(size=(count, encoder.dimension)).astype(np.float32)
    ids = [*ODD_IDS, *(f"p{row}" for row in range(len(ODD_IDS), count))]
    table = pa.table({"title": [f"Product {one}" for one in ids], "price": pa.array(range(count), pa.int64())})
    return ProductIndex.build(
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        ids,
        model_fingerprint=fingerprint or encoder.fingerprint,
        metadata=table,
        modality_weights=np.full((count, 2), 0.5, np.float32),
    )
