"""FAISS indexes from blocks of vectors, with errors that say what to do."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import faiss
import numpy as np

_BLOCK = 65_536
# FAISS takes any value of these, and aborts the search or finds nothing.
_AT_LEAST_ONE = frozenset({"nprobe", "efSearch", "k_factor_rf"})


def as_float32(block: Any, *, what: str, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Check one block of vectors.

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


def build_faiss(
    embeds: Any,
    factory: str,
    train_size: int,
    watch: Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]] = iter,
    sample: np.ndarray | None = None,
    search_parameters: str = "",
) -> faiss.Index:
    """Train, if needed, and fill an inner-product index.

    Args:
        embeds: float [N, D], or an iterable of blocks [n, D].
        factory: FAISS factory string.
        train_size: vectors to train on at most, where there is no sample: the first ones.
        watch: sees each block once, in order, and passes it on.
        sample: float32 [M, D], vectors to train on.
        search_parameters: of the index, see [`set_search_parameters`].

    Returns:
        The index; its entry i is the i-th vector.

    Raises:
        ValueError: FAISS cannot make, train or fill such an index; no vector; or blocks of different dimensions.
    """
    blocks = watch(checked_blocks(embeds))
    first = next(blocks, None)
    if first is None:
        raise ValueError("no product embedding to index; check that the catalogue is not empty")
    index = make_faiss(first.shape[1], factory)
    if search_parameters:
        # Before the hours that the rest may take.
        set_search_parameters(index, search_parameters)
    held = [first]
    if not index.is_trained:
        if sample is None:
            num_held = len(first)
            while num_held < train_size and (block := next(blocks, None)) is not None:
                held.append(block)
                num_held += len(block)
            sample = np.concatenate(held)[:train_size]
        _train(index, sample, factory)
        sample = None
    while held:
        _add(index, held.pop(0), factory)
    for block in blocks:
        _add(index, block, factory)
    return index


def spread_rows(embeds: Any, count: int) -> np.ndarray:
    """At most so many rows of an array or tensor [N, D], from its first to its last, as float32."""
    rows = np.unique(np.linspace(0, embeds.shape[0] - 1, min(count, embeds.shape[0])).astype(np.int64))
    return as_float32(embeds[rows], what="product embeddings", rows=rows)


def set_search_parameters(index: faiss.Index, parameters: str) -> None:
    """Set run-time parameters such as "nprobe=16" or "efSearch=64"; several are separated by commas.

    Raises:
        ValueError: FAISS does not know them for this kind of index, or could not search with their values.
    """
    for name, value in (one.split("=", 1) for one in parameters.split(",") if "=" in one):
        if name.strip() in _AT_LEAST_ONE and not _at_least_one(value):
            raise ValueError(
                f"search parameters {parameters!r}: {name.strip()} is {value!r}; give a number of at least 1"
            )
    space: Any = faiss.ParameterSpace()
    try:
        space.set_index_parameters(index, parameters)
    except RuntimeError as error:
        raise ValueError(
            f"search parameters {parameters!r} do not fit this index ({_reason(error)}); pass for example 'nprobe=16' "
            "for an IVF index, 'efSearch=64' for an HNSW index or 'k_factor_rf=4' for one with rescoring (RFlat)"
        ) from error


def _at_least_one(value: str) -> bool:
    try:
        return 1 <= float(value) < np.inf
    except ValueError:
        return False


def checked_blocks(embeds: Any) -> Iterator[np.ndarray]:
    """Blocks of vectors.

    Args:
        embeds: float [N, D], or an iterable of blocks [n, D].

    Returns:
        float32 [n, D] with the same D and n > 0.

    Raises:
        ValueError: as of [`as_float32`], or blocks of different dimensions.
    """
    row, dimension = 0, None
    for block in _slices(embeds) if hasattr(embeds, "ndim") else embeds:
        checked = as_float32(block, what="product embeddings", rows=range(row, sys.maxsize))
        row += len(checked)
        if len(checked):
            dimension = dimension or checked.shape[1]
            yield _same_dimension(checked, dimension)


def _slices(embeds: Any) -> Iterable[Any]:
    if embeds.ndim != 2:
        raise ValueError(f"product embeddings have shape {tuple(embeds.shape)}; pass [products, dimension]")
    return (embeds[start : start + _BLOCK] for start in range(0, embeds.shape[0], _BLOCK))


def _same_dimension(block: np.ndarray, dimension: int) -> np.ndarray:
    if block.shape[1] != dimension:
        raise ValueError(
            f"a block of product embeddings has dimension {block.shape[1]} after blocks of dimension {dimension}; "
            "embed all products with one model"
        )
    return block


def make_faiss(dimension: int, factory: str) -> faiss.Index:
    """An empty inner-product index.

    Raises:
        ValueError: FAISS cannot make one.
    """
    try:
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"FAISS cannot make an inner-product index {factory!r} of dimension {dimension} ({_reason(error)}); pass "
            "a factory string such as 'Flat', 'HNSW32' or 'IVF256,PQ32' (PQ32 needs a dimension divisible by 32)"
        ) from error


def _train(index: faiss.Index, vectors: np.ndarray, factory: str) -> None:
    try:
        index.train(vectors)
    except RuntimeError as error:
        raise ValueError(
            f"{len(vectors)} vectors are too few to train an index {factory!r} ({_reason(error)}); index more "
            "products, raise train_size, use fewer clusters (the number after IVF), or 'Flat', which needs no training"
        ) from error


def _add(index: faiss.Index, block: np.ndarray, factory: str) -> None:
    try:
        index.add(block)
    except RuntimeError as error:
        raise ValueError(f"FAISS cannot add vectors to an index {factory!r} ({_reason(error)})") from error


def _reason(error: RuntimeError) -> str:
    """The end of a FAISS message; its beginning is a C++ signature and a path."""
    return str(error).rsplit("failed: ", 1)[-1].rsplit(".cpp:", 1)[-1].split(": ", 1)[-1].strip()
