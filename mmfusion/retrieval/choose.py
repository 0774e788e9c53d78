"""Which FAISS index suits a number of vectors and a budget of memory."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from mmfusion.control_groups import memory_limits

# Comparing all of so many vectors takes about ten milliseconds, and nothing else finds them all.
_EXACT_UP_TO = 50_000
# Links between vectors take this many neighbours, of 4 bytes each, twice at the lowest level.
_LINKS = 32
_GRAPH_UP_TO = 5_000_000
# FAISS asks for at least so many training vectors per cluster.
_PER_CLUSTER = 39
# Bytes of a vector in addition to its bits.
_FACTORS = 8


class Choice(NamedTuple):
    """FAISS factory string, run-time parameters, and about how many bytes searches need in memory.

    Vectors that are scored again (`Refine`) are not among these bytes: of an index that is loaded memory-mapped they
    stay on disk, a byte per component, and a search reads those of its candidates.
    """

    factory: str
    search_parameters: str
    num_bytes: int


def choose_index(count: int, dimension: int, memory_bytes: int, *, bits: int = 32) -> Choice:
    """The kind of index that fits the budget and answers in milliseconds: exact, or else fast, or else small.

    What each finds of a million vectors, and how fast, is measured in docs/benchmarks/index-benchmark.md.

    1. Up to 50,000 vectors that fit: Flat, which is exact.
    2. Up to 5 million that fit with their links: HNSW32, the fastest. It looks at 1,024 products for each query, as
       queries are texts, which are far from the products that the links are between.
    3. If a byte per component fits: IVF with SQ8.
    4. If a bit per component and 8 bytes per vector fit: IVF with RaBitQ, whose best 8 k candidates are scored again
       with a byte per component.
    5. Else IVF with product quantisation, of as many bytes per vector as fit, at least 8 and at most a quarter of the
       components, whose best 16 k candidates are scored again in the same way.

    Embeddings that were stored in fewer bits have nothing to tell to a kind that takes more per component: of int8
    ones, the first two rules give way to SQ8 up to 50,000 vectors, and of binary ones all give way to RaBitQ, with
    clusters above 50,000 vectors, and to product quantisation, both without rescoring.

    An IVF index has about 4 sqrt(count) clusters, a power of two, and looks into one in sixteen of them, at least 8.

    Args:
        count: Number of vectors, at least 1.
        dimension: Of the vectors.
        memory_bytes: What the index may take.
        bits: Per component, that the embeddings were stored in: 1, 8, or more.

    Raises:
        ValueError: Nothing fits.
    """
    kinds = list(_kinds(count, dimension, bits))
    for kind in kinds:
        if kind.num_bytes <= memory_bytes:
            return kind
    least = min(kind.num_bytes for kind in kinds)
    raise ValueError(
        f"{count:,} vectors of dimension {dimension} take at least {least / 2**30:.2f} GiB in any index, the budget is "
        f"{memory_bytes / 2**30:.2f} GiB; raise it, or embed with fewer components (--truncate_dim)."
    )


def _kinds(count: int, dimension: int, bits: int) -> Iterator[Choice]:
    """Kinds of index that suit, the preferred one first."""
    flat, signs = count * dimension * 4, count * (-(-dimension // 8) + _FACTORS)
    if bits > 8 and count <= _EXACT_UP_TO:
        yield Choice("Flat", "", flat)
    if bits > 8 and count <= _GRAPH_UP_TO:
        yield Choice(f"HNSW{_LINKS}", "efSearch=1024", flat + count * _LINKS * 2 * 4)
    if bits <= 8 and count <= _EXACT_UP_TO:
        yield Choice("RaBitQ", "", signs) if bits == 1 else Choice("SQ8", "", flat // 4)
    clusters = number_of_clusters(count)
    lists, probes = f"IVF{clusters}", f"nprobe={max(8, clusters // 16)}"
    fixed, again = clusters * dimension * 4 + count * 8, ",Refine(SQ8)" if bits >= 8 else ""
    if bits >= 8:
        yield Choice(f"{lists},SQ8", probes, fixed + flat // 4)
    yield Choice(f"{lists},RaBitQ{again}", probes + (",k_factor_rf=8" if again else ""), fixed + signs)
    for size in range(min(dimension // 4, signs // count - 1), 7, -1):
        if dimension % size == 0:
            parameters = probes + (",k_factor_rf=16" if again else "")
            yield Choice(f"{lists},PQ{size}{again}", parameters, fixed + count * size)


def number_of_clusters(count: int) -> int:
    """Clusters of an IVF index over so many vectors, a power of two."""
    clusters = 16
    while 2 * clusters <= 4 * count**0.5 and 2 * clusters * _PER_CLUSTER <= count:
        clusters *= 2
    return clusters


def physical_memory() -> int:
    """Bytes of memory that this machine has, or its container may use."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for _, limit, _ in memory_limits())])
