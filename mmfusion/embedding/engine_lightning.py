"""Embedding by Lightning: its `predict` on any devices, in any precision; each rank writes its shards."""

import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from mmfusion.embedding.job import (
    EmbeddedBatch,
    EmbeddingJob,
    NewShard,
    distinct,
    embed_batch,
    product_loader,
    shard_batches,
    write_batches,
)
from mmfusion.embedding.layout import laid_out_for_cpu
from mmfusion.embedding.shards import EmbeddedCatalogue
from mmfusion.progress import progress_bar
from mmfusion.retrieval.parts import PartBatch, PartEncoder
from mmfusion.training.checkpoints import STOPPED

logger = logging.getLogger(__name__)


def embed_with_lightning(
    job: EmbeddingJob, trainer: L.Trainer, found: list[NewShard] | None = None
) -> EmbeddedCatalogue | None:
    """Embeds what is missing, drops what is gone, and writes the manifest.

    Args:
        job: What to embed.
        trainer: Trainer without a distributed sampler of its own (`use_distributed_sampler=False`).
        found: What `job.find` has found already; None looks for it, on the first rank.

    Returns:
        The finished folder on the first rank, None on others.

    Raises:
        ValueError: The trainer has another precision than the job.
    """
    if trainer.precision != job.provenance.precision:
        # Lightning takes another one and says so in a warning only.
        raise ValueError(
            f"hardware.precision is {job.provenance.precision}, which {type(trainer.accelerator).__name__} does not "
            f"support; give {trainer.precision}."
        )
    embedder = ProductEmbedder(job, found)
    with embedder.layout:
        trainer.predict(embedder, return_predictions=False)
    # A rank whose shards are done says nothing of the others'.
    trainer.strategy.barrier()
    return job.finish() if trainer.is_global_zero else None


class ProductEmbedder(L.LightningModule):
    """Embeds the shards of a job that are missing; the first rank finds them, and each writes its part of them.

    Attributes:
        layout: What is to be undone in the model after `predict`.
    """

    def __init__(self, job: EmbeddingJob, found: list[NewShard] | None = None) -> None:
        super().__init__()
        # Ranks that looked for themselves would see shards that others have written meanwhile.
        self.prepare_data_per_node = False
        self.model = job.model
        self.job = job
        self.layout = ExitStack()
        self._found = found
        self._done: list[EmbeddedBatch] = []
        self._encoder = PartEncoder(job.model)

    def prepare_data(self) -> None:
        if self._found is None:
            self._found = self.job.find()

    def setup(self, stage: str) -> None:
        job, trainer = self.job, self.trainer
        found: Any = (self._found, job.contents) if trainer.is_global_zero else None
        shards, job.contents = trainer.strategy.broadcast(found)
        self._shards = shards[trainer.global_rank :: trainer.world_size]
        self._batches: deque[tuple[NewShard, PartBatch, bool]] = deque()

    def _planned(self) -> Iterator[PartBatch]:
        """Batches of the shards of this rank, whose products are looked at when it is their turn."""
        job = self.job
        for shard in self._shards:
            rows, contents = job.rows[shard.places], job.contents[shard.places]
            batches = shard_batches(job.table, rows, contents, job.lengths, job.settings.batch_size)
            self._batches += [(shard, batch, batch is batches[-1]) for batch in batches]
            yield from batches

    def predict_dataloader(self) -> DataLoader[Any]:
        return product_loader(self.job.table, _Batches(self._planned), self.job.settings.num_workers)

    def on_predict_start(self) -> None:
        # Here, as Lightning has moved the model to its device.
        self.layout.enter_context(laid_out_for_cpu(self.model))
        ranks = self.trainer.world_size
        self._bar = progress_bar(
            total=sum(len(distinct(self.job.contents[shard.places])[0]) for shard in self._shards),
            desc=f"embedding (first of {ranks} parts)" if ranks > 1 else "embedding",
            unit="product",
            disable=not self.trainer.is_global_zero,
        )
        _stop_on_sigterm(self.trainer)

    def predict_step(self, inputs: dict[str, Any], batch_idx: int) -> int:
        """Embeds a batch, and writes its shard if it is the last one; returns the number of products."""
        job = self.job
        shard, batch, is_last = self._batches.popleft()
        self._done.append(embed_batch(self._encoder, batch, inputs, job.settings.truncate_dim))
        if is_last:
            ids, contents = job.ids(shard.places).to_pylist(), job.contents[shard.places]
            write_batches(job.folder / shard.name, job.provenance, ids, contents, self._done)
            self._done = []
        self._bar.update(len(batch))
        return len(batch)

    def on_predict_end(self) -> None:
        self._bar.close()


class _Batches:
    """What a loader goes through."""

    def __init__(self, planned: Callable[[], Iterator[PartBatch]]) -> None:
        self._planned = planned

    def __iter__(self) -> Iterator[PartBatch]:
        return self._planned()


def _stop_on_sigterm(trainer: L.Trainer) -> None:
    """Ends this process, with the code `STOPPED`, and the ranks that it started, as soon as it gets SIGTERM.

    Lightning's handler, which this one replaces until the end of `predict`, only notes the signal for training loops.
    """

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)
        if trainer.is_global_zero:
            logger.warning("SIGTERM: embedding stops; run the same command to continue")
        # Lightning's launcher takes a rank of its own that ends with another code than 0 for one that failed.
        raise SIGTERMException(STOPPED if trainer.local_rank == 0 else 0)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
