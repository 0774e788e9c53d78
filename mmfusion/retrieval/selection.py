"""Searching a FAISS index for rows that are selected, and for as many as are asked for."""

import math
from typing import Any

import faiss as faiss_module
import numpy as np
import numpy.typing as npt

# Its types know neither selectors nor the arguments of its parameters.
faiss: Any = faiss_module

BoolArray = npt.NDArray[np.bool_]
Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
# A product that a search in a graph looks at costs about as much as so many that are compared one after the other.
_SCANNED_PER_STEP = 16


def parts_of(index: Any) -> list[Any]:
    """A FAISS index and those inside of it, outermost first: behind rescoring, and behind transforms of vectors."""
    index = faiss.downcast_index(index)
    inside: list[Any] = []
    if isinstance(index, faiss.IndexRefine):
        inside = [index.base_index, index.refine_index]
    elif isinstance(index, faiss.IndexPreTransform):
        inside = [index.index]
    return [index, *(part for one in inside for part in parts_of(one))]


def search_selected(index: Any, queries: npt.NDArray[np.float32], k: int, wanted: BoolArray | None) -> Found:
    """The k best selected rows of each query: scores and rows (Q, k), row -1 for none.

    The fewer rows are selected, the more clusters are looked into and the more of a graph is walked, so that about as
    many vectors are compared as without a selection. Where that does not find k, all clusters or all vectors are gone
    through: what is selected may lie far from the query.

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
    """The vectors whose scores count, as an index that goes through all of them; None if it is not of such a kind."""
    vectors = faiss.downcast_index(index.refine_index if isinstance(index, faiss.IndexRefine) else index.storage)
    return vectors if isinstance(vectors, (faiss.IndexFlat, faiss.IndexScalarQuantizer)) else None


def _parameters(index: Any, selector: Any, k: int, share: float) -> Any:
    """Search parameters that pass over all but the selected rows; None: there are none.

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


def _search_beyond(index: Any, queries: npt.NDArray[np.float32], k: int, wanted: BoolArray) -> Found:
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
