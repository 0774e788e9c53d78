"""Embedding by Lightning: its `predict` on any devices, in any precision, with a writer per rank."""

import logging
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mmfusion.data.tables import text_lengths
from mmfusion.embedding.batches import ShardSampler, shard_loader
from mmfusion.embedding.forward import OpenShard, embed_batch
from mmfusion.embedding.job import EmbeddingJob
from mmfusion.embedding.manifest import EmbeddedCatalogue
from mmfusion.embedding.note import read_note, write_note
from mmfusion.embedding.precision import FloatArray
from mmfusion.embedding.shard import MadeOf
from mmfusion.model import MMFusionModel
from mmfusion.training.stop_on_signal import STOPPED

log = logging.getLogger("mmfusion")


def embed_with_lightning(job: EmbeddingJob, trainer: L.Trainer) -> EmbeddedCatalogue | None:
    """Embeds what is missing, drops what is gone, and writes the manifest.

    Args:
        job: What to embed.
        trainer: With a [`ShardWriter`] of the job among its callbacks.

    Returns:
        The finished folder on the first rank, None on others.

    Raises:
        ValueError: The trainer has another precision than the job.
    """
    if trainer.precision != job.made_of.precision:
        # Lightning takes another one and says so in a warning only.
        raise ValueError(
            f"hardware.precision is {job.made_of.precision}, which {type(trainer.accelerator).__name__} does not "
            f"support; give {trainer.precision}."
        )
    module = ProductEmbedder(job.model, job.settings.truncate_dim)
    trainer.predict(module, datamodule=EmbeddingData(job), return_predictions=False)
    # A rank whose shards are done says nothing of the others'.
    trainer.strategy.barrier()
    return job.finish() if trainer.is_global_zero else None


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
        return embed_batch(self.model, batch, self.truncate_dim)


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
        self._open: dict[int, OpenShard] = {}

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = _data(trainer)
        self._products, self._shards = data.products, data.shards
        own = sum(len(shard.places) for shard in self._shards[trainer.global_rank :: trainer.world_size])
        of = f" (first of {trainer.world_size} parts)" if trainer.world_size > 1 else ""
        self._bar = tqdm(total=own, desc=f"embedding{of}", unit="product", disable=not trainer.is_global_zero)
        _stop_on_sigterm(trainer)

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
        if number not in self._open:
            self._open[number] = OpenShard(self._products.rows[shard.places], vectors.shape[1])
        held = self._open[number]
        held.add(batch["product_rows"].cpu().numpy(), vectors, weights)
        if held.is_full:
            names, contents = self._products.names(shard.places), self._products.contents[shard.places]
            held.write(self.folder / shard.name, self.made_of, names, contents)
            del self._open[number]
        self._bar.update(len(vectors))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.close()


class EmbeddingData(L.LightningDataModule):
    """Loads the products that have to be embedded, as the first rank finds out and notes for the others.

    Attributes:
        products: All products that are wanted, from `setup` on.
        shards: What is to be computed, from `setup` on.
    """

    def __init__(self, job: EmbeddingJob) -> None:
        """Args: job: Asked on the first rank before any rank goes on."""
        super().__init__()
        # Ranks that looked for themselves would see shards that others have written meanwhile.
        self.prepare_data_per_node = False
        self.job = job
        self.note = job.folder / "cache" / "plan.npz"

    def prepare_data(self) -> None:
        shards = self.job.find()
        write_note(self.note, self.job.products, shards)

    def setup(self, stage: str) -> None:
        self.products, self.shards = read_note(self.note, self.job.catalogue)

    def predict_dataloader(self) -> DataLoader[Any]:
        trainer, job = self.trainer, self.job
        assert trainer is not None
        sampler = ShardSampler(
            [self.products.rows[shard.places] for shard in self.shards],
            text_lengths(job.catalogue, job.table.processor.template_columns),
            batch_size=job.settings.batch_size,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
        )
        return shard_loader(job.table, sampler, job.settings.num_workers)


def _stop_on_sigterm(trainer: L.Trainer) -> None:
    """Ends this process, with the code `STOPPED`, and the ranks that it started, as soon as it gets SIGTERM.

    Lightning's handler, which this one replaces until the end of `predict`, only notes it for loops of training.
    """

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)
        if trainer.is_global_zero:
            log.warning("SIGTERM: embedding stops; run the same command to go on")
        # Lightning's launcher takes a rank of its own that ends with another code than 0 for one that failed.
        raise SIGTERMException(STOPPED if trainer.local_rank == 0 else 0)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def _data(trainer: L.Trainer) -> EmbeddingData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, EmbeddingData)
    return data
