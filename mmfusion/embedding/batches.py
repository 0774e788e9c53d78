"""The batches of shards, which the products of a shard alone decide: the same for every engine and any rank."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from mmfusion.data.sampler import RowsSampler
from mmfusion.data.tables import ProductTable, Rows
from mmfusion.data.workers import WorkersLoader


class ShardSampler(RowsSampler):
    """Batches of the shards of a rank, each shard's shortest texts first.

    Batches are made within a shard, as the products beside it change the last digits of a vector: so neither the number
    of ranks nor the shards that are there already change what comes out.
    """

    def __init__(
        self,
        shards: Sequence[Rows],
        lengths: npt.NDArray[np.int64],
        *,
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(num_replicas, rank)
        self.batches = []
        for number in range(rank, len(shards), num_replicas):
            rows = shards[number][np.argsort(lengths[shards[number]], kind="stable")]
            self.batches += [(number, rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[int, Rows]]:
        return iter(self.batches)


class ShardTable(Dataset[Any]):
    """Batches of a [`ProductTable`] that know their shard."""

    def __init__(self, products: ProductTable) -> None:
        self.products = products

    def __getitem__(self, key: tuple[int, Rows]) -> dict[str, Any]:
        number, rows = key
        return {"shard": number, **self.products[rows]}


def shard_loader(table: ProductTable, sampler: ShardSampler, num_workers: int) -> DataLoader[Any]:
    """Loads the batches of a sampler, decoding photos in `num_workers` processes."""
    return WorkersLoader(
        ShardTable(table),
        sampler=sampler,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
