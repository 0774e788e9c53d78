"""Mining in pieces: by several processes, and from where it stopped."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.hard_negatives import SCHEMA
from mmfusion.data.qrels import Qrels
from mmfusion.files import whole_file
from mmfusion.retrieval.index import ProductIndex
from mmfusion.retrieval.mining import FloatArray, IntArray, MinedNegatives, Miner, MiningSettings


def embed_in_shards(path: Path, rows: IntArray, size: int, embed: Callable[[IntArray], FloatArray]) -> FloatArray:
    """Embeddings (R, D) float32 of rows, memory-mapped; what is there already is not computed again.

    Args:
        path: The .npy file; until it is complete, shards are kept in a folder beside it.
        rows: (R,) rows.
        size: Rows per shard.
        embed: Gives (n, D) for n rows.
    """
    if not path.exists():
        folder = path.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        parts = []
        with tqdm(total=len(rows), desc=f"embedding {path.stem}", unit="row") as bar:
            for start in range(0, len(rows), size):
                parts.append(folder / f"{start:012d}.npy")
                if not parts[-1].exists():
                    with whole_file(parts[-1]) as file:
                        np.save(file, embed(rows[start : start + size]))
                bar.update(len(rows[start : start + size]))
        with whole_file(path) as file:
            np.save(file, np.concatenate([np.load(part) for part in parts]))
        shutil.rmtree(folder)
    mapped: FloatArray = np.load(path, mmap_mode="r")
    return mapped


@dataclass
class MiningShards(Dataset[int]):
    """Queries in shards of a fixed size; shard i is mined and written when it is asked for.

    Attributes:
        folder: Holds `index` (of the train products), `products.npy` and `queries.npy`; the shards go there.
        query_rows: (Q,) train queries.
        product_rows: (P,) train products.
        qrels: Judgements between them.
        settings: What is taken.
        size: Queries per shard. It is the same for any number of processes, as FAISS computes other last digits for
            other numbers of queries.
    """

    folder: Path
    query_rows: IntArray
    product_rows: IntArray
    qrels: Qrels
    settings: MiningSettings
    size: int
    _miner: Miner | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return -(-len(self.query_rows) // self.size)

    def path(self, shard: int) -> Path:
        """File of a shard, which is there once it is complete."""
        return self.folder / f"shard-{shard:06d}.parquet"

    def __getitem__(self, shard: int) -> int:
        """Mines a shard, writes it, and returns its number of queries."""
        own = slice(shard * self.size, (shard + 1) * self.size)
        embeds = np.asarray(np.load(self.folder / "queries.npy", mmap_mode="r")[own])
        mined = self._open().mine(embeds, self.query_rows[own])
        with whole_file(self.path(shard)) as file:
            pq.write_table(pa.table(mined._asdict()), file)
        return len(embeds)

    def _open(self) -> Miner:
        if self._miner is None:
            index = ProductIndex.load(self.folder / "index")
            products = np.load(self.folder / "products.npy", mmap_mode="r")
            self._miner = Miner(index, products, self.product_rows, self.qrels, self.settings)
        return self._miner

    def mine(self, num_workers: int) -> None:
        """Mines the shards that are missing, with a progress bar; 0 workers mine in this process."""
        missing = [shard for shard in range(len(self)) if not self.path(shard).exists()]
        num_workers = min(num_workers, len(missing))
        # Forked processes would inherit the locks of FAISS's and torch's threads.
        context = "spawn" if num_workers else None
        loader = DataLoader(
            self, batch_size=None, sampler=missing, num_workers=num_workers, multiprocessing_context=context
        )
        done = len(self.query_rows) - sum(len(self.query_rows[s * self.size : (s + 1) * self.size]) for s in missing)
        with tqdm(total=len(self.query_rows), initial=done, desc="mining", unit="query") as bar:
            for queries in loader:
                bar.update(int(queries))

    def read(self) -> MinedNegatives:
        """All shards, in order."""
        table = pa.concat_tables([pq.read_table(self.path(shard)) for shard in range(len(self))])
        return MinedNegatives(*(table.column(name).to_numpy() for name in MinedNegatives._fields))


def with_ids(mined: MinedNegatives, catalogue: Catalogue) -> pa.Table:
    """Negatives as a table of ids, in the schema of hard negatives."""
    ids = {"query_id": catalogue.query_ids[mined.query], "product_id": catalogue.product_ids[mined.product]}
    columns = {name: pa.array(values.tolist(), pa.string()) for name, values in ids.items()}
    numbers = {"rank": mined.rank, "score": mined.score, "positive_score": mined.positive_score}
    return pa.table({**columns, **numbers}, schema=SCHEMA)
