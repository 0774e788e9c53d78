"""Hard negatives of train queries: products that a model ranks high although nobody judged them the best.

Several processes mine them in shards; a command that was stopped continues with the shards that are missing.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from mmfusion.data.hard_negatives import SCHEMA
from mmfusion.data.qrels import Qrels
from mmfusion.files import whole_file
from mmfusion.retrieval.index import ProductIndex
from mmfusion.retrieval.vectors import FloatArray, IntArray

# Scores of FAISS differ in their last digits from exact ones, so that places may change at the end of the window.
_SPARE = 16


@dataclass(frozen=True)
class MiningSettings:
    """Which of the ranked products are taken, under the names of sentence-transformers' `mine_hard_negatives`.

    A margin keeps out false negatives, after NV-Retriever (arXiv:2407.15831), whose best setting is a relative margin
    of 0.05.

    Attributes:
        first_rank: First place of the window, from 1; places count all train products, positives too.
        last_rank: Last place of the window.
        num_negatives: Most negatives of a query; the highest places are taken.
        absolute_margin: A negative's score is at most that of the positive less this, at least 0; None: no such bound.
        relative_margin: The same with this share of the positive score's magnitude; None: no such bound.
        positive_score: What is taken for the positive where a query has several products of its best grade.
        max_negative_grade: Highest grade of a negative. Products of a query's best grade never are.
    """

    first_rank: int = 1
    last_rank: int = 100
    num_negatives: int = 20
    absolute_margin: float | None = None
    relative_margin: float | None = 0.05
    positive_score: Literal["min", "mean", "max"] = "mean"
    max_negative_grade: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.first_rank <= self.last_rank:
            raise ValueError(
                f"The window is from first_rank {self.first_rank} to last_rank {self.last_rank}; give places from 1 "
                "on, the first one not after the last."
            )
        least = {"num_negatives": 1, "absolute_margin": 0, "relative_margin": 0, "max_negative_grade": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise ValueError(f"{name} is {value}; give at least {lowest}.")

    def highest_score(self, positive: float) -> float:
        """The highest score of a negative next to a positive's."""
        if self.absolute_margin is None and self.relative_margin is None:
            return float("inf")
        return positive - max(self.absolute_margin or 0.0, (self.relative_margin or 0.0) * abs(positive))


class Miner:
    """Ranks train products for train queries and picks negatives."""

    def __init__(
        self, index: ProductIndex, embeds: FloatArray, product_rows: IntArray, qrels: Qrels, settings: MiningSettings
    ) -> None:
        """Takes what is searched.

        Args:
            index: Of the train products; an approximate one may miss some.
            embeds: (P, D) their embeddings, from which scores are computed again; may be memory-mapped.
            product_rows: (P,) their rows, ascending.
            qrels: Judgements of train queries over train products.
            settings: What is taken.
        """
        self._index, self._embeds, self._product_rows = index, embeds, product_rows
        self._qrels, self._settings = qrels, settings
        self._names = np.asarray(index.product_ids, dtype=object)
        self._place_of_id = np.argsort(np.argsort(self._names, kind="stable"))

    def mine(self, query_embeds: FloatArray, query_rows: IntArray, query_ids: Sequence[str] | np.ndarray) -> pa.Table:
        """Negatives of queries, each of which has at least one relevant product.

        Args:
            query_embeds: (Q, D) their embeddings.
            query_rows: (Q,) their rows in the judgements.
            query_ids: Their names.

        Returns:
            A table of hard negatives, in the order of the queries, hardest first.
        """
        # In one thread, so that as many processes as there are give the same bits; they are what uses the cores.
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            _, found = self._index.search_rows(query_embeds, self._settings.last_rank + _SPARE)
        finally:
            faiss.omp_set_num_threads(threads)
        parts = [self._of_query(*one) for one in zip(query_embeds, query_rows, query_ids, found, strict=True)]
        return pa.concat_tables(parts).combine_chunks()

    def _of_query(self, embed: FloatArray, query: int, query_id: str, found: IntArray) -> pa.Table:
        settings = self._settings
        places, scores = self._ranked(embed, found[found >= 0])
        best, positive = self._positive(embed, query)
        grades = self._qrels.grades_of([query], self._product_rows[places][None])[0]
        ranks = np.arange(1, len(places) + 1, dtype=np.int32)
        fits = (ranks >= settings.first_rank) & (grades <= settings.max_negative_grade) & (grades < best)
        fits &= scores <= settings.highest_score(positive)
        kept = np.flatnonzero(fits)[: settings.num_negatives]
        columns = {
            "query_id": [query_id] * len(kept),
            "product_id": self._names[places[kept]],
            "rank": ranks[kept],
            "score": scores[kept],
            "positive_score": np.full(len(kept), positive, dtype=np.float32),
        }
        return pa.table(columns, schema=SCHEMA)

    def _ranked(self, embed: FloatArray, found: IntArray) -> tuple[IntArray, FloatArray]:
        """Found products and exact scores in the order of evaluation: equal scores by product id, descending."""
        scores = self._scores(embed, found)
        order = np.lexsort((-self._place_of_id[found], -scores))[: self._settings.last_rank]
        return found[order], scores[order]

    def _positive(self, embed: FloatArray, query: int) -> tuple[int, float]:
        """Best grade of a query, and the score that is taken for its products of that grade."""
        products, grades = self._qrels.for_query(query)
        best = int(grades.max())
        scores = self._scores(embed, np.searchsorted(self._product_rows, products[grades == best]))
        return best, float(np.float32(getattr(np, self._settings.positive_score)(scores)))

    def _scores(self, embed: FloatArray, places: IntArray) -> FloatArray:
        exact = self._embeds[places].astype(np.float64) @ embed.astype(np.float64)
        return exact.astype(np.float32)


