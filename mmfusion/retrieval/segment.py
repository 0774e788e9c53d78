"""A FAISS index with its products, of which some may be deleted: what an index over a catalogue is made of."""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import faiss as faiss_module
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.retrieval.id_lookup import IdLookup
from mmfusion.retrieval.selection import BoolArray, search_selected

# Its types leave out what kinds of index can do.
faiss: Any = faiss_module

IntArray = npt.NDArray[np.int64]
# Below so many allowed rows, comparing all of them costs less than an approximate search that passes most of them over,
# and finds them all.
_EXACT_BELOW = 20_000
# Up to so many ids are looked up one by one; for more it pays to hash all that there are.
_FEW_IDS = 10_000


@dataclass(frozen=True)
class Segment:
    """Vectors and their products, row by row.

    Attributes:
        index: FAISS index; its entry i is row i.
        products: Table of N rows with the column `product_id`.
        live: (N,) bool; rows that are not are passed over in each search.
        num_live: How many are.
    """

    index: Any
    products: pa.Table
    live: BoolArray
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    # Handed on to segments of the same products, of which fewer are live.
    _ids: IdLookup | None = field(default=None, repr=False, compare=False)
    # Counted once, as ten million take longer than a search.
    num_live: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_live", int(np.count_nonzero(self.live)))
        if self._ids is None:
            object.__setattr__(self, "_ids", IdLookup(self.products))

    @property
    def ids(self) -> IdLookup:
        """Rows of ids, deleted ones too."""
        assert self._ids is not None
        return self._ids

    def __len__(self) -> int:
        return len(self.products)

    def rows_of(self, ids: pa.Array | pa.ChunkedArray) -> IntArray:
        """Live row of each id, -1 where there is none."""
        if len(ids) <= _FEW_IDS:
            found = (self.ids.row_of(name) for name in ids.to_pylist())
            return np.array([-1 if row is None or not self.live[row] else row for row in found], dtype=np.int64)
        found = pc.index_in(ids, value_set=self.products.column("product_id")).fill_null(-1)
        rows = np.asarray(found, dtype=np.int64)
        return np.where((rows >= 0) & self.live[rows], rows, -1)

    def without(self, rows: IntArray) -> "Segment":
        """The same segment with some more rows deleted."""
        live = self.live.copy()
        live[rows] = False
        return replace(self, live=live)

    def search(
        self, queries: npt.NDArray[np.float32], k: int, allowed: BoolArray | None
    ) -> tuple[npt.NDArray[np.float32], IntArray]:
        """The k best live rows of each query, among the allowed ones: scores and rows (Q, k), row -1 for none.

        Args:
            queries: (Q, D) float32.
            k: At least 1.
            allowed: (N,) bool, or None for all.
        """
        wanted = self.live if allowed is None else self.live & allowed
        count = self.num_live if allowed is None else int(np.count_nonzero(wanted))
        if count == 0 or len(queries) == 0:
            return np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        if count == len(self):
            scores, rows = search_selected(self.index, queries, min(k, count), None)
        elif count <= _EXACT_BELOW and not _estimating(self.index):
            scores, rows = self._search_all_of(np.flatnonzero(wanted), queries, min(k, count))
        else:
            scores, rows = search_selected(self.index, queries, min(k, count), wanted)
        return _widened(scores, rows, k)

    def _search_all_of(
        self, rows: IntArray, queries: npt.NDArray[np.float32], k: int
    ) -> tuple[npt.NDArray[np.float32], IntArray]:
        scores = queries @ self.vectors(rows).T
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(scores, best, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1), rows[np.take_along_axis(best, order, axis=1)]

    def vectors(self, rows: IntArray) -> npt.NDArray[np.float32]:
        """Vectors (n, D) of rows, as the index holds them; with rescoring, those that it scores again."""
        self._map_rows()
        found: npt.NDArray[np.float32] = self.index.reconstruct_batch(rows)
        return found

    def copied_index(self) -> Any:
        """A copy of the FAISS index that may be changed."""
        self._map_rows()
        return faiss.clone_index(self.index)

    def write_vectors(self, path: Path) -> None:
        """Writes the FAISS index to a file."""
        with self._lock:
            faiss.write_index(self.index, str(path))

    def _map_rows(self) -> None:
        # FAISS finds entries of inverted lists through a map that it makes once, and that is not to be copied by half.
        with self._lock:
            ivf = _inverted(self.index)
            if ivf is not None and ivf.direct_map.no():
                ivf.make_direct_map()


def holds_exact_vectors(index: Any) -> bool:
    """Whether an index gives back the vectors that it was given, not approximations."""
    kinds = (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexIVFFlat)
    return isinstance(faiss.downcast_index(index), kinds)


def _estimating(index: Any) -> bool:
    """Whether an index estimates scores from bits, which vectors made of them would not have."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _estimating(index.index)
    kinds = (faiss.IndexRaBitQ, faiss.IndexIVFRaBitQ, faiss.IndexRaBitQFastScan, faiss.IndexIVFRaBitQFastScan)
    return isinstance(index, kinds)


def _inverted(index: Any) -> Any:
    if isinstance(faiss.downcast_index(index), faiss.IndexRefine):
        # Its vectors are those that it scores again, which lie in a row.
        return None
    try:
        return faiss.extract_index_ivf(index)
    except RuntimeError:
        return None


def _widened(scores: npt.NDArray[np.float32], rows: IntArray, k: int) -> tuple[npt.NDArray[np.float32], IntArray]:
    scores = np.where(rows < 0, -np.inf, scores).astype(np.float32)
    missing = ((0, 0), (0, k - rows.shape[1]))
    return np.pad(scores, missing, constant_values=-np.inf), np.pad(rows, missing, constant_values=-1)
