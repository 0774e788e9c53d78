"""A FAISS index with its products, of which some may be deleted: what an index over a catalogue is made of."""

import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss as faiss_module
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.retrieval.products import IdLookup, IntArray
from mmfusion.retrieval.selection import BoolArray, Found, parts_of, search_selected
from mmfusion.retrieval.vectors import BLOCK, build_faiss, make_faiss

# Its types leave out what kinds of index can do.
faiss: Any = faiss_module

# Below so many allowed rows, comparing all of them costs less than an approximate search that passes most of them over,
# and finds them all.
_EXACT_BELOW = 20_000
# Up to so many ids are looked up one by one; for more it pays to hash all that there are.
_FEW_IDS = 10_000


class Segment:
    """Vectors and their products, row by row.

    Args:
        index: FAISS index; its entry i is row i.
        products: Table of N rows with the column `product_id`.
        live: (N,) bool; rows that are not are passed over in each search. None: all are live.

    Attributes:
        index, products, live: As given.
        metadata: Column of structs; None if there is none.
        num_live: Number of live rows.
        ids: Rows of ids, deleted ones too.
    """

    def __init__(self, index: Any, products: pa.Table, live: BoolArray | None = None) -> None:
        self.index, self.products = index, products
        self.metadata = products.column("metadata") if "metadata" in products.column_names else None
        self.ids = IdLookup(products)
        self._lock = threading.Lock()
        self._set_live(np.ones(len(products), dtype=bool) if live is None else live)

    def _set_live(self, live: BoolArray) -> None:
        # Counted once, as ten million take longer than a search.
        self.live, self.num_live = live, int(np.count_nonzero(live))

    def __len__(self) -> int:
        return len(self.products)

    def rows_of(self, ids: pa.Array | pa.ChunkedArray) -> IntArray:
        """Live row of each id, -1 where there is none."""
        if len(ids) <= _FEW_IDS:
            found = (self.ids.row_of(name) for name in ids.to_pylist())
            rows = np.array([-1 if row is None else row for row in found], dtype=np.int64)
        else:
            known = pc.index_in(ids, value_set=self.products.column("product_id"))
            rows = np.asarray(known.fill_null(-1), dtype=np.int64)
        return np.where((rows >= 0) & self.live[rows], rows, -1) if len(self) else rows

    def without(self, rows: IntArray) -> "Segment":
        """The same segment with some more rows deleted; it shares all but what is live."""
        other, live = copy.copy(self), self.live.copy()
        live[rows] = False
        other._set_live(live)
        return other

    def live_products(self) -> pa.Table:
        """The products that are not deleted."""
        return self.products.filter(pa.array(self.live))

    def live_blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Vectors of the rows that are not deleted, block by block."""
        rows = np.flatnonzero(self.live)
        for start in range(0, len(rows), BLOCK):
            yield self.vectors(rows[start : start + BLOCK])

    def search(self, queries: npt.NDArray[np.float32], k: int, allowed: BoolArray | None) -> Found:
        """The best live rows of each query, among the allowed ones.

        Args:
            queries: (Q, D) float32.
            k: At least 1.
            allowed: (N,) bool, or None for all.

        Returns:
            Scores and rows (Q, at most k), row -1 where an index that is not exact finds no more.
        """
        wanted = self.live if allowed is None else self.live & allowed
        count = self.num_live if allowed is None else int(np.count_nonzero(wanted))
        k = min(k, count)
        if k == 0 or len(queries) == 0:
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        if count < len(self) and count <= _EXACT_BELOW and not self._estimates():
            rows = np.flatnonzero(wanted)
            scores, places = faiss.knn(queries, self.vectors(rows), k, faiss.METRIC_INNER_PRODUCT)
            return scores, rows[places]
        return search_selected(self.index, queries, k, None if count == len(self) else wanted)

    def vectors(self, rows: IntArray) -> npt.NDArray[np.float32]:
        """Vectors (n, D) of rows, as the index holds them; with rescoring, those that it scores again."""
        self._map_rows()
        found: npt.NDArray[np.float32] = self.index.reconstruct_batch(rows)
        return found

    def holds_exact_vectors(self) -> bool:
        """Whether the index gives back the vectors that it was given, not approximations."""
        kinds = (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexIVFFlat)
        return isinstance(faiss.downcast_index(self.index), kinds)

    def write_vectors(self, path: Path) -> None:
        """Writes the FAISS index to a file."""
        with self._lock:
            faiss.write_index(self.index, str(path))

    def copied_codes(self) -> Any:
        """A FAISS index, which may be changed, with the live vectors, numbered anew; None if codes cannot be copied."""
        # Codes for fast scans of 32 at a time lie interleaved; a graph has its rows in its links.
        kinds = (faiss.IndexRefine, faiss.IndexPreTransform, faiss.IndexIVF, faiss.IndexFlatCodes)
        sources = parts_of(self.index)
        if not all(isinstance(one, kinds) and not isinstance(one, faiss.IndexIVFFastScan) for one in sources):
            return None
        self._map_rows()
        copied = faiss.clone_index(self.index)
        for target, source in zip(parts_of(copied), sources, strict=True):
            if isinstance(source, faiss.IndexIVF):
                _copy_lists(target, source, self.live)
            elif isinstance(source, faiss.IndexFlatCodes):
                _copy_codes(target, source, self.live)
            target.ntotal = self.num_live
        return copied

    def _estimates(self) -> bool:
        """Whether the index estimates scores from bits, which vectors made of them would not have."""
        kinds = (faiss.IndexRaBitQ, faiss.IndexIVFRaBitQ, faiss.IndexRaBitQFastScan, faiss.IndexIVFRaBitQFastScan)
        return isinstance(self._behind_transforms(), kinds)

    def _map_rows(self) -> None:
        # FAISS finds entries of inverted lists through a map that it makes once, and that is not to be copied by half.
        # (With rescoring, vectors are those that are scored again, which lie in a row.)
        with self._lock:
            index = self._behind_transforms()
            if isinstance(index, faiss.IndexIVF) and index.direct_map.no():
                index.make_direct_map()

    def _behind_transforms(self) -> Any:
        return next(part for part in parts_of(self.index) if not isinstance(part, faiss.IndexPreTransform))


def merged(segments: tuple[Segment, ...], factory: str, train_size: int) -> Segment:
    """One segment of the live rows of several.

    An index without links keeps what it was trained to, clusters too, and the codes of vectors that it held: they are
    copied, not computed again, as a lossy code decoded and coded once more can become another one. HNSW is built anew
    from the vectors that the index holds, and so are codes for fast scans (of the vectors that are scored again, if
    there are such).

    Args:
        segments: the base first.
        factory: FAISS factory string.
        train_size: vectors to train on at most, where an index is built anew.
    """
    products = pa.concat_tables([one.live_products() for one in segments])
    index = segments[0].copied_codes()
    if index is None and not len(products):
        index = make_faiss(segments[0].index.d, factory)
    elif index is None:
        index = build_faiss((block for one in segments for block in one.live_blocks()), factory, train_size)
    else:
        for one in segments[1:]:
            for block in one.live_blocks():
                index.add(block)
    return Segment(index, products)


def _copy_codes(target: Any, source: Any, live: BoolArray) -> None:
    """Puts the live codes of an index into the place of those of its copy."""
    # What is memory-mapped cannot grow.
    target.codes, target.ntotal = faiss.MaybeOwnedVectorUInt8(), 0
    codes = faiss.rev_swig_ptr(source.codes.data(), len(live) * source.code_size).reshape(-1, source.code_size)
    rows = np.flatnonzero(live)
    for start in range(0, len(rows), BLOCK):
        target.add_sa_codes(codes[rows[start : start + BLOCK]])


def _copy_lists(target: Any, source: Any, live: BoolArray) -> None:
    """Puts the live codes of an index with clusters into the place of those of its copy."""
    numbers = np.cumsum(live) - 1
    lists = faiss.ArrayInvertedLists(source.nlist, source.code_size)
    target.replace_invlists(lists, True)
    # They belong to the index now.
    lists.this.disown()
    target.set_direct_map_type(faiss.DirectMap.NoMap)
    for cluster in range(source.nlist):
        size = source.invlists.list_size(cluster)
        if size:
            ids = faiss.rev_swig_ptr(source.invlists.get_ids(cluster), size).copy()
            codes = faiss.rev_swig_ptr(source.invlists.get_codes(cluster), size * source.invlists.code_size)
            kept = np.ascontiguousarray(codes.reshape(size, -1)[live[ids]])
            names = np.ascontiguousarray(numbers[ids[live[ids]]])
            lists.add_entries(cluster, len(names), faiss.swig_ptr(names), faiss.swig_ptr(kept))
