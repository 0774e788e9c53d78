"""How much of what exact search finds an index finds, measured while it is built."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfusion.retrieval.vectors import spread_rows

SAMPLE, PLACES = 256, 100
FloatArray = npt.NDArray[np.float32]


class ExactNeighbours:
    """Exact search for a sample of the vectors that pass by, block by block, with the memory of the sample.

    Vectors of the sample find themselves, in the index as in exact search.

    Args:
        sample: (M, D) float32, of which at most `SAMPLE` rows are taken; None: of the first block.
    """

    def __init__(self, sample: FloatArray | None = None) -> None:
        self.queries = None if sample is None else _some(sample)
        self._scores = np.empty((0, 0), dtype=np.float32)
        self._rows = np.empty((0, 0), dtype=np.int64)
        self._seen = 0

    def watch(self, blocks: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """The same blocks, looked at on their way."""
        for block in blocks:
            self._look(block)
            yield block

    def _look(self, block: FloatArray) -> None:
        if self.queries is None:
            self.queries = _some(block)
        if not self._seen:
            self._scores = np.empty((len(self.queries), 0), dtype=np.float32)
            self._rows = np.empty((len(self.queries), 0), dtype=np.int64)
        rows = np.broadcast_to(np.arange(self._seen, self._seen + len(block)), (len(self.queries), len(block)))
        self._seen += len(block)
        scores = np.concatenate([self._scores, self.queries @ block.T], axis=1)
        rows = np.concatenate([self._rows, rows], axis=1)
        places = min(PLACES, scores.shape[1])
        best = np.argpartition(-scores, places - 1, axis=1)[:, :places]
        self._scores, self._rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)

    def recall(self, index: Any) -> float:
        """Share of the exact neighbours that a FAISS index finds among as many, in [0, 1]."""
        assert self.queries is not None
        places = self._rows.shape[1]
        _, found = index.search(self.queries, places)
        hits = sum(len(np.intersect1d(mine, exact)) for mine, exact in zip(found, self._rows, strict=True))
        return hits / self._rows.size


def _some(vectors: FloatArray) -> FloatArray:
    return spread_rows(vectors, SAMPLE).copy()
