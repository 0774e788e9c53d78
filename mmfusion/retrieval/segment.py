"""A FAISS index with its products, of which some may be deleted; search and compaction of it."""

import copy
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.lexical import WordCounts
from mmfusion.retrieval.products import IdLookup, words_of
from mmfusion.retrieval.vectors import BLOCK, BoolArray, FloatArray, IntArray, build_faiss, faiss, make_faiss

# Below so many allowed rows, comparing all of them costs less than an approximate search that skips most of them,
# and finds them all.
_EXACT_BELOW = 20_000
# Looking at one product in a graph takes as long as comparing about so many one after the other.
_SCANNED_PER_STEP = 16
# Up to so many ids are looked up one by one; for more it pays to hash all that there are.
_FEW_IDS = 10_000

Found = tuple[FloatArray, IntArray]


class Segment:
    """Vectors and their products, row by row.

    Args:
        index: FAISS index; its entry i is row i.
        products: Table of N rows with the column `product_id`.
        live: (N,) bool; searches skip the other rows. None: all are live.
        words: Counts of the words of each product; None: there is no search by words.

    Attributes:
        index, products, live, words: As given.
        metadata: Column of structs; None if there is none.
        num_live: Number of live rows.
        ids: Rows of ids, deleted ones too.
    """

    def __init__(
        self, index: Any, products: pa.Table, live: BoolArray | None = None, words: WordCounts | None = None
    ) -> None:
        self.index, self.products, self.words = index, products, words
        self.metadata = products.column("metadata") if "metadata" in products.column_names else None
        self.ids = IdLookup(products)
        self._behind_transforms = next(
            part for part in parts_of(index) if not isinstance(part, faiss.IndexPreTransform)
        )
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

    def live_blocks(self) -> Iterator[FloatArray]:
        """Vectors of the rows that are not deleted, block by block."""
        rows = np.flatnonzero(self.live)
        for start in range(0, len(rows), BLOCK):
            yield self.vectors(rows[start : start + BLOCK])

    def search(self, queries: FloatArray, k: int, allowed: BoolArray | None) -> Found:
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

    def vectors(self, rows: IntArray) -> FloatArray:
        """Vectors (n, D) of rows, as the index holds them; with rescoring, those that it scores again."""
        self._map_rows()
        found: FloatArray = self.index.reconstruct_batch(rows)
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
        """A copy of the FAISS index with the live vectors, numbered from 0; None if its codes cannot be copied."""
        # Codes for fast scans of 32 at a time are interleaved; a graph has its rows in its links.
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
        return isinstance(self._behind_transforms, kinds)

    def _map_rows(self) -> None:
        # FAISS finds entries of inverted lists through a map that it makes once, and that is not to be copied by half.
        # (With rescoring, vectors are those that are scored again, which are stored in order.)
        with self._lock:
            index = self._behind_transforms
            if isinstance(index, faiss.IndexIVF) and index.direct_map.no():
                index.make_direct_map()


def merged(segments: tuple[Segment, ...], factory: str, train_size: int, lexical: Sequence[str] = ()) -> Segment:
    """One segment of the live rows of several.

    An index without links keeps what it was trained to, clusters too, and the codes of vectors that it held: they are
    copied, not computed again, as a lossy code decoded and coded once more can become another one. HNSW is built again
    from the vectors that the index holds, and so are codes for fast scans (of the vectors that are scored again, if
    there are such).

    Args:
        segments: the base first.
        factory: FAISS factory string.
        train_size: vectors to train on at most, where an index is built again.
        lexical: columns whose words are counted, if any.
    """
    products = pa.concat_tables([one.live_products() for one in segments])
    index = segments[0].copied_codes()
    if index is None and not len(products):
        index = make_faiss(segments[0].index.d, factory)
    elif index is None:
        blocks = (block for one in segments for block in one.live_blocks())
        index = build_faiss(blocks, len(products), factory, train_size)
    else:
        for one in segments[1:]:
            for block in one.live_blocks():
                index.add(block)
    return Segment(index, products, words=words_of(products, lexical))


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


