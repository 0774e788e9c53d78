"""The dry run: one real step with the largest batch, and, where it does not fit, a micro-batch that does."""

import time
from pathlib import Path

from lightning.pytorch.utilities.seed import isolate_rng

from mmfusion.data.batch import TrainBatch
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.tables import PairRows
from mmfusion.model.errors import MMFusionError
from mmfusion.stages import Stage
from mmfusion.stages.gradient_cache import check_rows_are_independent
from mmfusion.training.dry_run.forecast import Forecast, StepForecast, foretell, loss_bytes
from mmfusion.training.dry_run.largest import LargestBatch
from mmfusion.training.dry_run.memory import (
    CudaMemory,
    HostMemory,
    Memory,
    free,
    in_words,
    is_out_of_memory,
    nothing_kept,
)
from mmfusion.training.dry_run.plan import Measured, Schedule, describe
from mmfusion.training.dry_run.rehearsal_data import RehearsalData
from mmfusion.training.dry_run.trial import Trials, first_pairs
from mmfusion.training.hardware import Hardware, lightning_strategy
from mmfusion.training.run import Run, is_first_rank

# Of what is there, the rest is for what is not measured: fragmentation, and other processes.
_USABLE = 0.95
# What a suggestion may take more than foretold, as freed blocks of main memory do not fit what comes next: a first
# attempt that fails leaves more such gaps than training would ever make.
_GAPS = 1.5
# Micro-batches that are tried, each half of the one before.
_ATTEMPTS = 4
_FEWER_DATA = (
    "Give a smaller --batch_size or fewer --extra_products, or a base with smaller photos (--image_size of "
    "recipes/base.py) or shorter texts (max_product_length of its processor)"
)


class OutOfMemoryError(MMFusionError, RuntimeError):
    """A training would not fit into memory; the text names what would."""


