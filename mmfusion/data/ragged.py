"""Rows of features of different lengths in one memory-mapped file: what the feature caches are made of."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfusion.files import replace_text, whole_file
from mmfusion.model.errors import MMFusionError

_DATA, _MANIFEST = "activations.npy", "feature_cache.json"

Array = npt.NDArray[Any]


class FeatureCacheError(MMFusionError):
    """A cache does not belong to the model, the processor or the rows at hand."""


class RaggedCache:
    """Read access: each row of a table has a number of items, and each item an array of the same shape."""

    def __init__(self, folder: str | os.PathLike[str], rows: Array, counts: Array) -> None:
        """Opens a complete cache; use [`open_cache`] or [`write_cache`].

        Args:
            folder: Folder of the cache.
            rows: (R,) int64 rows of the table that it holds, ascending.
            counts: (R,) int64 items of each of them.
        """
        self.folder = Path(folder)
        self.rows = rows
        self.counts = counts
        self.offsets = np.concatenate([[0], np.cumsum(counts)])

    def places(self, rows: Array) -> Array:
        """Positions of rows in `self.rows`.

        Raises:
            FeatureCacheError: A row was not cached.
        """
        places = np.searchsorted(self.rows, rows)
        if (places >= len(self.rows)).any() or (self.rows[np.minimum(places, len(self.rows) - 1)] != rows).any():
            missing = np.setdiff1d(rows, self.rows)
            raise FeatureCacheError(
                f"Row {missing[0]} is not in the feature cache {self.folder}, which holds {len(self.rows)} "
                "rows; build a cache for the split that is asked for."
            )
        return places

    def padded(self, places: Array, mask: Array) -> Array:
        """Items of rows in the True positions of `mask` (R, widest), one row after the other; 0 elsewhere."""
        # Opened on each call, so that workers share the pages and nothing is pickled; opening costs microseconds.
        data = np.load(self.folder / _DATA, mmap_mode="r")
        out = np.zeros((*mask.shape, *data.shape[1:]), dtype=data.dtype)
        starts, counts = self.offsets[places], self.counts[places]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        out[mask] = data[np.repeat(starts, counts) + within]
        return out


def open_cache(folder: Path, rows: Array, key: str) -> RaggedCache | None:
    """The cache in a folder, or None if there is no complete one.

    Args:
        folder: Folder of the cache.
        rows: Rows that it must hold, ascending.
        key: Hash of everything that its content depends on.

    Raises:
        FeatureCacheError: It holds something else.
    """
    if not (folder / _MANIFEST).exists():
        return None
    manifest = json.loads((folder / _MANIFEST).read_text())
    if manifest["key"] != key:
        raise FeatureCacheError(
            f"The feature cache {folder} was made by another model, processor or set of photos or texts "
            f"({manifest['key'][:12]}, now {key[:12]}); delete the folder, or name another one."
        )
    return RaggedCache(folder, rows, np.asarray(manifest["counts"], dtype=np.int64))


def write_cache(folder: Path, rows: Array, key: str, blocks: Iterable[tuple[list[int], Array | None]]) -> RaggedCache:
    """Writes a cache; a folder that is left half-way has no manifest and is written again.

    Args:
        folder: Folder of the cache, created.
        rows: Rows, ascending.
        key: As for [`open_cache`].
        blocks: In the order of the rows, the number of items of each row of a block, and these items
            (items, …) float32; None where there are none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts: list[int] = []
    shape: tuple[int, ...] = ()
    with whole_file(folder / _DATA) as file:
        file.write(_npy_header(0, shape))
        for own, items in blocks:
            counts.extend(own)
            if items is not None and len(items):
                shape = items.shape[1:]
                file.write(np.ascontiguousarray(items).tobytes())
        file.seek(0)
        file.write(_npy_header(sum(counts), shape))
    manifest = {"key": key, "rows": len(rows), "items": sum(counts), "counts": counts}
    replace_text(folder / _MANIFEST, json.dumps(manifest))
    return RaggedCache(folder, rows, np.asarray(counts, dtype=np.int64))


def _npy_header(count: int, shape: tuple[int, ...]) -> bytes:
    """Of 128 bytes whatever the length of the array, which is not known beforehand."""
    fields = repr({"descr": "<f4", "fortran_order": False, "shape": (count, *shape)})
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + fields.ljust(117).encode() + b"\n"
