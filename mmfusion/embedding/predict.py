"""The forward pass over a catalogue, as a Lightning `predict`: any devices, any precision, a writer per rank."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from mmfusion.data.sampler import RowsSampler
from mmfusion.data.tables import ProductTable, Rows, text_lengths
from mmfusion.data.workers import WorkersLoader
from mmfusion.embedding.note import read_note
from mmfusion.embedding.precision import FloatArray
from mmfusion.embedding.shard import MadeOf, write_shard
from mmfusion.model import MMFusionModel


class ShardSampler(RowsSampler):
    """Batches of the shards of a rank, each shard's shortest texts first.

    Batches are made within a shard, as the products beside it change the last digits of a vector: so neither the number
    of ranks nor the shards that are there already change what comes out.
    """

    def __init__(
        self, shards: Sequence[Rows], lengths: npt.NDArray[np.int64], *, batch_size: int, num_replicas: int, rank: int
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


class ProductEmbedder(L.LightningModule):
    """Embeds batches of products.

    Args:
        model: Model in evaluation mode.
        truncate_dim: Components to keep of each view; None keeps all.
    """

    def __init__(self, model: MMFusionModel, truncate_dim: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.truncate_dim = truncate_dim

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> tuple[FloatArray, FloatArray]:
        """Vectors (n, D) and modality weights (n, 2) of a batch, float32 on the CPU."""
        inputs = {name: value for name, value in batch.items() if name not in ("shard", "product_rows")}
        output = self.model(**inputs)
        vectors = self.model.shorten(output.product_embeds.float(), self.truncate_dim)
        return vectors.cpu().numpy(), output.modality_weights.float().cpu().numpy()


@dataclass
class _Open:
    vectors: FloatArray
    weights: FloatArray
    filled: int = 0


class ShardWriter(BasePredictionWriter):
    """Writes each shard as soon as its last batch is done, on the rank that computed it.

    Args:
        folder: Where shards go.
        made_of: What the vectors depend on.
    """

    def __init__(self, folder: Path, made_of: MadeOf) -> None:
        super().__init__("batch")
        self.folder = folder
        self.made_of = made_of
        self._open: dict[int, _Open] = {}

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = _data(trainer)
        self._products, self._shards = data.products, data.shards
        own = sum(len(shard.places) for shard in self._shards[trainer.global_rank :: trainer.world_size])
        of = f" (first of {trainer.world_size} parts)" if trainer.world_size > 1 else ""
        self._bar = tqdm(total=own, desc=f"embedding{of}", unit="product", disable=not trainer.is_global_zero)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        vectors, weights = prediction
        number = batch["shard"]
        shard = self._shards[number]
        size = len(shard.places)
        if number not in self._open:
            self._open[number] = _Open(np.zeros((size, vectors.shape[1]), np.float32), np.zeros((size, 2), np.float32))
        held = self._open[number]
        places = np.searchsorted(self._products.rows[shard.places], batch["product_rows"].cpu().numpy())
        held.vectors[places], held.weights[places] = vectors, weights
        held.filled += len(places)
        if held.filled == size:
            names, contents = self._products.names(shard.places), self._products.contents[shard.places]
            write_shard(self.folder / shard.name, self.made_of, names, contents, held.vectors, held.weights)
            del self._open[number]
        self._bar.update(len(places))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.close()


class EmbeddingData(L.LightningDataModule):
    """Loads the products that have to be embedded, as the first rank finds out and notes for the others.

    Attributes:
        products: All products that are wanted, from `setup` on.
        shards: What is to be computed, from `setup` on.
    """

    def __init__(
        self, table: ProductTable, note: Path, find: Callable[[], None], *, batch_size: int, num_workers: int
    ) -> None:
        """Prepares loading.

        Args:
            table: Renders texts and decodes photos.
            note: File in which `find` notes its plan, see [`read_note`].
            find: Called on the first rank before any rank goes on.
            batch_size: Products per forward pass.
            num_workers: Processes per rank that decode photos.
        """
        super().__init__()
        # Ranks that looked for themselves would see shards that others have written meanwhile.
        self.prepare_data_per_node = False
        self.table = table
        self.note = note
        self.find = find
        self.batch_size = batch_size
        self.num_workers = num_workers

    def prepare_data(self) -> None:
        self.find()

    def setup(self, stage: str) -> None:
        self.products, self.shards = read_note(self.note, self.table.catalogue)

    def predict_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        sampler = ShardSampler(
            [self.products.rows[shard.places] for shard in self.shards],
            text_lengths(self.table.catalogue, self.table.processor.template_columns),
            batch_size=self.batch_size,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
        )
        return WorkersLoader(
            ShardTable(self.table),
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )


def _data(trainer: L.Trainer) -> EmbeddingData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, EmbeddingData)
    return data
