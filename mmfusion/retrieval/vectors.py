"""FAISS indexes from blocks of vectors, with errors that say what to do, and the recall of what was built."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import faiss as faiss_module
import numpy as np
import numpy.typing as npt

# Its types leave out most of what is used here.
faiss: Any = faiss_module

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

# Rows that are handled at a time: far from 2 GiB of text.
BLOCK = 65_536
TRAIN_SIZE = 262_144
# Queries that recall is measured with, and places that are looked at.
_QUERIES, _PLACES = 256, 100


def as_float32(block: Any, *, what: str, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Checks one block of vectors.

    Args:
        block: float [n, D], a numpy array or a tensor on any device.
        what: name of the vectors for error messages.
        rows: numbers of the block's rows, for error messages; None: from 0.

    Returns:
        float32 [n, D], contiguous.

    Raises:
        ValueError: not two-dimensional, not of floating point, or holding a NaN or an infinite number.
    """
    if hasattr(block, "detach"):
        block = block.detach().cpu().float().numpy()
    block = np.asarray(block)
    if block.ndim != 2 or block.dtype.kind != "f":
        raise ValueError(f"{what} are {block.dtype} {block.shape}; pass floating-point numbers [rows, dimension]")
    with np.errstate(over="ignore"):
        block = np.ascontiguousarray(block, dtype=np.float32)
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        row = int(finite.argmin()) if rows is None else rows[int(finite.argmin())]
        raise ValueError(
            f"{what}: row {row} holds a NaN or a number that float32 cannot hold; check the model and input behind it"
        )
    return block


def checked_blocks(embeds: Any, count: int) -> Iterator[np.ndarray]:
    """Blocks of the vectors of so many products.

    Args:
        embeds: float [count, D], or an iterable of blocks [n, D].
        count: number of products.

    Returns:
        float32 [n, D] with the same D and n > 0.

    Raises:
        ValueError: as of [`as_float32`], or blocks of different dimensions, no vector, or another number of them.
    """
    shape = getattr(embeds, "shape", None)
    blocks = embeds if shape is None else (embeds[start : start + BLOCK] for start in range(0, shape[0], BLOCK))
    row = dimension = 0
    for block in blocks:
        checked = as_float32(block, what="product embeddings", rows=range(row, sys.maxsize))
        row += len(checked)
        if row > count or (shape is not None and shape[0] != count):
            break
        if len(checked):
            dimension = dimension or checked.shape[1]
            if checked.shape[1] != dimension:
                raise ValueError(
                    f"a block of product embeddings has dimension {checked.shape[1]} after blocks of dimension "
                    f"{dimension}; embed all products with one model"
                )
            yield checked
    if row != count or not row:
        rows = row if shape is None else shape[0]
        raise ValueError(f"{rows} product embeddings for {count} product ids; pass one each, and at least one")


def spread_rows(embeds: Any, count: int) -> np.ndarray:
    """At most so many rows of an array or tensor [N, D], from its first to its last, as float32."""
    rows = np.unique(np.linspace(0, embeds.shape[0] - 1, min(count, embeds.shape[0])).astype(np.int64))
    return as_float32(embeds[rows], what="product embeddings", rows=rows)


def build_faiss(
    embeds: Any,
    count: int,
    factory: str,
    train_size: int = TRAIN_SIZE,
    sample: np.ndarray | None = None,
    search_parameters: str = "",
    recall: "RecallMeter | None" = None,
) -> Any:
    """Trains, if needed, and fills an inner-product index.

    Args:
        embeds: float [count, D], or an iterable of blocks [n, D].
        count: number of products.
        factory: FAISS factory string.
        train_size: vectors to train on at most, where there is no sample: the first ones.
        sample: float32 [M, D], vectors to train on.
        search_parameters: of the index, see [`set_search_parameters`].
        recall: sees each block once, in order.

    Returns:
        The FAISS index; its entry i is the i-th vector.

    Raises:
        ValueError: FAISS cannot make, train or fill such an index; or as of [`checked_blocks`].
    """
    blocks = checked_blocks(embeds, count)
    held = [next(blocks)]
    index = make_faiss(held[0].shape[1], factory)
    if search_parameters:
        # Before the hours that the rest may take.
        set_search_parameters(index, search_parameters)
    if not index.is_trained:
        if sample is None:
            while sum(map(len, held)) < train_size and (block := next(blocks, None)) is not None:
                held.append(block)
            sample = np.concatenate(held)[:train_size]
        with _explained(
            f"{len(sample)} vectors are too few to train an index {factory!r}",
            "index more products, raise train_size, use fewer clusters (the number after IVF), or 'Flat', which needs "
            "no training",
        ):
            index.train(sample)
        sample = None
    while held:
        block = held.pop(0)
        if recall is not None:
            recall.look(block)
        with _explained(f"FAISS cannot add vectors to an index {factory!r}", "choose another kind"):
            index.add(block)
        if not held and (block := next(blocks, None)) is not None:
            held.append(block)
    return index


