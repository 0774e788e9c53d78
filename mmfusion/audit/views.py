"""Vectors of titles and of photos by themselves, and tiny pictures of the photos: all that an audit compares."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.tables import ProductTable, Rows, no_text
from mmfusion.embedding.content import content_digests
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.progress import progress_bar
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.mining import embed_in_shards

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

SIDE = 16
"""Height and width of the tiny picture of a photo, in pixels."""
_SHARD = 2048


class Views(NamedTuple):
    """What there is of P products, row by row.

    Attributes:
        text: (P, D) float32, L2-normalised vectors of the product texts; 0 where there is none.
        photo: (P, D) float32, L2-normalised vectors of the photos; 0 where none can be read.
        tiny: (P, SIDE * SIDE * 3) float32 in [0, 1], the first photo in RGB.
        has_text: (P,) bool.
        has_photo: (P,) bool.
    """

    text: Floats
    photo: Floats
    tiny: Floats
    has_text: Flags
    has_photo: Flags


def product_views(
    model: MMFusionModel,
    processor: MMFusionProcessor,
    catalogue: Catalogue,
    rows: Rows,
    folder: Path,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
) -> Views:
    """Embeds texts and photos of products, or reads from `folder` what has been embedded before.

    Texts and photos are kept apart: after a title is corrected, no photo is embedded again. Killed, it goes on with the
    shard that was not finished.

    Args:
        model: In evaluation mode; its views of text and photo are read, and not its fusion.
        processor: The model's.
        catalogue: Where the rows point.
        rows: (P,) int64 product rows.
        folder: For the vectors; those of other contents are removed.
        batch_size: Products per forward pass.
        num_workers: Processes that decode photos.
    """
    texts, photos = (
        ProductTable(catalogue, processor, photos=False),
        ProductTable(catalogue, processor, rewrite=no_text),
    )
    start = model_fingerprint(model, processor).encode()
    keys = {
        name: hashlib.sha256(start + content_digests(table, rows).tobytes()).hexdigest()[:16]
        for name, table in (("texts", texts), ("photos", photos))
    }
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*-*.npy"):
        if old.stem not in {f"{name}-{key}" for name, key in keys.items()}:
            old.unlink()

    def embed(table: ProductTable, name: str) -> Floats:
        def shard(own: Rows) -> Floats:
            return np.concatenate(
                list(_embedded(model, _Inputs(table, name == "photos"), own, batch_size, num_workers))
            )

        return embed_in_shards(folder / f"{name}-{keys[name]}.npy", rows, _SHARD, shard)

    text, photo, width = embed(texts, "texts"), embed(photos, "photos"), model.config.embedding_dim
    return Views(text[:, :width], photo[:, :width], photo[:, width:-1], text[:, -1] > 0, photo[:, -1] > 0)


def query_views(model: MMFusionModel, processor: MMFusionProcessor, texts: list[str], batch_size: int = 256) -> Floats:
    """Vectors (Q, D) float32 of queries, L2-normalised, as they are compared with those of texts and photos alone."""
    found = [np.zeros((0, model.config.embedding_dim), dtype=np.float32)]
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            tokens = processor.process_queries(texts[start : start + batch_size]).to(model.device)
            embeds = model.forward_queries(**tokens, views_only=True).query_view_embeds
            assert embeds is not None
            found.append(embeds.float().cpu().numpy())
    return np.concatenate(found)


class _Inputs(Dataset[Any]):
    """Inputs of the product tower for texts or for photos alone, and the tiny pictures."""

    def __init__(self, table: ProductTable, photos: bool) -> None:
        self.table, self.photos = table, photos

    def __getitem__(self, rows: Rows) -> tuple[dict[str, torch.Tensor], Floats]:
        inputs = dict(self.table.processor.process_product_texts(self.table.texts(rows)))
        tiny = np.zeros((len(rows), SIDE * SIDE * 3 if self.photos else 0), dtype=np.float32)
        if self.photos and self.table.photos:
            photos = self.table.decode(rows)
            inputs |= self.table.processor.process_photos(photos)
            for place, own in enumerate(photos):
                if own:
                    tiny[place] = np.asarray(own[0].resize((SIDE, SIDE), Image.Resampling.BOX)).ravel() / 255
        return inputs, tiny


@torch.inference_mode()
def _embedded(model: MMFusionModel, inputs: _Inputs, rows: Rows, batch_size: int, num_workers: int) -> Iterator[Floats]:
    """Of each batch: vectors, tiny pictures, and whether there is something, side by side."""
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    loader = DataLoader(inputs, batch_size=None, sampler=batches, num_workers=num_workers)
    with progress_bar(total=len(rows), desc="embedding", unit="product", leave=None) as bar:
        for batch, tiny in loader:
            there = batch.get("photo_mask", torch.zeros(len(tiny), 1)) if inputs.photos else batch["attention_mask"]
            output = model.forward_products(
                **{name: value.to(model.device) for name, value in batch.items()}, views_only=True
            )
            embeds = output.image_embeds if inputs.photos else output.text_embeds
            assert embeds is not None
            present = there.bool().any(1, keepdim=True).numpy()
            yield np.concatenate([embeds.float().cpu().numpy() * present, tiny, present], axis=1, dtype=np.float32)
            bar.update(len(tiny))
