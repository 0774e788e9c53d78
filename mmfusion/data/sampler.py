"""Which rows make a batch: deterministic in (seed, epoch, position), disjoint over ranks, bucketed by text length."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch.utils.data.distributed import DistributedSampler

from mmfusion.data.pair_batches import pair_batches
from mmfusion.data.qrels import Qrels, best_grades
from mmfusion.data.tables import PairRows, Rows

# What generators are seeded with in addition to seed, epoch and batch, so that no two give the same numbers.
_FURTHER, _CROP = 1, 2


class Negatives(Protocol):
    """Hard negatives by query; `digest` identifies the table."""

    digest: str

    def of(self, query: int) -> Rows:
        """Product rows (n,) of a query row; none for a query without."""


class RowsSampler(DistributedSampler[Any]):
    """Base of samplers of rows. A subclass that reads `start_batch` can begin an epoch in the middle.

    Attributes:
        start_batch: Where the next epoch begins; only that one.
        sources: What, other than the arguments of a run, the batches depend on; kept in checkpoints.
    """

    start_batch = 0

    # Lightning leaves samplers of this type alone and replaces any other by one that knows nothing of our batches.
    def __init__(self, num_replicas: int, rank: int) -> None:
        self.num_replicas, self.rank = num_replicas, rank
        self.epoch = 0
        self.sources: dict[str, str] = {}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class PairSampler(RowsSampler):
    """Batches of queries, each with one of its products, and further products; yields this rank's part of each.

    An epoch visits every query once, in an order drawn from (seed, epoch), with one product of the highest grade the
    query has, drawn again. Batches are made by [`pair_batches`] and come in random order. The incomplete last batch is
    dropped. The global batch depends on `batch_size * num_replicas` alone: two ranks of 64 see what one of 128 sees.
    Further products are mined negatives of the queries, and products drawn evenly from the pool for each batch:
    negatives for most queries, and positives or near misses for some.
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
        groups: Rows | None = None,
        keys: Rows | None = None,
        negatives: Negatives | None = None,
        negatives_per_query: int = 0,
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
            groups: (number of products,) group of each product by row; batches are of one group where a group fills
                them. None: groups are not looked at.
            keys: (number of products, kinds) int64, see [`product_keys`]: no product appears twice in a global batch,
                nor two that are equal in one of them. A pair that would be waits for a later batch of the epoch; where
                none has room for it, its query is left out of the epoch. None: products are not compared.
            negatives: Mined negatives of queries, products of the pool.
            negatives_per_query: Of these per query and batch, at least 0; random products take the place of missing
                ones.
            photo_views: Crops of the photos that a batch is drawn to show one of, at least 1; see [`cropped_photo`].

        Raises:
            ValueError: The batch size is below 2, or no full batch can be made; or another number is too small.
        """
        super().__init__(num_replicas, rank)
        check_least(batch_size=(batch_size, 2), photo_views=(photo_views, 1))
        check_least(extra_products=(extra_products, 0), negatives_per_query=(negatives_per_query, 0))
        self.batch_size, self.seed, self.lengths = batch_size, seed, lengths
        self.negatives, self._per_query = negatives, negatives_per_query
        self._pool = np.unique(qrels.product) if pool is None else pool
        self._extra, self._groups, self._keys, self._photo_views = extra_products, groups, keys, photo_views
        if negatives is not None:
            self.sources = {"negatives": negatives.digest}
        top = (qrels.grade == best_grades(qrels.query, qrels.grade)[qrels.query]) & (qrels.grade > 0)
        self._products = qrels.product[top]
        self._queries, self._first, self._count = np.unique(qrels.query[top], return_index=True, return_counts=True)
        self._planned: tuple[int, list[PairRows]] = (-1, [])
        if len(self) == 0:
            size = f"one global batch of {batch_size} x {num_replicas} rank(s)"
            few = len(self._queries) < batch_size * num_replicas
            raise ValueError(
                f"The train split has {len(self._queries)} queries with a relevant product, fewer than {size}; give a "
                "smaller batch_size."
                if few
                else f"The products of {len(self._queries)} train queries do not fill {size} without duplicates; give "
                "a smaller batch_size, or fewer kinds of duplicates in no_duplicates."
            )

    def __len__(self) -> int:
        """Batches of this epoch; another epoch may have a few more or less where duplicates are avoided."""
        return len(self.epoch_batches())

    def __iter__(self) -> Iterator[PairRows]:
        start, self.start_batch = self.start_batch, 0
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for index, (queries, products, _) in enumerate(self.epoch_batches()[start:], start):
            further = self._further(index, queries, products)
            part = len(further) // self.num_replicas
            further = further[self.rank * part : (self.rank + 1) * part]
            crop = draw_crop(self.seed, self.epoch, index, self._photo_views)
            yield PairRows(queries[own], np.concatenate([products[own], further]), crop)

    def epoch_batches(self) -> list[PairRows]:
        """The pairs of the global batches of this epoch, without further products."""
        if self._planned[0] != self.epoch:
            self._planned = self.epoch, self._plan()
        return self._planned[1]

    def _plan(self) -> list[PairRows]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self._queries))
        drawn = (rng.random(len(order)) * self._count[order]).astype(np.int64)
        queries, products = self._queries[order], self._products[self._first[order] + drawn]
        size = self.batch_size * self.num_replicas
        batches = pair_batches(products, self.lengths[products], size, groups=self._groups, keys=self._keys)
        return [PairRows(queries[batches[i]], products[batches[i]]) for i in rng.permutation(len(batches))]

    def _further(self, index: int, queries: Rows, products: Rows) -> Rows:
        """Rows (n,) in addition to the pairs of the global batch `index`; n is a multiple of the ranks.

        Fewer than asked for where the pool holds no more. Where products are compared, none comes in that is one of the
        batch or equals one in a kind; random products take the place of mined negatives that do.
        """
        # A generator per batch, so that a run that continues in mid-epoch need not draw what it skips.
        rng = np.random.default_rng([self.seed, self.epoch, index, _FURTHER])
        wanted = self._extra * self.num_replicas + self._per_query * len(queries)
        if self.negatives is None and self._keys is None:
            most = min(wanted, len(self._pool)) // self.num_replicas * self.num_replicas
            return self._pool[rng.choice(len(self._pool), most, replace=False)]
        mined = [] if self.negatives is None else [self.negatives.of(query) for query in queries.tolist()]
        offered = [rows[rng.permutation(len(rows))[: self._per_query]] for rows in mined]
        chosen: list[int] = []
        taken = {key for product in products.tolist() for key in self._keys_of(product)}
        for product in np.concatenate([*offered, self._pool[rng.permutation(len(self._pool))]]).tolist():
            if len(chosen) == wanted:
                break
            own = self._keys_of(product)
            if taken.isdisjoint(own):
                chosen.append(product)
                taken.update(own)
        return np.array(chosen[: len(chosen) // self.num_replicas * self.num_replicas], dtype=np.int64)

    def _keys_of(self, product: int) -> list[tuple[int, int]]:
        """What the product must not share with another; itself first of all, whatever the kinds are."""
        keys = [] if self._keys is None else self._keys[product].tolist()
        return [(-1, product), *((kind, key) for kind, key in enumerate(keys) if key >= 0)]


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
            check_enough(rows, num_replicas)
            batches = list(np.array_split(ordered, num_replicas))
        self.batches = batches[rank::num_replicas]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Rows]:
        return iter(self.batches)


def draw_crop(seed: int, epoch: int, index: int, count: int) -> int:
    """Which of so many crops of the photos a batch shows."""
    return int(np.random.default_rng([seed, epoch, index, _CROP]).integers(count))


def check_enough(rows: Rows, num_replicas: int) -> None:
    """Raises a ValueError if there are fewer rows to validate on than ranks."""
    if len(rows) < num_replicas:
        raise ValueError(
            f"There are {len(rows)} queries or products to validate on for {num_replicas} ranks; use fewer devices, or "
            "a larger val split."
        )


def check_least(**numbers: tuple[int, int]) -> None:
    """Raises a ValueError for the first number, given with the least that it may be, that is below."""
    for name, (value, least) in numbers.items():
        if value < least:
            raise ValueError(f"{name} is {value}; give at least {least}.")