def make_faiss(dimension: int, factory: str) -> Any:
    """An empty inner-product index.

    Raises:
        ValueError: FAISS cannot make one.
    """
    with _explained(
        f"FAISS cannot make an inner-product index {factory!r} of dimension {dimension}",
        "pass a factory string such as 'Flat', 'HNSW32' or 'IVF256,PQ32' (PQ32 needs a dimension divisible by 32)",
    ):
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)


def set_search_parameters(index: Any, parameters: str) -> None:
    """Sets run-time parameters such as "nprobe=16" or "efSearch=64"; several are separated by commas.

    Raises:
        ValueError: FAISS does not know them for this kind of index, or could not search with their values.
    """
    # FAISS takes any value of these, and aborts the search or finds nothing.
    for name, value in re.findall(r"\b(nprobe|efSearch|k_factor_rf)\s*=\s*([^,]*)", parameters):
        if not re.fullmatch(r"0*[1-9]\d*(\.\d*)?\s*", value):
            raise ValueError(f"search parameters {parameters!r}: {name} is {value!r}; give a number of at least 1")
    with _explained(
        f"search parameters {parameters!r} do not fit this index",
        "pass for example 'nprobe=16' for an IVF index, 'efSearch=64' for an HNSW index or 'k_factor_rf=4' for one "
        "with rescoring (RFlat)",
    ):
        faiss.ParameterSpace().set_index_parameters(index, parameters)


@contextmanager
def _explained(trouble: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # The beginning of a message of FAISS is a C++ signature and a path.
        reason = str(error).rsplit("failed: ", 1)[-1].rsplit(".cpp:", 1)[-1].split(": ", 1)[-1].strip()
        raise ValueError(f"{trouble} ({reason}); {remedy}") from error


def created_by() -> str:
    """Names and versions of the software that makes vectors and indexes."""
    try:
        ours = version("mmfusion")
    except PackageNotFoundError:
        ours = "(not installed)"
    return f"mmfusion {ours}, faiss {faiss.__version__}"


class RecallMeter:
    """How much of what exact search finds an index finds, for a sample of the vectors that it was built from.

    Exact search goes block by block, with the memory of the sample. Vectors of the sample find themselves, in the index
    as in exact search.

    Args:
        sample: (M, D) float32, of which some rows are the queries; None: rows of the first block are.
    """

    def __init__(self, sample: np.ndarray | None = None) -> None:
        self._queries = None if sample is None else spread_rows(sample, _QUERIES)
        self._exact: Any = None
        self._seen = 0

    def look(self, block: np.ndarray) -> None:
        """Takes the next block, (n, D) float32, into account."""
        if self._queries is None:
            self._queries = spread_rows(block, _QUERIES)
        if self._exact is None:
            self._exact = faiss.ResultHeap(len(self._queries), _PLACES, keep_max=True)
        scores, rows = faiss.knn(self._queries, block, min(_PLACES, len(block)), faiss.METRIC_INNER_PRODUCT)
        self._exact.add_result(scores, rows + self._seen)
        self._seen += len(block)

    def of(self, index: Any) -> float:
        """Share of the (at most) 100 exact neighbours of a query that a FAISS index finds among as many, in [0, 1]."""
        self._exact.finalize()
        _, found = index.search(self._queries, min(_PLACES, self._seen))
        exact = self._exact.I[:, : found.shape[1]]
        return sum(len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)) / exact.size
