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


class RowsSampler(DistributedSampler[Any]):
    # Lightning leaves samplers of this type alone and replaces any other by one that knows nothing of our batches.
    def __init__(self, num_replicas: int, rank: int) -> None:
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class PairSampler(RowsSampler):
    """Batches of queries, each with one of its products, and further products; yields this rank's part of each.

    An epoch visits every query once, in an order drawn from (seed, epoch), with one product of the highest grade the
    query has, drawn anew. Within a window of 16 global batches pairs are sorted by the length of the product text, so
    that a batch needs little padding. The incomplete last batch is dropped. The global batch depends on
    `batch_size * num_replicas` alone: two ranks of 64 see what one of 128 sees. Further products are drawn evenly from
    the pool for each batch: negatives for most queries, and positives or near misses for some.
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
        pool: Rows | None = None,
        extra_products: int = 0,
        photo_views: int = 1,
    ) -> None:
        """Prepares the sampler.

        Args:
            qrels: Train judgements; queries without a positive grade are left out.
            lengths: Length of each product's text by row, in any unit.
            batch_size: Pairs per rank and batch, at least 2: one pair alone has no negatives.
            seed: Of the order and the choice of products.
            num_replicas: Number of ranks.
            rank: This rank.
            pool: Product rows that further products are drawn from, all different; None: products with a judgement.
            extra_products: Further products per rank and batch, at least 0; no more than the pool holds are drawn.
            photo_views: Views of the photos that a batch is drawn to show one of, at least 1; see [`photo_view`].

        Raises:
            ValueError: The batch size is below 2, or larger than the number of queries with a positive; or
                `extra_products` is negative.
        """
        super().__init__(num_replicas, rank)
        self.batch_size = batch_size
        self.seed = seed
        self.start_batch = 0
        self.lengths = lengths
        self._photo_views = photo_views
        self._pool = np.unique(qrels.product) if pool is None else pool
        self._extra = min(extra_products, len(self._pool) // num_replicas)
        if photo_views < 1:
            raise ValueError(f"photo_views is {photo_views}; give at least 1, which is the photos as they are.")
        if extra_products < 0:
            raise ValueError(f"extra_products is {extra_products}; give at least 0.")
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
        start, self.start_batch = self.start_batch, 0
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for index, (queries, products, _) in enumerate(self._epoch_batches()[start:], start):
            products = np.concatenate([products[own], self._further(index)])
            yield PairRows(queries[own], products, self._view(index))

    def _view(self, index: int) -> int:
        return int(np.random.default_rng([self.seed, self.epoch, index, 2]).integers(self._photo_views))

    def _further(self, index: int) -> Rows:
        # A generator per batch, so that a run that continues in mid-epoch need not draw what it skips.
        rng = np.random.default_rng([self.seed, self.epoch, index, 1])
        drawn = rng.choice(len(self._pool), self._extra * self.num_replicas, replace=False)
        return self._pool[drawn[self.rank * self._extra : (self.rank + 1) * self._extra]]

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


class RowSampler(RowsSampler):
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
        if len(batches) < num_replicas:
            # A rank without a batch would not come to where all ranks gather.
            batches = _a_batch_for_each(ordered, num_replicas)
        self.batches = batches[rank::num_replicas]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Rows]:
        return iter(self.batches)


def _a_batch_for_each(rows: Rows, num_replicas: int) -> list[Rows]:
    if len(rows) < num_replicas:
        raise ValueError(
            f"There are {len(rows)} queries or products to validate on for {num_replicas} ranks; use fewer devices, or "
            "a larger val split."
        )
    return list(np.array_split(rows, num_replicas))


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
