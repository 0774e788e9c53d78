"""Steps that are taken to see what they need: forward, backward and optimizer, by Lightning as in training."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor

from mmfusion.data.batch import TrainBatch
from mmfusion.stages import Stage
from mmfusion.training.dry_run.memory import Memory, free, is_out_of_memory, nothing_kept
from mmfusion.training.dry_run.rehearsal_data import RehearsalData
from mmfusion.training.hardware import Hardware, PrepareModel
from mmfusion.training.trainer import expected_warnings_ignored

# Further steps are taken, for a better time, while all of them take less than this.
_SECONDS = 5.0


class Trial(NamedTuple):
    """What a step needs.

    Attributes:
        peak: Bytes.
        seconds: Of the fastest of at most three steps, without loading.
        optimizer_bytes: State of the optimizer.
        loss: Of the first step.
    """

    peak: int
    seconds: float
    optimizer_bytes: int
    loss: float


class Trials:
    """Takes steps of a stage on one device; its weights move, and nothing is written."""

    def __init__(
        self, stage: Stage, data: RehearsalData, hardware: Hardware, memory: Memory, capacity: int, folder: Path
    ) -> None:
        """Args: capacity: Bytes beyond which a step is out of memory. folder: A temporary folder."""
        self.stage, self.data, self.hardware = stage, data, hardware
        self.memory, self.capacity, self.folder = memory, capacity, folder
        # One for all trainers, as the model is prepared once.
        self._prepare = PrepareModel(hardware)

    def probe(self, batch: TrainBatch) -> Trial | None:
        """A step without a micro-batch, with no memory kept from what went before; None if it is out of memory."""
        with nothing_kept():
            return self._take(batch, 0, 1)

    def step(self, batch: TrainBatch, micro_batch: int) -> Trial | None:
        """Up to three steps if they are quick, as training takes them; None if one is out of memory."""
        return self._take(batch, micro_batch, 3)

    def _take(self, batch: TrainBatch, micro_batch: int, times: int) -> Trial | None:
        self.data.batch, self.data.times, self.stage.micro_batch = batch, times, micro_batch
        watch = _Watch()
        self.memory.start()
        try:
            with self.memory.limited(self.capacity), expected_warnings_ignored():
                self._trainer(times, watch).fit(self.stage, datamodule=self.data)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        else:
            failed = False
        peak = self.memory.peak()
        # After the exception, which holds all tensors of the step, has gone.
        self.stage.zero_grad(set_to_none=True)
        self.stage.trainer = None
        self.data.batch = None
        free()
        return None if failed else Trial(peak, min(watch.seconds), watch.optimizer_bytes, watch.loss)

    def validation_seconds(self) -> float | None:
        """Of one validation: a batch each of queries and products is read and embedded, and stands for all."""
        queries, products = self.data.rows_of_validation()
        if not len(products):
            return None
        every = len(np.unique(self.data.val_qrels.query)), len(self.data.val_rows)
        began = time.perf_counter()
        query_batch = self.data._queries[queries]
        between = time.perf_counter()
        self.data.val_batches = [query_batch, self.data._val_products[products]]
        reading = between - began, time.perf_counter() - between
        watch = _Watch()
        with expected_warnings_ignored():
            self._trainer(1, watch).validate(self.stage, datamodule=self.data, verbose=False)
        embedding = watch.validation
        return sum(
            (read + embed) * all_rows / len(rows)
            for read, embed, all_rows, rows in zip(reading, embedding, every, (queries, products), strict=True)
        )

    def _trainer(self, steps: int, watch: "_Watch") -> L.Trainer:
        return L.Trainer(
            default_root_dir=self.folder,
            accelerator=self.hardware.accelerator,
            devices=1,
            precision=self.hardware.precision,
            max_steps=steps,
            max_epochs=-1,
            gradient_clip_val=1.0,
            limit_val_batches=1.0 if self.data.val_batches else 0,
            val_check_interval=10**9,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            callbacks=[self._prepare, watch],
            # One process, whatever launched it.
            plugins=[LightningEnvironment()],
        )


class _Watch(L.Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.validation: list[float] = []
        self.optimizer_bytes, self.loss = 0, float("nan")

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._began = _now()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seconds.append(_now() - self._began)
        if len(self.seconds) == 1:
            self.loss = float(trainer.callback_metrics["train/loss"])
        trainer.should_stop = sum(self.seconds) > _SECONDS

    def on_validation_batch_start(self, *_: Any) -> None:
        self._began = _now()

    def on_validation_batch_end(self, *_: Any) -> None:
        self.validation.append(_now() - self._began)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
        values = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        self.optimizer_bytes = sum(value.nbytes for value in values)


def first_pairs(batch: TrainBatch, pairs: int) -> TrainBatch:
    """The first pairs of a batch, with their share of its further products."""
    every, products = len(batch["query_rows"]), len(batch["product_rows"])
    further = (products - every) * pairs // every
    at = torch.from_numpy(np.r_[:pairs, every : every + further])
    return {  # type: ignore[return-value]
        name: value[:pairs] if name.startswith("query_") else value[at]
        for name, value in batch.items()
        if isinstance(value, Tensor)
    }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
