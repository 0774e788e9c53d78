"""Merging what was added and deleted into a new base index."""

from collections.abc import Iterator
from typing import Any

import faiss as faiss_module
import numpy as np
import pyarrow as pa

from mmfusion.retrieval.segment import BoolArray, Segment
from mmfusion.retrieval.vectors import build_faiss, make_faiss

# Its types leave out what codes and inverted lists can do.
faiss: Any = faiss_module

_BLOCK = 65_536


def merge(segments: tuple[Segment, ...], factory: str, train_size: int) -> Segment:
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
    base = segments[0]
    products = live_products(segments)
    index = _with_copied_codes(base)
    if index is None and not len(products):
        index = make_faiss(base.index.d, factory)
    elif index is None:
        index = build_faiss((block for one in segments for block in live_blocks(one)), factory, train_size)
    else:
        for one in segments[1:]:
            for block in live_blocks(one):
                index.add(block)
    return Segment(index, products, np.ones(len(products), dtype=bool))


def live_products(segments: tuple[Segment, ...]) -> pa.Table:
    """The products that are not deleted, those of the base first."""
    return pa.concat_tables([one.products.filter(pa.array(one.live)) for one in segments])


def live_blocks(segment: Segment) -> Iterator[np.ndarray]:
    """Vectors of the rows that are not deleted, block by block."""
    rows = np.flatnonzero(segment.live)
    for start in range(0, len(rows), _BLOCK):
        yield segment.vectors(rows[start : start + _BLOCK])


def _with_copied_codes(base: Segment) -> Any:
    """A writable index with the live vectors of the base, numbered anew; None where they cannot be copied as codes."""
    copy = base.copied_index() if _copies(base.index) else None
    if copy is not None:
        _refill(copy, base.index, base.live)
    return copy


def _copies(index: Any) -> bool:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return _copies(index.base_index) and _copies(index.refine_index)
    if isinstance(index, faiss.IndexPreTransform):
        return _copies(index.index)
    # Codes for fast scans of 32 at a time lie interleaved.
    return isinstance(index, (faiss.IndexIVF, faiss.IndexFlatCodes)) and not isinstance(index, faiss.IndexIVFFastScan)


def _refill(copy: Any, source: Any, live: BoolArray) -> None:
    """Puts the live codes of the source in the place of those of its copy."""
    copy, source = faiss.downcast_index(copy), faiss.downcast_index(source)
    if isinstance(source, faiss.IndexRefine):
        _refill(copy.base_index, source.base_index, live)
        _refill(copy.refine_index, source.refine_index, live)
    elif isinstance(source, faiss.IndexPreTransform):
        _refill(copy.index, source.index, live)
    elif isinstance(source, faiss.IndexIVF):
        _refill_lists(copy, source, live)
    else:
        # What is memory-mapped cannot grow.
        copy.codes = faiss.MaybeOwnedVectorUInt8()
        copy.ntotal = 0
        _refill_codes(copy, source, live)
    copy.ntotal = int(live.sum())


def _refill_codes(copy: Any, source: Any, live: BoolArray) -> None:
    codes = faiss.rev_swig_ptr(source.codes.data(), len(live) * source.code_size).reshape(-1, source.code_size)
    rows = np.flatnonzero(live)
    for start in range(0, len(rows), _BLOCK):
        copy.add_sa_codes(codes[rows[start : start + _BLOCK]])


def _refill_lists(copy: Any, source: Any, live: BoolArray) -> None:
    numbers = np.cumsum(live) - 1
    lists = faiss.ArrayInvertedLists(source.nlist, source.code_size)
    copy.replace_invlists(lists, True)
    # They belong to the index now.
    lists.this.disown()
    copy.set_direct_map_type(faiss.DirectMap.NoMap)
    for cluster in range(source.nlist):
        size = source.invlists.list_size(cluster)
        if size == 0:
            continue
        ids = faiss.rev_swig_ptr(source.invlists.get_ids(cluster), size).copy()
        codes = faiss.rev_swig_ptr(source.invlists.get_codes(cluster), size * source.invlists.code_size)
        keep = live[ids]
        kept = np.ascontiguousarray(codes.reshape(size, -1)[keep])
        names = np.ascontiguousarray(numbers[ids[keep]])
        if len(names):
            lists.add_entries(cluster, len(names), faiss.swig_ptr(names), faiss.swig_ptr(kept))