def preflight(
    run: Run,
    hardware: Hardware,
    stage: Stage,
    data: MMFusionDataModule,
    *,
    steps: int,
    accumulate: int,
    validate_every: int,
) -> None:
    """Takes a step with the largest batch of the first epoch and prints the plan of a training; writes nothing.

    The stage's weights move. With several devices one of them is measured, in this process, and without shards. Smaller
    steps foretell what the step needs, and it is not taken if that is not there, as a kernel kills a process for lack
    of main memory.

    Args:
        run: From [`open_run`] with `dry_run`.
        hardware, stage, data: Of the training.
        steps, accumulate, validate_every: As for [`build_trainer`].

    Raises:
        OutOfMemoryError: The step does not fit. The text says what it needs, what there is, and which micro-batch was
            seen to fit.
    """
    for name, value in (("steps", steps), ("accumulate", accumulate), ("validate_every", validate_every)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give at least 1.")
    # Refuses what training would refuse.
    lightning_strategy(hardware)
    if not is_first_rank():
        return
    with isolate_rng():
        rehearsal = _Rehearsal(run, hardware, stage, data)
        try:
            refusal = rehearsal.run()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            refusal = f"out of memory while data were read: {rehearsal.room()}. {_FEWER_DATA}."
        schedule = Schedule(steps, accumulate, validate_every, hardware, rehearsal.ranks)
        print("\n".join(describe(rehearsal.measured, schedule, stage, run)), flush=True)
    if refusal:
        raise OutOfMemoryError(refusal)


class _Rehearsal:
    """One dry run.

    Attributes:
        measured: What is known so far.
        ranks: Of the training.
    """

    def __init__(self, run: Run, hardware: Hardware, stage: Stage, data: MMFusionDataModule) -> None:
        self.stage, self.hardware, self.micro_batch = stage, hardware, stage.micro_batch
        self.folder = run.folder / "rehearsal"
        self.folder.mkdir()
        local = hardware.local_devices
        self.ranks = local * hardware.num_nodes
        self.host = HostMemory()
        self.memory: Memory = CudaMemory() if hardware.on_cuda else self.host
        self.local = local
        self.host_capacity = self._host_capacity()
        self.capacity = self.host_capacity if self.memory is self.host else self.memory.capacity()
        self.data = RehearsalData(data, self.ranks)
        self.trials = Trials(stage, self.data, hardware, self.memory, self.capacity, self.folder)
        self.measured = Measured(memory=self.memory, capacity=self.capacity, micro_batch=self.micro_batch)
        self.real_caches = _real_caches(data, run)

    def run(self) -> str | None:
        """Measures; returns why training would be out of memory, or None."""
        measured = self.measured
        with self.host.limited(self.host_capacity):
            largest = LargestBatch(self.data, self.ranks)
            rows = largest.largest_first(largest.find())
            measured.batch, measured.epoch = largest.count(rows), largest.epoch()
            measured.caches = self.data.cache_features(rows, self.folder, self.real_caches)
            refusal = self._reading_is_too_much(rows)
            if refusal:
                return refusal
            batch = self._read(rows)
        refusal = self._step(batch)
        if measured.trial is not None:
            self._validate()
        return refusal

    def _host_capacity(self) -> int:
        # The ranks of a machine share its main memory.
        return self.host.used() + (self.host.capacity() - self.host.used()) // self.local

    def room(self) -> str:
        """What main memory there is."""
        return f"this process may use {in_words(self.host_capacity)} of main memory ({self.host.bound_by()})"

    def _reading_is_too_much(self, rows: PairRows) -> str | None:
        pairs = len(rows.queries)

        def read(count: int) -> int:
            self.host.start()
            with nothing_kept():
                part = self.data.read(_first_rows(rows, count))
                peak = self.host.peak()
                del part
            free()
            return peak

        forecast = foretell(read, min(8, pairs), pairs // 4, self.host_capacity)
        needed = 0 if forecast is None else forecast.of(pairs)
        if needed <= _USABLE * self.host_capacity:
            return None
        return (
            f"out of memory: to read a batch of {pairs:,} pairs needs about {in_words(needed)}, and {self.room()}; a "
            f"micro-batch makes no difference to that. {_FEWER_DATA}."
        )

    def _read(self, rows: PairRows) -> TrainBatch:
        measured = self.measured
        self.host.start()
        began = time.perf_counter()
        batch = self.data.read(rows)
        measured.load_seconds, measured.host_peak = time.perf_counter() - began, self.host.peak()
        measured.set_batch(batch)
        # What workers hold ready, two batches each, is main memory; without any, the next batch is read beside this.
        ahead = max(1, 2 * self.hardware.num_workers) * measured.batch_bytes
        measured.host_peak += ahead
        measured.reserve = ahead if self.memory is self.host and self.hardware.num_workers else 0
        if self.ranks > 1:
            measured.reserve += self._gradient_bytes() + self._gathered_bytes()
        return batch

    def _step(self, batch: TrainBatch) -> str | None:
        measured, pairs, products = self.measured, len(batch["query_rows"]), len(batch["product_rows"])
        forecast = self._foretell(batch, pairs, products)
        if self.memory is self.host:
            # A limit counts what the heap has mapped, of which small steps leave some behind.
            self.capacity = measured.capacity = self.trials.capacity = min(self.capacity, self._host_capacity())
        usable = int(_USABLE * self.capacity) - measured.reserve
        if forecast is not None:
            measured.foretold = forecast.of(pairs, products, self.micro_batch)
            if measured.foretold <= usable:
                measured.trial = self.trials.step(batch, self.micro_batch)
                if measured.trial is not None:
                    return None
                measured.foretold = max(measured.foretold, self.capacity)
        asked = f"--micro_batch {self.micro_batch}" if self.micro_batch else f"--batch_size {pairs}"
        needed = "more than there is" if measured.foretold is None else f"about {in_words(measured.foretold)}"
        has = f"{in_words(usable)} of {in_words(self.capacity)} may be used ({self.memory.bound_by()})"
        return f"out of memory: a step with {asked} needs {needed}, and {has}. {self._remedy(batch, forecast, usable)}"

    def _foretell(self, batch: TrainBatch, pairs: int, products: int) -> StepForecast | None:
        """From steps with a few pairs; None if even they do not fit."""
        held = min(self.micro_batch or pairs, pairs)

        def measure(count: int) -> int | None:
            part = first_pairs(batch, count)
            trial = self.trials.probe(part)
            return None if trial is None else trial.peak - loss_bytes(count, len(part["product_rows"]))

        start = max(1, min(8, held // 4))
        found = foretell(measure, start, max(start, held // 2), int(_USABLE * self.capacity))
        if found is None:
            return None
        by_product = Forecast(found.fixed, found.per_row * pairs / products)
        dim = self.stage.model.config.embedding_dim
        # Three views and the vector of a product, in float32, with gradients.
        return StepForecast(by_product, self._gradient_bytes(), 2 * 4 * 4 * dim)

    def _remedy(self, batch: TrainBatch, forecast: StepForecast | None, usable: int) -> str:
        """Which micro-batch fits, as it was seen to."""
        pairs, products = len(batch["query_rows"]), len(batch["product_rows"])
        if self.hardware.strategy == "fsdp":
            return (
                "With fsdp, ranks share parameters, gradients and optimizer states, so that each needs less than was "
                f"measured here; --hardware.activation_checkpointing true saves more. {_FEWER_DATA}."
            )
        try:
            check_rows_are_independent(self.stage.model)
        except ValueError as error:
            return f"{_FEWER_DATA}; --micro_batch would help, but {error}"
        size = _power_below(min(self.micro_batch, products) if self.micro_batch else products)
        while forecast is not None and size > 1 and forecast.with_gaps(_GAPS, pairs, products, size) > usable:
            size //= 2
        for _ in range(_ATTEMPTS):
            if size < 1 or (forecast is not None and forecast.of(pairs, products, size) > self.capacity):
                break
            trial = self.trials.step(batch, size)
            if trial is not None and trial.peak <= usable:
                self.measured.trial, self.measured.micro_batch = trial, size
                return f"--micro_batch {size} fits: a step with it was taken, and its peak was {in_words(trial.peak)}."
            size //= 2
        return f"No micro-batch was found to fit, down to {max(1, size)} row(s) at a time. {_FEWER_DATA}."

    def _validate(self) -> None:
        """Times a batch each of queries and products of validation, which stand for all."""
        with self.host.limited(self.host_capacity):
            self.measured.validation_seconds = self.trials.validation_seconds()

    def _gradient_bytes(self) -> int:
        return sum(value.nbytes for value in self.stage.model.parameters() if value.requires_grad)

    def _gathered_bytes(self) -> int:
        """Queries and products of the other ranks, with gradients, as a loss gathers them."""
        rows = self.measured.batch.pairs + self.measured.batch.products
        return int(2 * 4 * self.stage.model.config.embedding_dim * rows * self.ranks)


def _first_rows(rows: PairRows, count: int) -> PairRows:
    products = len(rows.products) * count // len(rows.queries)
    return PairRows(rows.queries[:count], rows.products[:products], rows.crop)


def _power_below(number: int) -> int:
    """The largest power of two below a number; 0 below 2."""
    return 1 << ((number - 1).bit_length() - 1) if number > 1 else 0


def _real_caches(data: MMFusionDataModule, run: Run) -> Path:
    """Where the training that is rehearsed has its caches."""
    chosen = data._vision_cache or data._text_cache
    folder = run.folder if chosen is None else chosen[1]
    assert run.rehearsal_of is not None, "preflight is for a run that open_run made with dry_run"
    return run.rehearsal_of / folder.relative_to(run.folder) if folder.is_relative_to(run.folder) else folder
