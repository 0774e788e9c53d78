"""Features of frozen encoders, computed once and memory-mapped: activations of photos, and token states of texts."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from mmfusion.allocator import keep_freed_memory
from mmfusion.data.photos import files_digest, newest_decoder
from mmfusion.files import replace_text, whole_file
from mmfusion.model import MMFusionModel
from mmfusion.model.errors import MMFusionError
from mmfusion.progress import progress_bar

_DATA, _MANIFEST = "activations.npy", "feature_cache.json"

Array = npt.NDArray[Any]
Role = Literal["query", "product"]
# Of some rows, the number of items of each, and these items (items, …) float32; None where there are none.
Block = tuple[list[int], Array | None]


class FeatureCacheError(MMFusionError):
    """A cache does not belong to the model, the processor or the rows at hand."""


class FeatureCache:
    """Features of rows of a table in one memory-mapped file: activations of their photos, or states of their tokens.

    Each row has a number of items (photos or tokens), and each item is an array of the same shape.

    Attributes:
        folder: Folder of the cache.
        rows: (R,) int64 rows of the table that it holds, ascending.
        counts: (R,) int64 items of each of them.
    """

    def __init__(self, folder: Path, rows: Array, key: str, blocks: Iterable[Block]) -> None:
        """Opens the cache in a folder, or writes it if there is no complete one.

        Args:
            folder: Folder of the cache, created. One that was left half-way has no manifest and is written again.
            rows: Rows that it holds, ascending.
            key: Hash of everything that its content depends on.
            blocks: The items in the order of the rows, computed when they are asked for.

        Raises:
            FeatureCacheError: The folder holds something else.
        """
        self.folder, self.rows = folder, rows
        if not (folder / _MANIFEST).exists():
            self._write(key, blocks)
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["key"] != key:
            raise FeatureCacheError(
                f"The feature cache {folder} was made by another model, processor or set of photos or texts "
                f"({manifest['key'][:12]}, now {key[:12]}); delete the folder, or name another one."
            )
        self.counts = np.asarray(manifest["counts"], dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)])
        data = np.load(folder / _DATA, mmap_mode="r")
        self._shape, self._begin = data.shape[1:], data.offset

    def photos(self, rows: Array, width: int | None = None) -> dict[str, Tensor]:
        """`vision_activations` (P, photos, …) float32 and `photo_mask` (P, photos); empty if none has a photo.

        Args:
            rows: (P,) int64.
            width: How many of the first values of each photo are read, where they are a vector; None: all.

        Raises:
            FeatureCacheError: A row was not cached.
        """
        items, mask = self._items(rows, width)
        return {"vision_activations": items, "photo_mask": mask} if mask.any() else {}

    def texts(self, rows: Array, *, means: bool = False) -> dict[str, Tensor]:
        """What a model is given of texts instead of their tokens: `input_ids`, `attention_mask` and `text_states`.

        The states (R, length, hidden) float32 begin on the left, where the mask (R, length) int64 is 1, and are 0
        elsewhere; the ids (R, length) int64, which nobody reads beside states, are 0.

        Args:
            rows: (R,) int64.
            means: One state for each text that has tokens, the mean of theirs; it is also the mean of this one.

        Raises:
            FeatureCacheError: A row was not cached.
        """
        if means:
            places = self._places(rows)
            counts, found = torch.from_numpy(self.counts[places]), self._read(places)
            states = F.embedding_bag(torch.arange(len(found)), found, counts.cumsum(0) - counts, mode="mean")
            states, mask = states.unsqueeze(1), (counts > 0).unsqueeze(1)
        else:
            states, mask = self._items(rows)
        ids = torch.zeros(mask.shape, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": mask.long(), "text_states": states}

    def _places(self, rows: Array) -> Array:
        """Positions of rows in `self.rows`."""
        places = np.searchsorted(self.rows, rows)
        missing = rows[self.rows.take(places, mode="clip") != rows]
        if len(missing):
            raise FeatureCacheError(
                f"Row {missing[0]} is not in the feature cache {self.folder}, which holds {len(self.rows)} "
                "rows; build a cache for the split that is asked for."
            )
        return places

    def _items(self, rows: Array, width: int | None = None) -> tuple[Tensor, Tensor]:
        """Items (R, widest, …) of rows, at least one wide, and where they are, (R, widest) bool; 0 elsewhere."""
        places = self._places(rows)
        counts = self.counts[places]
        mask = torch.from_numpy(np.arange(max(1, counts.max(initial=0))) < counts[:, None])
        found = self._read(places, width)
        if mask.all():
            return found.unflatten(0, mask.shape), mask
        items = found.new_zeros(*mask.shape, *found.shape[1:])
        items[mask] = found
        return items, mask

    def _read(self, places: Array, width: int | None = None) -> Tensor:
        """Items of rows, one row after the other."""
        counts, starts = self.counts[places], self.offsets[places]
        found = np.empty((int(counts.sum()), *(self._shape if width is None else [width])), dtype=np.float32)
        whole, size = (math.prod(shape) * found.itemsize for shape in (self._shape, found.shape[1:]))
        if width is not None:
            # Item by item, as what is read of one does not touch the next.
            starts = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(len(found))
            counts = np.ones_like(starts)
        parts, ends = found.reshape(-1).view(np.uint8).data, np.cumsum(counts) * size
        # Not by a map of memory, whose pages count as the memory of a process. Opened on each call, so that processes
        # share no position, and nothing is pickled; opening costs microseconds.
        with (self.folder / _DATA).open("rb", buffering=0) as file:
            for start, count, end in zip(starts.tolist(), counts.tolist(), ends.tolist(), strict=True):
                file.seek(self._begin + start * whole)
                if file.readinto(parts[end - count * size : end]) != count * size:
                    raise FeatureCacheError(f"{file.name} is cut off; delete the folder, and it is made again.")
        return torch.from_numpy(found)

    def _write(self, key: str, blocks: Iterable[Block]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        counts: list[int] = []
        shape: tuple[int, ...] = ()
        with whole_file(self.folder / _DATA) as file:
            file.write(_npy_header(0, shape))
            for own, items in blocks:
                counts.extend(own)
                if items is not None:
                    shape = items.shape[1:]
                    file.write(np.ascontiguousarray(items).tobytes())
            file.seek(0)
            file.write(_npy_header(sum(counts), shape))
        manifest = {"key": key, "rows": len(self.rows), "items": sum(counts), "counts": counts}
        replace_text(self.folder / _MANIFEST, json.dumps(manifest))


def build_feature_cache(
    folder: str | os.PathLike[str],
    model: MMFusionModel,
    table: Any,
    rows: Array,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    crop: int = 0,
) -> FeatureCache:
    """Computes the activations below `model.frozen_vision_blocks`, or opens the cache if it is there.

    Args:
        folder: Folder of the cache, created; about 4 bytes per activation and photo.
        model: Model whose vision prefix is frozen.
        table: [`ProductTable`] without a cache, which decodes the photos.
        rows: Product rows to cache.
        batch_size: Products per forward pass.
        num_workers: Processes that decode photos.
        crop: Which crop of the photos, see [`cropped_photo`].

    Raises:
        FeatureCacheError: The folder holds a cache of another model, processor or set of photos.
    """
    rows = np.unique(rows)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    # Without a generator, a loader draws from the global one: dropout would depend on whether a cache was there.
    loader = DataLoader(
        _Pixels(table, crop), batch_size=None, sampler=batches, num_workers=num_workers, generator=torch.Generator()
    )

    @torch.no_grad()
    def blocks() -> Iterator[Block]:
        keep_freed_memory()
        with progress_bar(total=len(rows), desc="caching frozen vision features", unit="product") as bar:
            for own, pixels in loader:
                activations = None if pixels is None else model.get_vision_activations(pixels.to(model.device))
                yield own, None if activations is None else activations.float().cpu().numpy()
                bar.update(len(own))

    return FeatureCache(Path(folder), rows, _photos_key(model, table, rows, crop), blocks())


class _Pixels(Dataset[Any]):
    """Number of photos of each product, and the pixel values of all of them."""

    def __init__(self, table: Any, crop: int) -> None:
        self.table, self.crop = table, crop

    def __getitem__(self, rows: Array) -> tuple[list[int], Tensor | None]:
        processor = self.table.processor
        photos = [own[: processor.max_photos] for own in self.table.decode(rows, self.crop)]
        flat = [photo for own in photos for photo in own]
        return [len(own) for own in photos], processor.pixel_values(flat) if flat else None


def build_text_cache(
    folder: str | os.PathLike[str], model: MMFusionModel, table: Any, rows: Array, role: Role, *, batch_size: int = 64
) -> FeatureCache:
    """Computes the states of a text encoder, or opens the cache if it is there.

    Args:
        folder: Folder for caches, created; each gets its own folder, named by what it depends on. A cache takes
            about 4 bytes per token and unit of width.
        model: Model whose text encoder is frozen.
        table: `QueryTable` or `ProductTable` without a cache and without photos.
        rows: Rows to cache.
        role: Which tower's texts these are.
        batch_size: Texts per forward pass.

    Raises:
        FeatureCacheError: The text encoder is in training.
    """
    encoder = model.text_encoder(role)
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        raise FeatureCacheError(
            f"The {role} text encoder is in training, so its states change and cannot be cached; freeze it with "
            "text_learning_rate 0."
        )
    rows = np.unique(rows)
    texts = [
        (batch[f"{role}_input_ids"], batch[f"{role}_attention_mask"])
        for batch in (table[rows[start : start + batch_size]] for start in range(0, len(rows), batch_size))
    ]

    def blocks() -> Iterator[Block]:
        for input_ids, mask in progress_bar(texts, desc=f"caching frozen {role} text features", unit="batch"):
            states = model.get_text_states(input_ids.to(model.device), mask.to(model.device), role)
            yield mask.sum(1).tolist(), states.float().cpu().numpy()[mask.bool().numpy()]

    key = _texts_key(model, role, texts)
    return FeatureCache(Path(folder) / f"{role}_texts_{key[:16]}", rows, key, blocks())


def _photos_key(model: MMFusionModel, table: Any, rows: Array, crop: int) -> str:
    """Hash of everything that the activations depend on: frozen weights, preprocessing, and the photos themselves.

    Photos that all decoders read the same way have the key that they had before there were several.
    """
    read = (model.frozen_vision_blocks, model.config.image_pooling, list(model.config.vision_feature_layers))
    digest = hashlib.sha256(str((*read, crop) if crop else read).encode())
    for name, value in model.vision_prefix_state():
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    digest.update(json.dumps(table.processor.image_processor.to_dict(), sort_keys=True, default=str).encode())
    digest.update(str(table.processor.max_photos).encode())
    photos = table.catalogue.products.select_columns(["product_id", "image"])
    for start in range(0, len(rows), 1024):
        block = photos[rows[start : start + 1024].tolist()]
        digest.update(repr(list(zip(block["product_id"], block["image"], strict=True))).encode())
        decoders = [newest_decoder(image, table.catalogue.photo_root) for image in block["image"]]
        if max(decoders) > 1:
            digest.update(bytes(decoders))
        # A photo may be replaced under its path.
        digest.update(b"".join(files_digest(image, table.catalogue.photo_root) for image in block["image"]))
    return digest.hexdigest()


def _texts_key(model: MMFusionModel, role: Role, texts: list[tuple[Tensor, Tensor]]) -> str:
    """Hash of everything that the states depend on: the encoder, the role's vector, and the tokens."""
    digest = hashlib.sha256(role.encode())
    state = {**model.text_encoder(role).state_dict(), **({} if model.roles is None else model.roles.state_dict())}
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    for input_ids, mask in texts:
        digest.update(input_ids.numpy().tobytes() + mask.numpy().tobytes())
    return digest.hexdigest()


def _npy_header(count: int, shape: tuple[int, ...]) -> bytes:
    """Of 128 bytes whatever the length of the array, which is not known beforehand."""
    fields = repr({"descr": "<f4", "fortran_order": False, "shape": (count, *shape)})
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + fields.ljust(117).encode() + b"\n"
