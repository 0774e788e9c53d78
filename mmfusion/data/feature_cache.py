"""Activations of the frozen lower part (or all) of a vision encoder, computed once and memory-mapped."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from mmfusion.data.photos import newest_decoder
from mmfusion.data.ragged import RaggedCache, open_cache, write_cache
from mmfusion.model import MMFusionModel, MMFusionProcessor


class FeatureCache:
    """Read access to a cache: `cache[rows]` gives the activations of products."""

    def __init__(self, cache: RaggedCache) -> None:
        self.items = cache

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """`vision_activations` (P, photos, …) float32 and `photo_mask` (P, photos); empty if none has a photo.

        Raises:
            FeatureCacheError: A row was not cached.
        """
        places = self.items.places(rows)
        counts = self.items.counts[places]
        widest = int(counts.max(initial=0))
        if widest == 0:
            return {}
        mask = np.arange(widest) < counts[:, None]
        activations = self.items.padded(places, mask)
        return {"vision_activations": torch.from_numpy(activations), "photo_mask": torch.from_numpy(mask)}


class _Photos(Dataset[Any]):
    def __init__(self, table: Any, view: int) -> None:
        self.table, self.view = table, view

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> tuple[list[int], Tensor | None]:
        photos = [own[: self.table.processor.max_photos] for own in self.table.decode(rows, self.view)]
        flat = [photo for own in photos for photo in own]
        return [len(own) for own in photos], self.table.processor.pixel_values(flat) if flat else None


def build_feature_cache(
    folder: str | os.PathLike[str],
    model: MMFusionModel,
    table: Any,
    rows: npt.NDArray[np.int64],
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    view: int = 0,
) -> FeatureCache:
    """Computes the activations below `model.frozen_vision_blocks`, or opens the cache if it is there.

    Args:
        folder: Folder of the cache, created; about 4 bytes per activation and photo.
        model: Model whose vision prefix is frozen.
        table: [`ProductTable`] without a cache, which decodes the photos.
        rows: Product rows to cache.
        batch_size: Products per forward pass.
        num_workers: Processes that decode photos.
        view: Which view of the photos, see [`photo_view`].

    Raises:
        FeatureCacheError: The folder holds a cache of another model, processor or set of photos.
    """
    folder, rows = Path(folder), np.unique(rows)
    key = _key(model, table.processor, table.catalogue, rows, view)
    cache = open_cache(folder, rows, key)
    if cache is None:
        cache = write_cache(folder, rows, key, _blocks(model, table, rows, batch_size, num_workers, view))
    return FeatureCache(cache)


@torch.no_grad()
def _blocks(
    model: MMFusionModel, table: Any, rows: npt.NDArray[np.int64], batch_size: int, num_workers: int, view: int
) -> Iterator[tuple[list[int], npt.NDArray[np.float32] | None]]:
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    loader = DataLoader(_Photos(table, view), batch_size=None, sampler=batches, num_workers=num_workers)
    with tqdm(total=len(rows), desc="caching frozen vision features", unit="product") as bar:
        for own, pixels in loader:
            activations = None if pixels is None else model.get_vision_activations(pixels.to(model.device))
            yield own, None if activations is None else activations.float().cpu().numpy()
            bar.update(len(own))


def _key(
    model: MMFusionModel, processor: MMFusionProcessor, catalogue: Any, rows: npt.NDArray[np.int64], view: int
) -> str:
    """Hash of everything that the activations depend on: frozen weights, preprocessing, and the photos themselves.

    Photos that all decoders read alike have the key that they had before there were several.
    """
    read = (model.frozen_vision_blocks, model.config.image_pooling, list(model.config.vision_feature_layers))
    digest = hashlib.sha256(str((*read, view) if view else read).encode())
    for name, value in model.vision_prefix_state():
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    digest.update(json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str).encode())
    digest.update(str(processor.max_photos).encode())
    photos = catalogue.products.select_columns(["product_id", "image"])
    for start in range(0, len(rows), 1024):
        block = photos[rows[start : start + 1024].tolist()]
        digest.update(repr(list(zip(block["product_id"], block["image"], strict=True))).encode())
        decoders = [newest_decoder(image, catalogue.photo_root) for image in block["image"]]
        if max(decoders) > 1:
            digest.update(bytes(decoders))
    return digest.hexdigest()