def embed_in_shards(path: Path, rows: IntArray, size: int, embed: Callable[[IntArray], FloatArray]) -> FloatArray:
    """Embeddings (R, D) float32 of rows, memory-mapped; what is there already is not computed again.

    Args:
        path: The .npy file; until it is complete, shards are kept in a folder next to it.
        rows: (R,) rows.
        size: Rows per shard.
        embed: Gives (n, D) for n rows.
    """
    if not path.exists():
        folder = path.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        parts = {start: folder / f"{start:012d}.npy" for start in range(0, len(rows), size)}
        for start, part in tqdm(parts.items(), desc=f"embedding {path.stem}", unit="shard"):
            if not part.exists():
                with whole_file(part) as file:
                    np.save(file, embed(rows[start : start + size]))
        with whole_file(path) as file:
            np.save(file, np.concatenate([np.load(part) for part in parts.values()]))
        shutil.rmtree(folder)
    mapped: FloatArray = np.load(path, mmap_mode="r")
    return mapped


@dataclass
class MiningShards(Dataset[int]):
    """Queries in shards of a fixed size; shard i is mined and written when it is asked for.

    Attributes:
        folder: Holds `index` (of the train products), `products.npy` and `queries.npy`; the shards go there.
        query_rows: (Q,) train queries.
        query_ids: Their names.
        product_rows: (P,) train products.
        qrels: Judgements between them.
        settings: What is taken.
        size: Queries per shard. It is the same for any number of processes, as FAISS computes other last digits for
            other numbers of queries.
    """

    folder: Path
    query_rows: IntArray
    query_ids: Sequence[str] | np.ndarray
    product_rows: IntArray
    qrels: Qrels
    settings: MiningSettings
    size: int

    def __len__(self) -> int:
        return -(-len(self.query_rows) // self.size)

    def path(self, shard: int) -> Path:
        """File of a shard, which is there once it is complete."""
        return self.folder / f"shard-{shard:06d}.parquet"

    def __getitem__(self, shard: int) -> int:
        """Mines a shard, writes it, and returns its number."""
        own = slice(shard * self.size, (shard + 1) * self.size)
        embeds = np.asarray(np.load(self.folder / "queries.npy", mmap_mode="r")[own])
        mined = self._miner.mine(embeds, self.query_rows[own], self.query_ids[own])
        # A process of a killed run may still be writing the same shard.
        with whole_file(self.path(shard), concurrent=True) as file:
            pq.write_table(mined, file)
        return shard

    @cached_property
    def _miner(self) -> Miner:
        index, products = ProductIndex.load(self.folder / "index"), np.load(self.folder / "products.npy", mmap_mode="r")
        return Miner(index, products, self.product_rows, self.qrels, self.settings)

    def mine(self, num_workers: int) -> None:
        """Mines the shards that are missing, with a progress bar; 0 workers mine in this process."""
        missing = [shard for shard in range(len(self)) if not self.path(shard).exists()]
        num_workers = min(num_workers, len(missing))
        # Forked processes would inherit the locks of FAISS's and torch's threads.
        context = "spawn" if num_workers else None
        loader = DataLoader(
            self, batch_size=None, sampler=missing, num_workers=num_workers, multiprocessing_context=context
        )
        for _ in tqdm(loader, total=len(self), initial=len(self) - len(missing), desc="mining", unit="shard"):
            pass

    def read(self) -> pa.Table:
        """All shards, in order."""
        return pa.concat_tables([pq.read_table(self.path(shard)) for shard in range(len(self))]).combine_chunks()
