"""The same products in FAISS and in Milvus, for tests and the processes that they start."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmfusion.retrieval import MilvusIndex, ProductIndex

DIMENSION = 16


def vectors(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def names(count: int) -> list[str]:
    return [f"{'abc'[row % 3]}{row}" for row in range(count)]


def metadata(ids: list[str]) -> pa.Table:
    prices = [None if name.endswith("7") else len(name) * 10 for name in ids]
    return pa.table({"title": ids, "price": pa.array(prices, pa.int64()), "kind": [name[:1] for name in ids]})


def weights(count: int) -> np.ndarray:
    share = np.linspace(0, 1, count, dtype=np.float32)
    return np.stack([share, 1 - share], axis=1)


def flat(count: int = 60, **arguments: Any) -> ProductIndex:
    ids = names(count)
    options = {"metadata": metadata(ids), "modality_weights": weights(count), "model_fingerprint": "m", **arguments}
    return ProductIndex.build(vectors(count), ids, **options)


def in_milvus(folder: Path, count: int = 60, **arguments: Any) -> MilvusIndex:
    ids = arguments.pop("product_ids", names(count))
    options = {"model_fingerprint": "m", "metadata": metadata(ids), "modality_weights": weights(count), **arguments}
    return MilvusIndex.build(options.pop("embeds", vectors(count)), ids, uri=folder / "index.db", **options)
