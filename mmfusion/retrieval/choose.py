"""Which FAISS index suits a number of vectors and a budget of memory."""

import os
from typing import NamedTuple

# Comparing all of so many vectors takes about ten milliseconds, and nothing else finds them all.
_EXACT_UP_TO = 50_000
# Links between vectors take this many neighbours, of 4 bytes each, twice at the lowest level.
_LINKS = 32
_GRAPH_UP_TO = 5_000_000
# FAISS wants at least so many training vectors per cluster.
_PER_CLUSTER = 39


class Choice(NamedTuple):
    """FAISS factory string, run-time parameters, and about how many bytes the index takes."""

    factory: str
    search_parameters: str
    num_bytes: int


def choose_index(count: int, dimension: int, memory_bytes: int) -> Choice:
    """The most exact kind of index that fits the budget and answers in milliseconds.

    1. Up to 50,000 vectors that fit: Flat, which is exact.
    2. Up to 5 million that fit with their links: HNSW32, nearly exact and fast.
    3. If a byte per component fits: IVF with SQ8.
    4. Else IVF with product quantisation, of as many bytes per vector as fit, at least 8 and at most a quarter of the
       components.

    An IVF index has about 4 sqrt(count) clusters, a power of two, and looks into one in sixteen of them, at least 8.

    Args:
        count: Number of vectors, at least 1.
        dimension: Of the vectors.
        memory_bytes: What the index may take.

    Raises:
        ValueError: Nothing fits.
    """
    flat = count * dimension * 4
    if count <= _EXACT_UP_TO and flat <= memory_bytes:
        return Choice("Flat", "", flat)
    graph = flat + count * _LINKS * 2 * 4
    if count <= _GRAPH_UP_TO and graph <= memory_bytes:
        return Choice(f"HNSW{_LINKS}", "efSearch=256", graph)
    clusters = _clusters(count)
    probes = f"nprobe={max(8, clusters // 16)}"
    fixed = clusters * dimension * 4 + count * 8
    if fixed + count * dimension <= memory_bytes:
        return Choice(f"IVF{clusters},SQ8", probes, fixed + count * dimension)
    codes = [size for size in range(dimension // 4, 7, -1) if dimension % size == 0]
    for size in codes:
        if fixed + count * size <= memory_bytes:
            return Choice(f"IVF{clusters},PQ{size}", probes, fixed + count * size)
    least = fixed + count * (codes[-1] if codes else dimension)
    raise ValueError(
        f"{count:,} vectors of dimension {dimension} take at least {least / 2**30:.2f} GiB in any index, the budget is "
        f"{memory_bytes / 2**30:.2f} GiB; raise it, or embed with fewer components (--truncate_dim)."
    )


def _clusters(count: int) -> int:
    clusters = 16
    while 2 * clusters <= 4 * count**0.5 and 2 * clusters * _PER_CLUSTER <= count:
        clusters *= 2
    return clusters


def physical_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
