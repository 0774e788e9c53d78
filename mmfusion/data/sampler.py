"""Which rows make a batch: deterministic in (seed, epoch, position), disjoint over ranks, bucketed by text length."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data.distributed import DistributedSampler

from mmfusion.data.further_products import FurtherProducts, Negatives
from mmfusion.data.pair_batches import pair_batches
from mmfusion.data.qrels import Qrels
from mmfusion.data.tables import PairRows, Rows
from mmfusion.data.workers import WorkersLoader


class RowsSampler(DistributedSampler[Any]):
    # Lightning leaves samplers of this type alone and replaces any other by one that knows nothing of our batches.
    def __init__(self, num_replicas: int, rank: int) -> None:
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class ResumableSampler(RowsSampler):
    """A sampler that can begin an epoch in the middle.

    Attributes:
        start_batch: Where the next epoch begins; only that one.
    """

    start_batch = 0

    @property
    def sources(self) -> dict[str, str]:
        """What, beside the arguments of a run, the batches depend on; kept in checkpoints."""
        return {}


class PairSampler(ResumableSampler):
    """Batches of queries, each with one of its products, and further products; yields this rank's part of each.

    An epoch visits every query once, in an order drawn from (seed, epoch), with one product of the highest grade the
    query has, drawn anew. Batches are made by [`pair_batches`] and come in random order. The incomplete last batch is
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
            keys: (number of products, kinds) int64, see [`product_keys`]: no product comes twice in a global batch,
                nor two that are equal in one of them. A pair that would be waits for a later batch of the epoch; where
                none has room for it, its query is left out of the epoch. None: products are not compared.
            negatives: Mined negatives of queries, products of the pool.
            negatives_per_query: Of these per query and batch, at least 0; random products take the place of missing
                ones.
            photo_views: Views of the photos that a batch is drawn to show one of, at least 1; see [`photo_view`].

        Raises:
            ValueError: The batch size is below 2, or no full batch can be made; or another number is negative.
        """
        super().__init__(num_replicas, rank)
        self.batch_size = batch_size
        self.seed = seed
        self.lengths = lengths
        self.negatives = negatives
        self._groups, self._keys = groups, keys
        for name, value in (("extra_products", extra_products), ("negatives_per_query", negatives_per_query)):
            if value < 0:
                raise ValueError(f"{name} is {value}; give at least 0.")
        pool = np.unique(qrels.product) if pool is None else pool
        self._further = FurtherProducts(
            pool,
            seed=seed,
            ranks=num_replicas,
            extra=extra_products,
            negatives=negatives,
            per_query=negatives_per_query,
            keys=keys,
        )
        self._photo_views = photo_views
        if photo_views < 1:
            raise ValueError(f"photo_views is {photo_views}; give at least 1, which is the photos as they are.")
        best = np.zeros(int(qrels.query.max(initial=-1)) + 1, dtype=np.int64)
        np.maximum.at(best, qrels.query, qrels.grade)
        top = (qrels.grade == best[qrels.query]) & (qrels.grade > 0)
        self._products = qrels.product[top]
        self._queries, self._first, self._count = np.unique(qrels.query[top], return_index=True, return_counts=True)
        if batch_size < 2:
            raise ValueError(
                f"batch_size is {batch_size}; a contrastive batch needs at least 2 pairs: one alone has no negatives."
            )
        self._planned: tuple[int, list[PairRows]] = (-1, [])
        if len(self) == 0:
            self._refuse()

    def _refuse(self) -> None:
        size = f"one global batch of {self.batch_size} x {self.num_replicas} rank(s)"
        if len(self._queries) < self.batch_size * self.num_replicas:
            raise ValueError(
                f"The train split has {len(self._queries)} queries with a relevant product, fewer than {size}; give a "
                "smaller batch_size."
            )
        raise ValueError(
            f"The products of {len(self._queries)} train queries do not fill {size} without duplicates; give a smaller "
            "batch_size, or fewer kinds of duplicates in no_duplicates."
        )

    def __len__(self) -> int:
        """Batches of this epoch; another epoch may have a few more or less where duplicates are avoided."""
        return len(self.epoch_batches())

    def __iter__(self) -> Iterator[PairRows]:
        start, self.start_batch = self.start_batch, 0
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for index, (queries, products, _) in enumerate(self.epoch_batches()[start:], start):
            further = self._further.draw(self.epoch, index, queries, products)
            part = len(further) // self.num_replicas
            further = further[self.rank * part : (self.rank + 1) * part]
            yield PairRows(queries[own], np.concatenate([products[own], further]), self._view(index))

    @property
    def sources(self) -> dict[str, str]:
        return {} if self.negatives is None else {"negatives": self.negatives.digest}

    def _view(self, index: int) -> int:
        return int(np.random.default_rng([self.seed, self.epoch, index, 2]).integers(self._photo_views))

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


class ResumableLoader(WorkersLoader):
    """A loader over a [`ResumableSampler`] that continues in mid-epoch; Lightning saves and restores its state.

    Attributes:
        last_fetch: When the fetch of the last batch began, by `time.perf_counter`, and the seconds that it took.
    """

    last_fetch = (0.0, 0.0)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._yielded = 0
        self._resume_at = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Workers read ahead, so the sampler's own position says nothing: what counts is what was handed out.
        assert isinstance(self.sampler, ResumableSampler)
        self.sampler.start_batch = self._yielded = self._resume_at
        self._resume_at = 0
        batches = super().__iter__()
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.last_fetch = began, time.perf_counter() - began
            if batch is None:
                return
            self._yielded += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        # Of this epoch's length, as the one that restores it does not know yet which epoch it is in.
        return {"yielded": self._yielded % len(self), **self._sources()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("negatives") != self._sources().get("negatives"):
            raise ValueError(
                "The checkpoint was written by a training with other mined negatives, or with none; give the same "
                "--hard_negatives to resume, or another --output to begin anew."
            )
        if state.get("stream") != self._sources().get("stream"):
            raise ValueError(
                f"The checkpoint was written by a training that read {state.get('stream', 'no stream')}, and this one "
                f"reads {self._sources().get('stream', 'none')}; give the same --stream, --shuffle_buffer, devices, "
                "workers and files to resume, or another --output to begin anew."
            )
        self._resume_at = state["yielded"]

    def _sources(self) -> dict[str, str]:
        assert isinstance(self.sampler, ResumableSampler)
        return self.sampler.sources
