"""Merging what was added and deleted into a new base index."""

from collections.abc import Iterator
from typing import Any

import faiss as faiss_module
import numpy as np
import pyarrow as pa

from mmfusion.retrieval.segment import Segment
from mmfusion.retrieval.vectors import build_faiss

# Its types leave out what inverted lists can do.
faiss: Any = faiss_module

_BLOCK = 65_536


def merge(segments: tuple[Segment, ...], factory: str, train_size: int) -> Segment:
    """One segment of the live rows of several.

    An IVF index keeps its clusters, and the codes of vectors that it held: they are copied, not computed again, as a
    lossy code decoded and coded once more can become another one. Other kinds are built anew from the vectors that the
    index holds, which is exact for Flat and HNSW.

    Args:
        segments: the base first.
        factory: FAISS factory string.
        train_size: vectors to train on at most, where an index is built anew.
    """
    base = segments[0]
    products = live_products(segments)
    index = _with_copied_codes(base)
    if index is None:
        index = build_faiss((block for one in segments for block in live_blocks(one)), factory, train_size)
    else:
        for one in segments[1:]:
            for block in live_blocks(one):
                index.add(block)
    return Segment(index, products, np.ones(len(products), dtype=bool))


def live_products(segments: tuple[Segment, ...]) -> pa.Table:
    """The products that are not deleted, those of the base first."""
    return pa.concat_tables([one.products.filter(pa.array(one.live)) for one in segments]).combine_chunks()


def live_blocks(segment: Segment) -> Iterator[np.ndarray]:
    """Vectors of the rows that are not deleted, block by block."""
    rows = np.flatnonzero(segment.live)
    for start in range(0, len(rows), _BLOCK):
        yield segment.vectors(rows[start : start + _BLOCK])


def _with_copied_codes(base: Segment) -> Any:
    """A writable IVF index with the live vectors of the base, numbered anew; None if the base is of another kind."""
    outer = faiss.downcast_index(base.index)
    inner = faiss.downcast_index(outer.index) if isinstance(outer, faiss.IndexPreTransform) else outer
    if not isinstance(inner, faiss.IndexIVF):
        return None
    numbers = np.cumsum(base.live) - 1
    empty = _emptied(outer)
    target = faiss.extract_index_ivf(empty)
    for cluster in range(inner.nlist):
        size = inner.invlists.list_size(cluster)
        if size == 0:
            continue
        ids = faiss.rev_swig_ptr(inner.invlists.get_ids(cluster), size).copy()
        codes = faiss.rev_swig_ptr(inner.invlists.get_codes(cluster), size * inner.invlists.code_size)
        keep = base.live[ids]
        kept = np.ascontiguousarray(codes.reshape(size, -1)[keep])
        names = np.ascontiguousarray(numbers[ids[keep]])
        if len(names):
            target.invlists.add_entries(cluster, len(names), faiss.swig_ptr(names), faiss.swig_ptr(kept))
    target.ntotal = empty.ntotal = int(base.live.sum())
    return empty


def _emptied(index: Any) -> Any:
    """A copy of a trained index without vectors; `reset` would abort on a memory-mapped one."""
    empty = faiss.clone_index(index)
    inner = faiss.extract_index_ivf(empty)
    lists = faiss.ArrayInvertedLists(inner.nlist, inner.code_size)
    inner.replace_invlists(lists, True)
    # It belongs to the index now.
    lists.this.disown()
    inner.set_direct_map_type(faiss.DirectMap.NoMap)
    return empty
