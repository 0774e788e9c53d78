"""Products of a batch beside those of its pairs: mined hard negatives, and random ones of the pool."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


class Negatives(Protocol):
    """Hard negatives by query; `digest` tells one table from another."""

    digest: str

    def of(self, query: int) -> IntArray:
        """Product rows (n,) of a query row; none for a query without."""


class FurtherProducts:
    """Draws the further products of a global batch, from (seed, epoch, number of the batch) alone."""

    def __init__(
        self,
        pool: IntArray,
        *,
        seed: int,
        ranks: int,
        extra: int,
        negatives: Negatives | None,
        per_query: int,
        keys: IntArray | None,
    ) -> None:
        """Takes the sources.

        Args:
            pool: Product rows that random ones are drawn from, all different.
            seed: Of the draws.
            ranks: Ranks that share a batch; the number of products is a multiple of it.
            extra: Random products per rank.
            negatives: Hard negatives; None: there are none.
            per_query: Hard negatives per query of the batch. Where a query has fewer, or another product of the batch
                is the same, random products take the place, so that batches are of one size.
            keys: (number of products, kinds) by row; no product comes in that is one of the batch or equals one in
                a kind. None: random products are drawn without a look at the pairs.
        """
        self._pool = pool
        self._seed, self._ranks, self._extra = seed, ranks, extra
        self._negatives, self._per_query, self._keys = negatives, per_query, keys

    def draw(self, epoch: int, index: int, queries: IntArray, products: IntArray) -> IntArray:
        """Rows (n,) for the global batch `index` with these (B,) queries and products; n is a multiple of the ranks.

        Fewer than asked for where the pool holds no more.
        """
        # A generator per batch, so that a run that continues in mid-epoch need not draw what it skips.
        rng = np.random.default_rng([self._seed, epoch, index, 1])
        wanted = self._extra * self._ranks + self._per_query * len(queries)
        if self._negatives is None and self._keys is None:
            return self._pool[rng.choice(len(self._pool), self._whole(min(wanted, len(self._pool))), replace=False)]
        chosen: list[int] = []
        taken = {key for product in products.tolist() for key in self._keys_of(product)}
        self._take(self._mined(rng, queries), chosen, taken, wanted)
        self._take(self._pool[rng.permutation(len(self._pool))], chosen, taken, wanted)
        return np.array(chosen[: self._whole(len(chosen))], dtype=np.int64)

    def _whole(self, count: int) -> int:
        return count // self._ranks * self._ranks

    def _mined(self, rng: np.random.Generator, queries: IntArray) -> IntArray:
        if self._negatives is None:
            return np.empty(0, dtype=np.int64)
        found = [self._negatives.of(query) for query in queries.tolist()]
        return np.concatenate([rows[rng.permutation(len(rows))[: self._per_query]] for rows in found])

    def _take(self, offered: IntArray, chosen: list[int], taken: set[tuple[int, int]], wanted: int) -> None:
        for product in offered.tolist():
            if len(chosen) == wanted:
                return
            own = self._keys_of(product)
            if taken.isdisjoint(own):
                chosen.append(product)
                taken.update(own)

    def _keys_of(self, product: int) -> list[tuple[int, int]]:
        """What the product must not share with another; itself first of all, whatever the kinds are."""
        keys = [] if self._keys is None else self._keys[product].tolist()
        return [(-1, product), *((kind, key) for kind, key in enumerate(keys) if key >= 0)]