def parts_of(index: Any) -> list[Any]:
    """A FAISS index and those inside of it, outermost first: behind rescoring, and behind transforms of vectors."""
    index = faiss.downcast_index(index)
    inside: list[Any] = []
    if isinstance(index, faiss.IndexRefine):
        inside = [index.base_index, index.refine_index]
    elif isinstance(index, faiss.IndexPreTransform):
        inside = [index.index]
    return [index, *(part for one in inside for part in parts_of(one))]


def search_selected(index: Any, queries: FloatArray, k: int, wanted: BoolArray | None) -> Found:
    """The k best selected rows of each query: scores and rows (Q, k), row -1 for none.

    The fewer rows are selected, the more clusters are looked into and the more of a graph is walked, so that about as
    many vectors are compared as without a selection. Where that does not find k, all clusters or all vectors are
    searched: what is selected may be far from the query.

    Args:
        index: FAISS index.
        queries: (Q, D) float32.
        k: From 1 to the number of selected rows.
        wanted: (N,) bool, the selected rows; None: all.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        for number in range(index.chain.size()):
            queries = index.chain.at(number).apply(queries)
        return search_selected(index.index, queries, k, wanted)
    graph = next((part for part in parts_of(index) if isinstance(part, faiss.IndexHNSW)), None)
    vectors = None if graph is None else _behind_graph(index)
    selector = None
    if wanted is None:
        scores, rows = index.search(queries, k)
    else:
        selector = faiss.IDSelectorBitmap(np.packbits(wanted, bitorder="little"))
        share = np.count_nonzero(wanted) / len(wanted)
        steps = 0 if graph is None else max(graph.hnsw.efSearch, k) / share
        if vectors is not None and steps * _SCANNED_PER_STEP > share * len(wanted):
            index = vectors
        parameters = _parameters(index, selector, k, share)
        if parameters is None:
            return _search_beyond(index, queries, k, wanted)
        scores, rows = index.search(queries, k, params=parameters)
    short = np.flatnonzero((rows < 0).any(axis=1))
    wide = index if graph is None else vectors
    if len(short) and wide is not None:
        scores[short], rows[short] = wide.search(queries[short], k, params=_parameters(wide, selector, k, 0.0))
    return scores, rows


def _behind_graph(index: Any) -> Any:
    """The vectors whose scores count, as an index that compares all of them; None if it is of another kind."""
    vectors = faiss.downcast_index(index.refine_index if isinstance(index, faiss.IndexRefine) else index.storage)
    return vectors if isinstance(vectors, (faiss.IndexFlat, faiss.IndexScalarQuantizer)) else None


def _parameters(index: Any, selector: Any, k: int, share: float) -> Any:
    """Search parameters that skip all but the selected rows; None if the index has none.

    Args:
        index: FAISS index, whose own parameters hold otherwise.
        selector: Of rows, or None.
        k: Rows wanted.
        share: How many of all rows are selected; 0 looks into all clusters.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        # A selector given to the refining index itself would be ignored.
        first = _parameters(index.base_index, selector, math.ceil(k * index.k_factor), share)
        return first and faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=first)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(index.index, selector, k, share)
        return inner and faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        probes = index.nlist if share == 0 else min(index.nlist, math.ceil(index.nprobe / share))
        return faiss.SearchParametersIVF(sel=selector, nprobe=probes)
    if isinstance(index, faiss.IndexHNSW):
        width = min(index.ntotal, math.ceil(max(index.hnsw.efSearch, k) / share))
        return faiss.SearchParametersHNSW(sel=selector, efSearch=width)
    if isinstance(index, (faiss.IndexFlat, faiss.IndexScalarQuantizer, faiss.IndexRaBitQ)):
        return faiss.SearchParameters(sel=selector)
    return None


def _search_beyond(index: Any, queries: FloatArray, k: int, wanted: BoolArray) -> Found:
    """Searches for more and more, until k of them are selected: for kinds of index that take no selector."""
    fetched = k
    while True:
        fetched = min(len(wanted), 2 * fetched)
        scores, rows = index.search(queries, fetched)
        good = (rows >= 0) & wanted[np.maximum(rows, 0)]
        if fetched == len(wanted) or (good.sum(axis=1) >= k).all():
            order = np.argsort(~good, axis=1, kind="stable")[:, :k]
            rows = np.where(good, rows, -1)
            return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
