"""Batches of a streamed catalogue: near in the files, far from sorted, and disjoint over ranks and readers.

A sampler says which rows make a batch and which row groups have to be read before it; a table reads them, and holds
each row until its batch is made.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from mmfusion.data.batch import ProductBatch
from mmfusion.data.catalogue import CatalogueError
from mmfusion.data.qrels import Qrels, best_grades
from mmfusion.data.sampler import RowsSampler, check_enough, check_least, draw_crop
from mmfusion.data.streamed_catalogue import StreamedCatalogue, groups_of
from mmfusion.data.tables import PairRows, PairTable, ProductTable, Rows
from mmfusion.model import MMFusionProcessor

logger = logging.getLogger(__name__)

_ORDER_OF_READER, _ORDER_OF_GROUP = 3, 4


class Read(NamedTuple):
    """A row group, and those of its rows that are held from now on until their batch."""

    group: int
    rows: Rows


class StreamIndex(NamedTuple):
    """Index of a batch, and what has to be read before it.

    Attributes:
        batch: [`PairRows`] of a training batch, or product rows.
        reads: Row groups to read first.
    """

    batch: Any
    reads: tuple[Read, ...]


class ReadError(NamedTuple):
    """What stands for a batch whose products cannot be read: what a worker raises would end one rank alone."""

    message: str


class StreamSampler(RowsSampler):
    """Batches of products, each with one of its queries, that a few readers can draw from streams.

    An epoch visits each product with a positive judgement once, with one of the queries that judge it highest. The
    products are laid out in a row, row group after row group, in an order drawn from (seed, epoch), and the row is cut
    into a part for each reader of each rank. A reader delays each product of its part by a random time below
    `shuffle_buffer`, as a shuffle buffer does. What does not fill a batch on all ranks, less than one global batch, is
    left out of the epoch; another epoch leaves out others.

    Parts are cut by products rather than by row groups, so that ranks and readers get equally many whatever the sizes
    of files are: row groups at the borders are read by two readers, all others by one.

    Attributes:
        num_products: Products with a positive judgement.
        num_groups: Row groups that hold such products.
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
        check_least(batch_size=(batch_size, 2), shuffle_buffer=(shuffle_buffer, 1))
        self.batch_size, self.shuffle_buffer, self.seed = batch_size, shuffle_buffer, seed
        self.readers, self.starts, self._photo_views = readers, starts, photo_views
        best = best_grades(qrels.product, qrels.grade)
        top = np.flatnonzero((qrels.grade == best[qrels.product]) & (qrels.grade > 0))
        top = top[np.argsort(qrels.product[top], kind="stable")]
        self._queries = qrels.query[top]
        self._products, self._first, self._count = np.unique(qrels.product[top], return_index=True, return_counts=True)
        groups, self._begin, self._size = np.unique(
            groups_of(starts, self._products), return_index=True, return_counts=True
        )
        self.num_products, self.num_groups = len(self._products), len(groups)
        self._batches = self.num_products // (batch_size * num_replicas)
        order = f"{num_replicas} ranks of {readers} readers, shuffle_buffer {shuffle_buffer}"
        self.sources = {"stream": f"{order}, {len(starts) - 1} row groups"}
        if self._batches == 0:
            raise ValueError(
                f"The train split has {self.num_products} products with a relevant query, in {self.num_groups} row "
                f"groups, fewer than one batch of {batch_size} for each of {num_replicas} rank(s); give a smaller "
                "batch_size, or fewer devices."
            )

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[StreamIndex]:
        start, self.start_batch = self.start_batch, 0
        readers = [self._reader(reader, -(-(start - reader) // self.readers)) for reader in range(self.readers)]
        for index in range(start, self._batches):
            yield next(readers[index % self.readers])

    def log(self) -> None:
        """Says how much is read by how many, and what is not."""
        all_readers = self.readers * self.num_replicas
        logger.info(
            "streaming %d train products with a relevant query from %d row groups to %d reader(s), each of which holds "
            "up to %d products and a row group; %d products that fill no batch are left out of an epoch, others in "
            "each",
            *(self.num_products, self.num_groups, all_readers, self.shuffle_buffer),
            self.num_products - len(self) * self.batch_size * self.num_replicas,
        )
        without = len(self.starts) - 1 - self.num_groups
        if without:
            logger.info("%d row groups hold no such product and are not read in training", without)
        if self.num_groups < all_readers:
            logger.warning(
                "%d readers share %d row groups, so that some are read more than once an epoch; write the products in "
                "more row groups, or use fewer workers",
                *(all_readers, self.num_groups),
            )

    def _reader(self, reader: int, start: int) -> Iterator[StreamIndex]:
        """Batches of one reader, from its `start`-th on."""
        size, epoch = self.batch_size, self.epoch
        rng = np.random.default_rng([self.seed, epoch, self.rank * self.readers + reader, _ORDER_OF_READER])
        products = self._part(reader)
        # Sorting by the delayed time is what a shuffle buffer comes to, without a step per product: at any time those
        # that have come in and not gone out lie within one buffer.
        delayed = np.arange(len(products)) + rng.random(len(products)) * self.shuffle_buffer
        products = products[np.argsort(delayed, kind="stable")]
        drawn = self._first[products] + (rng.random(len(products)) * self._count[products]).astype(np.int64)
        rows, queries = self._products[products], self._queries[drawn]
        cuts = range(start * size, len(rows), size)
        reads = plan_reads([rows[cut : cut + size] for cut in cuts], self.starts)
        for own, cut in zip(reads, cuts, strict=True):
            crop = draw_crop(self.seed, self.epoch, cut // size * self.readers + reader, self._photo_views)
            yield StreamIndex(PairRows(queries[cut : cut + size], rows[cut : cut + size], crop), own)

    def _part(self, reader: int) -> npt.NDArray[np.int64]:
        """Positions in `_products` of the part of the epoch's row that a reader draws from, in its order."""
        batches = [(self._batches - other + self.readers - 1) // self.readers for other in range(reader + 1)]
        start = (self.rank * self._batches + sum(batches[:-1])) * self.batch_size
        stop = start + batches[-1] * self.batch_size
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_groups)
        ends = np.cumsum(self._size[order])
        first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left")
        found = [self._shuffled(int(group)) for group in order[first : last + 1]]
        skip = start - int(ends[first] - self._size[order[first]]) if found else 0
        return np.concatenate([np.empty(0, dtype=np.int64), *found])[skip : skip + stop - start]

    def _shuffled(self, group: int) -> npt.NDArray[np.int64]:
        # By a generator of its own, so that both readers of a row group at a border cut the same order.
        rng = np.random.default_rng([self.seed, self.epoch, group, _ORDER_OF_GROUP])
        return self._begin[group] + rng.permutation(self._size[group])


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
        check_enough(rows, num_replicas)
        parts = np.array_split(rows, num_replicas)
        self._batches = min(-(-len(parts[0]) // batch_size), len(parts[-1]))
        own = np.array_split(parts[rank], self._batches)
        cut = np.array_split(np.arange(self._batches), readers)
        self._readers = [[own[batch] for batch in part] for part in cut]
        self._starts = starts

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[StreamIndex]:
        reads = [plan_reads(batches, self._starts) for batches in self._readers]
        for index in range(self._batches):
            reader, at = index % len(reads), index // len(reads)
            yield StreamIndex(self._readers[reader][at], reads[reader][at])


def plan_reads(batches: Sequence[Rows], starts: npt.NDArray[np.int64]) -> list[tuple[Read, ...]]:
    """The reads before each batch of one reader; each row group is read once, for the first batch that needs it.

    Args:
        batches: Product rows of the batches that are left, all different.
        starts: First row of each row group and the number of rows, (G + 1,).
    """
    reads: list[list[Read]] = [[] for _ in batches]
    if not batches:
        return []
    rows = np.concatenate(batches)
    batch_of = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    groups = groups_of(starts, rows)
    order = np.argsort(groups, kind="stable")
    for positions in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        reads[batch_of[positions[0]]].append(Read(int(groups[positions[0]]), np.sort(rows[positions])))
    return [tuple(own) for own in reads]


class StreamedProductTable(ProductTable):
    """Products that `hold` has read; making a batch of them drops them.

    Attributes:
        held: Values by column of the products that are held, by row.
    """

    def __init__(self, catalogue: StreamedCatalogue, processor: MMFusionProcessor, *, photos: bool = True) -> None:
        super().__init__(catalogue, processor, photos=photos)
        self.shards = catalogue.shards
        wanted = dict.fromkeys(["product_id", *processor.template_columns, *(["image"] if self.photos else [])])
        self._wanted = [name for name in wanted if name in self.column_names]
        self.held: dict[int, dict[str, Any]] = {}

    def hold(self, reads: Iterable[Read]) -> None:
        """Reads rows and holds them.

        Raises:
            CatalogueError: They cannot be read, or are other products than when the catalogue was loaded.
        """
        for group, rows in reads:
            records = self.shards.read(group, rows, self._wanted)
            if [record["product_id"] for record in records] != self.catalogue.products[rows.tolist()]["product_id"]:
                raise self.shards.changed(group)
            self.held.update(zip(rows.tolist(), records, strict=True))

    def batch(self, rows: Rows, crop: int = 0) -> ProductBatch:
        batch = super().batch(rows, crop)
        for row in np.asarray(rows).tolist():
            del self.held[row]
        return batch

    def columns(self, names: Sequence[str], rows: Rows) -> dict[str, list[Any]]:
        records = [self.held[row] for row in np.asarray(rows).tolist()]
        return {name: [record[name] for record in records] for name in names}


class StreamedTable(Dataset[Any]):
    """Reads what a batch needs and makes it; an index is a [`StreamIndex`], and a failure is a [`ReadError`]."""

    def __init__(self, batches: PairTable | StreamedProductTable, products: StreamedProductTable) -> None:
        self.batches = batches
        self.products = products

    def __getitem__(self, streamed: StreamIndex) -> Any:
        try:
            self.products.hold(streamed.reads)
        except CatalogueError as error:
            return ReadError(str(error))
        return self.batches[streamed.batch]
