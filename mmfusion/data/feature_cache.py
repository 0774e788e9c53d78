"""Activations of the frozen lower part of a vision encoder, computed once and memory-mapped."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from mmfusion.model import MMFusionModel, MMFusionProcessor

_DATA, _MANIFEST = "activations.npy", "feature_cache.json"


class FeatureCacheError(ValueError):
    """A cache does not belong to the model, the processor or the photos at hand."""


class FeatureCache:
    """Read access to a cache: `cache[rows]` gives the activations of products."""

    def __init__(
        self, folder: str | os.PathLike[str], rows: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
    ) -> None:
        """Opens a complete cache; use [`build_feature_cache`] to make or check one.

        Args:
            folder: Folder of the cache.
            rows: Product rows that it holds, ascending.
            counts: Photos of each of them.
        """
        self.folder = Path(folder)
        self.rows = rows
        self.counts = counts
        self.offsets = np.concatenate([[0], np.cumsum(counts)])

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """`vision_activations` (P, photos, …) float32 and `photo_mask` (P, photos); empty if none has a photo.

        Raises:
            FeatureCacheError: A row was not cached.
        """
        places = np.searchsorted(self.rows, rows)
        if (places >= len(self.rows)).any() or (self.rows[np.minimum(places, len(self.rows) - 1)] != rows).any():
            missing = np.setdiff1d(rows, self.rows)
            raise FeatureCacheError(
                f"Product row {missing[0]} is not in the feature cache {self.folder}, which holds {len(self.rows)} "
                "products; build a cache for the split that is asked for."
            )
        counts = self.counts[places]
        widest = int(counts.max(initial=0))
        if widest == 0:
            return {}
        data = np.load(self.folder / _DATA, mmap_mode="r")
        mask = np.arange(widest) < counts[:, None]
        activations = np.zeros((*mask.shape, *data.shape[1:]), dtype=np.float32)
        activations[mask] = data[(self.offsets[places][:, None] + np.arange(widest))[mask]]
        return {"vision_activations": torch.from_numpy(activations), "photo_mask": torch.from_numpy(mask)}


class _Photos(Dataset[Any]):
    def __init__(self, table: Any) -> None:
        self.table = table

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> tuple[list[int], Tensor | None]:
        photos = [own[: self.table.processor.max_photos] for own in self.table.decode(rows)]
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
) -> FeatureCache:
    """Computes the activations below `model.frozen_vision_blocks`, or opens the cache if it is there.

    Args:
        folder: Folder of the cache, created; about 4 bytes per activation and photo.
        model: Model whose vision prefix is frozen.
        table: [`ProductTable`] without a cache, which decodes the photos.
        rows: Product rows to cache.
        batch_size: Products per forward pass.
        num_workers: Processes that decode photos.

    Raises:
        FeatureCacheError: The folder holds a cache of another model, processor or set of photos.
    """
    folder, rows = Path(folder), np.unique(rows)
    key = _key(model, table.processor, table.catalogue, rows)
    manifest = folder / _MANIFEST
    if manifest.exists():
        return _open(folder, rows, key)
    folder.mkdir(parents=True, exist_ok=True)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    loader = DataLoader(_Photos(table), batch_size=None, sampler=batches, num_workers=num_workers)
    counts: list[int] = []
    with _Appender(folder / _DATA) as out:
        for own, pixels in tqdm(loader, desc="caching frozen vision features", unit="batch"):
            counts.extend(own)
            if pixels is not None:
                out.append(model.get_vision_activations(pixels.to(model.device)).float().cpu().numpy())
    _write_json(manifest, {"key": key, "products": len(rows), "photos": int(sum(counts)), "counts": counts})
    return FeatureCache(folder, rows, np.asarray(counts, dtype=np.int64))


def _open(folder: Path, rows: npt.NDArray[np.int64], key: str) -> FeatureCache:
    manifest = json.loads((folder / _MANIFEST).read_text())
    if manifest["key"] != key:
        raise FeatureCacheError(
            f"The feature cache {folder} was made by another model, processor or set of photos "
            f"({manifest['key'][:12]}, now {key[:12]}); delete the folder, or name another one."
        )
    return FeatureCache(folder, rows, np.asarray(manifest["counts"], dtype=np.int64))


def _key(model: MMFusionModel, processor: MMFusionProcessor, catalogue: Any, rows: npt.NDArray[np.int64]) -> str:
    """Hash of everything that the activations depend on: frozen weights, preprocessing, and the photos themselves."""
    read = (model.frozen_vision_blocks, model.config.image_pooling, list(model.config.vision_feature_layers))
    digest = hashlib.sha256(str(read).encode())
    for name, value in model.vision_prefix_state():
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    digest.update(json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str).encode())
    digest.update(str(processor.max_photos).encode())
    photos = catalogue.products.select_columns(["product_id", "image"])
    for start in range(0, len(rows), 1024):
        block = photos[rows[start : start + 1024].tolist()]
        digest.update(repr(list(zip(block["product_id"], block["image"], strict=True))).encode())
    return digest.hexdigest()


class _Appender:
    """Writes blocks of rows to one .npy file of a length not known beforehand, and renames it once it is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_suffix(".partial")
        self.shape: tuple[int, ...] = ()
        self.count = 0

    def __enter__(self) -> "_Appender":
        self.file = self.partial.open("wb")
        self.file.write(b"\0" * 128)
        return self

    def append(self, block: npt.NDArray[np.float32]) -> None:
        self.shape = block.shape[1:]
        self.count += len(block)
        self.file.write(np.ascontiguousarray(block).tobytes())

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.file.seek(0)
            self._write_header()
            self.file.flush()
            os.fsync(self.file.fileno())
        self.file.close()
        if kind is None:
            os.replace(self.partial, self.path)

    def _write_header(self) -> None:
        fields = repr({"descr": "<f4", "fortran_order": False, "shape": (self.count, *self.shape)})
        self.file.write(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + fields.ljust(117).encode() + b"\n")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    os.replace(partial, path)
