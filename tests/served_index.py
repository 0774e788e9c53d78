"""A tiny model and an index of drawn vectors, as the tests of the service need them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from commands import as_if_trained
from PIL import Image

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


MARKUP = '<img src=x onerror="document.title=1"> & <b>coat</b>'


def write_shop(folder: Path, encoder: Retriever) -> ProductIndex:
    """Writes a catalogue with photos to `catalogue`; returns an index of drawn vectors of its products.

    The first product has a title of markup, p7 no photo, p8 one that is no photo, p9 a path outside of the catalogue.
    """
    index = drawn_index(encoder, 60)
    ids = index.product_ids
    photos = [_png((3 * row, 90, 200 - 3 * row)) for row in range(len(ids))]
    images = [{"bytes": photo, "path": None} for photo in photos]
    images[ids.index("p7")] = None
    images[ids.index("p8")] = {"bytes": b"no photo", "path": None}
    images[ids.index("p9")] = {"bytes": None, "path": "inside.png"}
    images[ids.index("p10")]["bytes"] = _png((200, 0, 0), (1200, 600))
    metadata = pa.table(
        {
            "title": [MARKUP, *(f"Product {name}" for name in ids[1:])],
            "price": [row + 0.5 for row in range(len(ids))],
            "brand": [("Acme", "Belmora", "<i>Odd</i>")[row % 3] for row in range(len(ids))],
            "tags": [["new"] if row % 2 else ["new", "sale"] for row in range(len(ids))],
            "item_group_id": [f"g{row // 6}" for row in range(len(ids))],
            "in_stock": [row % 4 > 0 for row in range(len(ids))],
            "image_url": [f"https://cdn{row % 2}.example/p.jpg" if row % 5 else None for row in range(len(ids))],
        }
    )
    (folder / "catalogue").mkdir()
    (folder / "catalogue" / "inside.png").write_bytes(photos[0])
    table = metadata.append_column("product_id", pa.array(ids)).append_column("image", pa.array(images))
    pq.write_table(table, folder / "catalogue" / "products.parquet")
    return ProductIndex.build(
        np.stack([index.product(name).vector for name in ids]),
        ids,
        model_fingerprint=encoder.fingerprint,
        metadata=metadata,
        modality_weights=np.full((len(ids), 2), [0.29, 0.71], np.float32),
        lexical=True,
    )


def _png(colour: tuple[int, int, int], size: tuple[int, int] = (40, 60)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()
