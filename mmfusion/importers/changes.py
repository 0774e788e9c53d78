"""What is new, changed and gone since the last import, by a digest of each product that the catalogue keeps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmfusion.data.catalogue_schema import is_list, reading

DIGESTS = ".digests.parquet"
"""File of a catalogue with a digest of each product."""

_SHOWN = 10


@dataclass(frozen=True)
class Changes:
    """Products of two imports compared.

    Attributes:
        new: Number of products that were not there.
        changed: Number of products with other texts, columns or photos.
        gone: Number of products that are not there any more.
        same: Number of products that are as they were.
        examples: Ids of the first new, changed and gone products, by these words.
    """

    new: int
    changed: int
    gone: int
    same: int
    examples: dict[str, list[str]]

    def __str__(self) -> str:
        return f"{self.new:,} new, {self.changed:,} changed, {self.gone:,} gone, {self.same:,} as before"


class Digests:
    """Digests of products as they are written: 8 bytes over the columns that have a value, and over the photos.

    A photo counts by its path, size and time of change, or by its bytes. The order of columns does not count, nor does
    the split.
    """

    def __init__(self, root: Path) -> None:
        """Digests of products whose photos have paths below `root`."""
        self._root = os.fspath(root)
        self._ids: list[pa.ChunkedArray] = []
        self._digests: list[npt.NDArray[np.uint64]] = []

    def noted(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The tables as they are, once their products are noted."""
        for table in tables:
            self._ids.append(table["product_id"].cast(pa.string()))
            self._digests.append(_digests(table, self._root))
            yield table

    def table(self) -> pa.Table:
        """Columns `product_id` and `digest` (uint64)."""
        ids = pa.chunked_array([chunk for column in self._ids for chunk in column.chunks], pa.string())
        return pa.table({"product_id": ids, "digest": np.concatenate([*self._digests, np.empty(0, np.uint64)])})

    def whole(self) -> bytes:
        """One digest (hex) of all products in their order."""
        return hashlib.blake2b(b"".join(map(np.ndarray.tobytes, self._digests)), digest_size=16).hexdigest().encode()

    def write(self, path: Path) -> None:
        """Keeps the digests for the next import."""
        pq.write_table(self.table(), path, compression="zstd")

    def against(self, folder: Path) -> Changes | None:
        """What has changed since the catalogue in a folder was written; None where there is none.

        Raises:
            CatalogueError: The catalogue cannot be read.
        """
        before = _previous(folder)
        return None if before is None else _compare(before, self.table())


def _previous(folder: Path) -> pa.Table | None:
    products, digests = folder / "products.parquet", folder / DIGESTS
    if not products.is_file():
        return None
    with reading(str(folder), "Give another --output, or remove the files there."):
        if digests.is_file():
            with pq.ParquetFile(digests) as file:
                return file.read()
        # Of a catalogue that was written by hand; its photos count as they are now.
        found = Digests(folder)
        with pq.ParquetFile(products) as file:
            for batch in file.iter_batches(1024):
                list(found.noted([pa.Table.from_batches([batch])]))
        return found.table()


def _compare(before: pa.Table, after: pa.Table) -> Changes:
    place = pc.fill_null(pc.index_in(after["product_id"], value_set=before["product_id"]), -1).to_numpy()
    known = place >= 0
    old, new = before["digest"].to_numpy(), after["digest"].to_numpy()
    changed = known.copy()
    changed[known] = old[place[known]] != new[known]
    gone = np.ones(len(old), dtype=bool)
    gone[place[known]] = False
    masks = {"new": (after, ~known), "changed": (after, changed), "gone": (before, gone)}
    return Changes(
        **{name: int(mask.sum()) for name, (_, mask) in masks.items()},
        same=int((known & ~changed).sum()),
        examples={
            name: table["product_id"].take(np.flatnonzero(mask)[:_SHOWN]).to_pylist()
            for name, (table, mask) in masks.items()
        },
    )


def _digests(table: pa.Table, root: str) -> npt.NDArray[np.uint64]:
    parts = []
    for name in sorted(table.column_names):
        if name == "image":
            parts.append(pa.array(_signatures(table[name], root), pa.string()))
        elif name not in ("product_id", "split"):
            # What is null adds nothing, so that a new column without values changes no product.
            parts.append(pc.binary_join_element_wise(f"{name}=", _as_text(table[name]), ""))
    if not parts:
        return np.zeros(len(table), np.uint64)
    rows = pc.binary_join_element_wise(*parts, "\x1f", null_handling="skip")
    digests = b"".join(hashlib.blake2b(row.encode(), digest_size=8).digest() for row in rows.to_pylist())
    return np.frombuffer(digests, np.uint64)


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        return pa.chunked_array([pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())])


def _signatures(column: pa.ChunkedArray, root: str) -> list[str | None]:
    """A text for the photos of each product."""
    signatures: list[str | None] = []
    # Variants of a product follow each other and show the same photos.
    of_file = lru_cache(maxsize=1024)(partial(_of_file, root))
    for chunk in column.chunks:
        several = is_list(chunk.type)
        rows = pc.list_parent_indices(chunk).to_pylist() if several else range(len(chunk))
        flat = pc.list_flatten(chunk) if several else chunk
        fields = {field.name for field in flat.type} if pa.types.is_struct(flat.type) else set()
        paths, data = (
            pc.struct_field(flat, name).to_pylist() if name in fields else [None] * len(flat)
            for name in ("path", "bytes")
        )
        texts: list[str | None] = [None] * len(chunk)
        for row, path, photo in zip(rows, paths, data, strict=True):
            if photo is not None or path:
                before = texts[row]
                text = of_file(path) if photo is None else hashlib.blake2b(photo, digest_size=8).hexdigest()
                texts[row] = text if before is None else f"{before}|{text}"
        signatures += texts
    return signatures


def _of_file(root: str, path: str) -> str:
    try:
        found = os.stat(f"{root}/{path}")
    except OSError:
        return path
    return f"{path}:{found.st_size}:{found.st_mtime_ns}"
