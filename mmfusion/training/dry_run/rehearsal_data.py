"""A data module that hands out one batch of a training, with features of frozen encoders for its rows alone."""

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.data.batch import TrainBatch
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.feature_cache import RaggedCache, build_text_cache
from mmfusion.data.tables import PairRows, PairTable, Rows


@dataclass
class CacheCost:
    """What building the caches of features will cost.

    Attributes:
        seconds: Time, from the rows that were computed.
        bytes: Size of those that are not there yet.
        products_per_second: Speed of the vision encoder, photos decoded; 0 where its features are not cached.
    """

    seconds: float = 0.0
    bytes: float = 0.0
    products_per_second: float = 0.0


class RehearsalData(MMFusionDataModule):
    """What one rank of a training reads, without its loaders: one batch as often as it is asked for.

    Attributes:
        batch: The train batch to hand out.
        times: How often.
        val_batches: A batch each of val queries and val products, to be handed out; empty: none.
    """

    def __init__(self, data: MMFusionDataModule, ranks: int) -> None:
        """Args: data: The training's own, which stays as it is. ranks: Of the training."""
        self.__dict__.update(data.__dict__)
        # Caches are put into tables, and these are for a few rows only.
        self._queries, self._train_products = copy.copy(data._queries), copy.copy(data._train_products)
        shared = data._val_products is data._train_products
        self._val_products = self._train_products if shared else copy.copy(data._val_products)
        self._ranks = ranks
        self.batch: Any = None
        self.times = 1
        self.val_batches: list[Any] = []

    def _place(self) -> dict[str, int]:
        return {"num_replicas": self._ranks, "rank": 0}

    def prepare_data(self) -> None:
        pass

    def setup(self, stage: str) -> None:
        pass

    def train_dataloader(self) -> Any:
        return _Again(self.batch, self.times)

    def val_dataloader(self) -> Any:
        return [_Again(batch, 1) for batch in self.val_batches]

    def read(self, rows: PairRows) -> TrainBatch:
        """A train batch, read here."""
        return PairTable(self._queries, self._train_products)[rows]

    def rows_of_validation(self) -> tuple[Rows, Rows]:
        """Rows of a batch each of val queries and val products, spread evenly; none if there is no validation."""
        queries, products = np.unique(self.val_qrels.query), self.val_rows
        if not len(queries) or not len(products):
            return queries[:0], products[:0]
        return self._some(queries), self._some(products)

    def _some(self, rows: Rows) -> Rows:
        return rows[np.linspace(0, len(rows) - 1, min(len(rows), self.eval_batch_size)).round().astype(int)]

    def cache_features(self, rows: PairRows, folder: Path, real: Path) -> CacheCost:
        """Computes features of frozen encoders for the rows of a batch and of validation.

        Args:
            rows: Of the train batch.
            folder: Where to, a temporary folder.
            real: Where the training has its caches; those that are there cost nothing more.
        """
        cost = CacheCost()
        if self._vision_cache is None and self._text_cache is None:
            return cost
        val_queries, val_products = self.rows_of_validation()
        queries, products = np.union1d(rows.queries, val_queries), np.unique(rows.products)
        if self._val_products is self._train_products:
            products = np.union1d(products, val_products)
        every = (self.train_rows, self.val_rows)
        asked = len(np.union1d(self.train_qrels.query, self.val_qrels.query))
        if self._text_cache is not None:
            began, model = time.perf_counter(), self._text_cache[0]
            self._queries.text_cache = build_text_cache(folder, model, self._queries, queries, "query")
            _add(cost, self._queries.text_cache.items, asked, time.perf_counter() - began, _there(real, "query", asked))
        self.train_rows, self.val_rows = products, val_products
        vision, self._vision_cache = self._vision_cache, None
        if self._text_cache is not None:
            self._text_cache = self._text_cache[0], folder
            self._time_texts(cost, every, real)
        if vision is not None:
            self._vision_cache = vision[0], folder
            self._time_photos(cost, every, real)
        self.train_rows, self.val_rows = every
        return cost

    def _tables(self, every: tuple[Rows, Rows]) -> Iterator[tuple[str, Any, int]]:
        """Name, table, and number of rows that the training caches, of each table that there is."""
        yield "train", self._train_products, len(every[0])
        if self._val_products is not self._train_products and len(every[1]):
            yield "val", self._val_products, len(every[1])

    def _time_texts(self, cost: CacheCost, every: tuple[Rows, Rows], real: Path) -> None:
        began = time.perf_counter()
        self._open_caches()
        seconds = time.perf_counter() - began
        computed = sum(len(table.text_cache.items.rows) for _, table, _ in self._tables(every))
        for _, table, count in self._tables(every):
            own = table.text_cache.items
            _add(cost, own, count, seconds * len(own.rows) / computed, _there(real, "product", count))

    def _time_photos(self, cost: CacheCost, every: tuple[Rows, Rows], real: Path) -> None:
        began = time.perf_counter()
        self._open_caches()
        seconds = time.perf_counter() - began
        caches = [(name, cache.items, count) for name, table, count in self._tables(every) for cache in table.caches]
        computed = sum(len(own.rows) for _, own, _ in caches)
        cost.products_per_second = computed / seconds if computed else 0.0
        for _, own, count in caches:
            is_there = (real / own.folder.name / "feature_cache.json").is_file()
            _add(cost, own, count, seconds * len(own.rows) / computed, is_there)


class _Again:
    """One batch several times. Lightning would take a list for a list of loaders."""

    def __init__(self, batch: Any, times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.times):
            yield self.batch


def _add(cost: CacheCost, own: RaggedCache, count: int, seconds: float, is_there: bool) -> None:
    """Adds what a cache of `count` rows costs, from one of a few of them that took some seconds."""
    if not is_there and len(own.rows):
        size = sum(path.stat().st_size for path in own.folder.iterdir())
        cost.seconds += seconds * count / len(own.rows)
        cost.bytes += size * count / len(own.rows)


def _there(folder: Path, role: str, rows: int) -> bool:
    """Whether a folder has a cache of so many texts; whether it is of this encoder is seen when it is opened."""
    manifests = folder.glob(f"{role}_texts_*/feature_cache.json")
    return any(json.loads(path.read_text())["rows"] == rows for path in manifests)
