"""Which rows make a batch: deterministic in (seed, epoch, position), disjoint over ranks, bucketed by text length."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from mmfusion.data.qrels import Qrels
from mmfusion.data.tables import PairRows, Rows

_BUCKET_BATCHES = 16


class _RowsSampler(DistributedSampler[Any]):
    # Lightning leaves samplers of this type alone and replaces any other by one that knows nothing of our batches.
    def __init__(self, num_replicas: int, rank: int) -> None:
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class PairSampler(_RowsSampler):
    """Batches of queries, each with one of its products; yields this rank's part of each global batch.

    An epoch visits every query once, in an order drawn from (seed, epoch), with one product of the highest grade the
    query has, drawn anew. Within a window of 16 global batches pairs are sorted by the length of the product text, so
    that a batch needs little padding. The incomplete last batch is dropped. The global batch depends on
    `batch_size * num_replicas` alone: two ranks of 64 see what one of 128 sees.
    """

    def __init__(
        self,
        qrels: Qrels,
        lengths: npt.NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        """Prepares the sampler.

        Args:
            qrels: Train judgements; queries without a positive grade are left out.
            lengths: Length of each product's text by row, in any unit.
            batch_size: Pairs per rank and batch, at least 2: one pair alone has no negatives.
            seed: Of the order and the choice of products.
            num_replicas: Number of ranks.
            rank: This rank.

        Raises:
            ValueError: The batch size is below 2, or larger than the number of queries with a positive.
        """
        super().__init__(num_replicas, rank)
        self.batch_size = batch_size
        self.seed = seed
        self.start_batch = 0
        self.lengths = lengths
        best = np.zeros(int(qrels.query.max(initial=-1)) + 1, dtype=np.int64)
        np.maximum.at(best, qrels.query, qrels.grade)
        top = (qrels.grade == best[qrels.query]) & (qrels.grade > 0)
        self._products = qrels.product[top]
        self._queries, self._first, self._count = np.unique(qrels.query[top], return_index=True, return_counts=True)
        if batch_size < 2:
            raise ValueError(
                f"batch_size is {batch_size}; a contrastive batch needs at least 2 pairs: one alone has no negatives."
            )
        if len(self) == 0:
            raise ValueError(
                f"The train split has {len(self._queries)} queries with a relevant product, fewer than one global "
                f"batch of {batch_size} x {num_replicas} rank(s); give a smaller batch_size."
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._queries) // (self.batch_size * self.num_replicas)

    def __iter__(self) -> Iterator[PairRows]:
        batches = self._epoch_batches()[self.start_batch :]
        self.start_batch = 0
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for queries, products in batches:
            yield PairRows(queries[own], products[own])

    def _epoch_batches(self) -> list[PairRows]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self._queries))
        drawn = (rng.random(len(order)) * self._count[order]).astype(np.int64)
        queries, products = self._queries[order], self._products[self._first[order] + drawn]
        size = self.batch_size * self.num_replicas
        order = _bucket(self.lengths[products], size * _BUCKET_BATCHES)
        batches = [order[start : start + size] for start in range(0, len(self) * size, size)]
        return [PairRows(queries[batches[i]], products[batches[i]]) for i in rng.permutation(len(batches))]


def _bucket(lengths: npt.NDArray[np.int64], window: int) -> Rows:
    """Order that sorts by length within consecutive windows."""
    starts = range(0, len(lengths), window)
    return np.concatenate([start + np.argsort(lengths[start : start + window], kind="stable") for start in starts])


class RowSampler(_RowsSampler):
    """Batches of given rows, shortest text first; ranks take every `num_replicas`-th batch."""

    def __init__(
        self,
        rows: Rows,
        lengths: npt.NDArray[np.int64] | None,
        *,
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(num_replicas, rank)
        ordered = rows if lengths is None else rows[np.argsort(lengths[rows], kind="stable")]
        batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
        self.batches = batches[rank::num_replicas]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Rows]:
        return iter(self.batches)


class ResumableLoader(DataLoader[Any]):
    """A loader over a [`PairSampler`] that continues in mid-epoch; Lightning saves and restores its state."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._yielded = 0
        self._resume_at = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Workers read ahead, so the sampler's own position says nothing: what counts is what was handed out.
        assert isinstance(self.sampler, PairSampler)
        self.sampler.start_batch = self._yielded = self._resume_at
        self._resume_at = 0
        for batch in super().__iter__():
            self._yielded += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"yielded": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume_at = state["yielded"] % len(self)
