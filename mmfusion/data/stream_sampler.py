"""Batches of a catalogue that is streamed: near in the files, far from sorted, and disjoint over ranks and readers."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmfusion.data.product_shards import groups_of
from mmfusion.data.qrels import Qrels
from mmfusion.data.sampler import ResumableSampler, RowsSampler
from mmfusion.data.stream_reads import StreamIndex, plan_reads
from mmfusion.data.tables import PairRows, Rows

_ORDER_OF_GROUP, _ORDER_OF_READER, _VIEW = 4, 3, 2


class _Part(NamedTuple):
    """Part of an epoch's products that one reader draws from, and its number of batches."""

    start: int
    batches: int


class StreamSampler(ResumableSampler):
    """Batches of products, each with one of its queries, that a few readers can draw from streams.

    An epoch visits each product with a positive judgement once, with one of the queries that judge it highest. The
    products are laid out in a row, row group after row group, in an order drawn from (seed, epoch), and the row is cut
    into a part for each reader of each rank. A reader delays each product of its part by a random time below
    `shuffle_buffer`, as a shuffle buffer does. What does not fill a batch on all ranks, less than one global batch, is
    left out of the epoch; another epoch leaves out others.

    Parts are cut by products rather than by row groups, so that ranks and readers get equally many whatever the sizes
    of files are: row groups at the borders are read by two readers, all others by one.
    """

    def __init__(
        self,
        qrels: Qrels,
        starts: npt.NDArray[np.int64],
        *,
        batch_size: int,
        shuffle_buffer: int,
        seed: int,
        readers: int = 1,
        num_replicas: int = 1,
        rank: int = 0,
        photo_views: int = 1,
    ) -> None:
        """Prepares the sampler.

        Args:
            qrels: Train judgements.
            starts: First row of each row group of the products, and the number of rows, (G + 1,).
            batch_size: Pairs per rank and batch, at least 2.
            shuffle_buffer: Products that a reader holds to draw from, at least 1, which keeps the order.
            seed: Of the order and the choice of queries.
            readers: Processes of a rank that read: a loader hands batch b to worker b mod readers.
            num_replicas: Number of ranks.
            rank: This rank.
            photo_views: As for [`PairSampler`].

        Raises:
            ValueError: A number is too small, or there are too few products for one batch on each rank.
        """
        super().__init__(num_replicas, rank)
        for name, value, least in (("batch_size", batch_size, 2), ("shuffle_buffer", shuffle_buffer, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; give at least {least}.")
        self.batch_size, self.shuffle_buffer, self.seed = batch_size, shuffle_buffer, seed
        self.readers, self.starts, self._photo_views = readers, starts, photo_views
        best = np.zeros(int(qrels.product.max(initial=-1)) + 1, dtype=np.int64)
        np.maximum.at(best, qrels.product, qrels.grade)
        top = np.flatnonzero((qrels.grade == best[qrels.product]) & (qrels.grade > 0))
        top = top[np.argsort(qrels.product[top], kind="stable")]
        self._queries = qrels.query[top]
        self._products, self._first, self._count = np.unique(qrels.product[top], return_index=True, return_counts=True)
        self._groups, self._begin, self._size = np.unique(
            groups_of(starts, self._products), return_index=True, return_counts=True
        )
        self._batches = len(self._products) // (batch_size * num_replicas)
        if self._batches == 0:
            raise ValueError(
                f"The train split has {len(self._products)} products with a relevant query, in {len(self._groups)} row "
                f"groups, fewer than one batch of {batch_size} for each of {num_replicas} rank(s); give a smaller "
                "batch_size, or fewer devices."
            )

    @property
    def num_products(self) -> int:
        """Products with a positive judgement."""
        return len(self._products)

    @property
    def num_groups(self) -> int:
        """Row groups that hold such products."""
        return len(self._groups)

    @property
    def sources(self) -> dict[str, str]:
        order = f"{self.num_replicas} ranks of {self.readers} readers, shuffle_buffer {self.shuffle_buffer}"
        return {"stream": f"{order}, {len(self.starts) - 1} row groups"}

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[StreamIndex]:
        start, self.start_batch = self.start_batch, 0
        readers = [self._reader(reader, -(-(start - reader) // self.readers)) for reader in range(self.readers)]
        for index in range(start, self._batches):
            yield next(readers[index % self.readers])

    def _reader(self, reader: int, start: int) -> Iterator[StreamIndex]:
        """Batches of one reader, from its `start`-th on."""
        size, epoch = self.batch_size, self.epoch
        rng = np.random.default_rng([self.seed, epoch, self.rank * self.readers + reader, _ORDER_OF_READER])
        products = self._part_of_epoch(self._part(reader))
        # Sorting by the delayed time is what a shuffle buffer comes to, without a step per product: at any time those
        # that have come in and not gone out lie within one buffer.
        delayed = np.arange(len(products)) + rng.random(len(products)) * self.shuffle_buffer
        products = products[np.argsort(delayed, kind="stable")]
        drawn = self._first[products] + (rng.random(len(products)) * self._count[products]).astype(np.int64)
        rows, queries = self._products[products], self._queries[drawn]
        cuts = range(start * size, len(rows), size)
        reads = plan_reads([rows[cut : cut + size] for cut in cuts], self.starts)
        for own, cut in zip(reads, cuts, strict=True):
            view = self._view(cut // size * self.readers + reader)
            yield StreamIndex(PairRows(queries[cut : cut + size], rows[cut : cut + size], view), own)

    def _part(self, reader: int) -> _Part:
        batches = [(self._batches - other + self.readers - 1) // self.readers for other in range(reader + 1)]
        before = self.rank * self._batches + sum(batches[:-1])
        return _Part(before * self.batch_size, batches[-1])

    def _part_of_epoch(self, part: _Part) -> npt.NDArray[np.int64]:
        """Positions in `_products` of a part of the epoch's row, in its order."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self._groups))
        ends = np.cumsum(self._size[order])
        stop = part.start + part.batches * self.batch_size
        first, last = np.searchsorted(ends, part.start, side="right"), np.searchsorted(ends, stop, side="left")
        found = [self._shuffled(int(group)) for group in order[first : last + 1]]
        skip = part.start - int(ends[first] - self._size[order[first]]) if found else 0
        return np.concatenate([np.empty(0, dtype=np.int64), *found])[skip : skip + stop - part.start]

    def _shuffled(self, group: int) -> npt.NDArray[np.int64]:
        # By a generator of its own, so that both readers of a row group at a border cut the same order.
        rng = np.random.default_rng([self.seed, self.epoch, group, _ORDER_OF_GROUP])
        return self._begin[group] + rng.permutation(self._size[group])

    def _view(self, index: int) -> int:
        return int(np.random.default_rng([self.seed, self.epoch, index, _VIEW]).integers(self._photo_views))


class StreamRowSampler(RowsSampler):
    """Batches of given rows in the order of the files, as many on each rank; each reader has rows of its own."""

    def __init__(
        self,
        rows: Rows,
        starts: npt.NDArray[np.int64],
        *,
        batch_size: int,
        readers: int = 1,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        """Cuts the rows into parts.

        Args:
            rows: Ascending product rows.
            starts, readers, num_replicas, rank: As for [`StreamSampler`].
            batch_size: Most rows per batch; one more where ranks could not have equally many batches otherwise.

        Raises:
            ValueError: There are fewer rows than ranks.
        """
        super().__init__(num_replicas, rank)
        if len(rows) < num_replicas:
            raise ValueError(
                f"There are {len(rows)} products to validate on for {num_replicas} ranks; use fewer devices, or a "
                "larger val split."
            )
        parts = np.array_split(rows, num_replicas)
        batches = min(-(-len(parts[0]) // batch_size), len(parts[-1]))
        cut = np.array_split(np.arange(batches), readers)
        own = np.array_split(parts[rank], batches)
        self._readers = [[own[batch] for batch in part] for part in cut]
        self._starts, self._batches = starts, batches

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[StreamIndex]:
        reads = [plan_reads(batches, self._starts) for batches in self._readers]
        for index in range(self._batches):
            reader, at = index % len(reads), index // len(reads)
            yield StreamIndex(self._readers[reader][at], reads[reader][at])
