"""The dry run: one step with the largest batch in a separate process, and a micro-batch that fits where it does not.

Each attempt is made in a new child process, so that its peak of memory is that of the step and of nothing before it,
and so that a lack of memory ends the child alone: its allocations are limited, and a kernel that has to
end a process anyway prefers the child.
"""

import logging
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.utils.data import DataLoader

from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.tables import PairRows, PairTable
from mmfusion.model.errors import MMFusionError
from mmfusion.stages import Stage
from mmfusion.stages.gradient_cache import check_rows_are_independent
from mmfusion.training.dry_run_plan import Plan, Step
from mmfusion.training.hardware import Hardware, lightning_strategy
from mmfusion.training.largest_batch import LargestBatch
from mmfusion.training.memory import CudaMemory, HostMemory, Memory, in_words, is_out_of_memory
from mmfusion.training.run import Run, is_first_rank
from mmfusion.training.trainer import PrepareModel, expected_warnings_ignored

# Of the memory that is there; the rest is for what is not measured: fragmentation, and other processes.
_USABLE = 0.95
# Further steps are taken, for a better time, while all of them take fewer seconds than this.
_MOST_STEPS, _SECONDS = 3, 5.0
_CACHES = ("_text_cache", "_vision_cache")
_FEWER_DATA = (
    "Give a smaller --batch_size or fewer --extra_products, or a base with smaller photos (--image_size of "
    "mmfusion base) or shorter texts (max_product_length of its processor)"
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

    The stage cannot be trained afterwards: its weights are left to the child processes. With several devices one of
    them is measured, in one process, and without shards.

    Args:
        run: From [`open_run`] with `dry_run`.
        hardware, stage, data: Of the training.
        steps, accumulate, validate_every: As for [`build_trainer`].

    Raises:
        OutOfMemoryError: The step does not fit. The text says what there is, and which micro-batch was seen to fit.
        ValueError: A number is below 1, the devices do not support the strategy, or the catalogue is streamed.
    """
    for name, value in (("steps", steps), ("accumulate", accumulate), ("validate_every", validate_every)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give at least 1.")
    lightning_strategy(hardware)
    if not is_first_rank():
        return
    ranks = hardware.local_devices * hardware.num_nodes
    largest = LargestBatch(data, ranks)
    rows = largest.find()
    asked = len(np.unique(data.val_qrels.query))
    about = largest.count(rows), largest.epoch(), asked + len(data.val_rows) if asked else 0
    plan = Plan(run, stage, hardware, ranks, steps, accumulate, validate_every, *about)
    smaller, no_remedy = _smaller(stage, hardware, len(rows.products))
    job = run.folder / "dry_run"
    job.mkdir()
    real = _real_caches(data, run)
    torch.save(_Job(stage, data, hardware, rows, ranks, torch.get_num_threads(), real), job / "job")
    # Shapes stay, for the plan; the memory is for the child.
    stage.to_empty(device="meta")
    refusal = None
    try:
        plan.step = _in_child(_take_step, job, stage.micro_batch) or Step()
        plan.caches = plan.step.caches
        if not plan.step.fits:
            too_much = _too_much(stage.micro_batch, len(rows.queries), plan.step)
            refusal = f"{too_much} {_first_that_fits(job, plan, smaller) or no_remedy}"
    except OutOfMemoryError as error:
        refusal = str(error)
    print("\n".join(plan.lines()), flush=True)
    if refusal:
        raise OutOfMemoryError(refusal)


def _smaller(stage: Stage, hardware: Hardware, products: int) -> tuple[list[int], str]:
    """Micro-batches to try if the step that was asked for does not fit, and what to say if none of them does."""
    if hardware.strategy == "fsdp":
        return [], (
            "With fsdp, ranks share parameters, gradients and optimizer states, so that each needs less than was "
            f"measured here; --hardware.activation_checkpointing true saves more. {_FEWER_DATA}."
        )
    try:
        check_rows_are_independent(stage.model)
    except ValueError as error:
        return [], f"{_FEWER_DATA}; --micro_batch would help, but {error}"
    most = min(stage.micro_batch or products, products)
    halves = [2**power for power in reversed(range((most - 1).bit_length()))]
    return halves, f"No micro-batch fits, not even 1 row at a time. {_FEWER_DATA}."


def _first_that_fits(job: Path, plan: Plan, micro_batches: list[int]) -> str:
    for size in micro_batches:
        step = _in_child(_take_step, job, size) or Step()
        if step.fits:
            plan.step, plan.micro_batch = step, size
            return f"--micro_batch {size} fits: a step with it was taken, and its peak was {in_words(step.peak)}."
    return ""


def _too_much(micro_batch: int, pairs: int, step: Step) -> str:
    asked = f"--micro_batch {micro_batch}" if micro_batch else f"--batch_size {pairs}"
    if not step.capacity:
        return f"out of memory: a step with {asked} needs so much that the system ended the process that ran it."
    return (
        f"out of memory: a step with {asked} needs more than {in_words(step.usable)} of the {in_words(step.capacity)} "
        f"that this process may use ({step.bound_by})."
    )


def _real_caches(data: MMFusionDataModule, run: Run) -> Path:
    """Where the training itself would have its caches."""
    assert run.planned_for is not None, "preflight is for a run that open_run made with dry_run"
    chosen = data._vision_cache or data._text_cache
    folder = run.folder if chosen is None else chosen[1]
    return run.planned_for / folder.relative_to(run.folder) if folder.is_relative_to(run.folder) else folder


# In a child process


@dataclass
class _Job:
    """What a child works with: the training's own parts, and where the training has its caches of features."""

    stage: Stage
    data: MMFusionDataModule
    hardware: Hardware
    rows: PairRows
    ranks: int
    threads: int
    caches: Path


def _in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a new process; None if the system ended that, as a kernel without memory does."""
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if has_server else "spawn")
    if has_server:
        # The process that children are forked from: it imports once, and has no threads and no GPU.
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            return None


def _begin(folder: Path) -> _Job:
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Written by the process that started this one.
    job: _Job = torch.load(folder / "job", weights_only=False)
    torch.set_num_threads(job.threads)
    return job


def _take_step(folder: Path, micro_batch: int) -> Step:
    """Reads the batch and takes a step with it, and further ones while they are quick, as training takes them."""
    job, host = _begin(folder), HostMemory()
    stage, hardware = job.stage, job.hardware
    memory: Memory = CudaMemory() if hardware.on_cuda else host
    # The ranks of a machine share its main memory.
    host_left, host_bound_by = host.left()
    host_capacity = host.used() + host_left // hardware.local_devices
    left, bound_by = memory.left()
    step = Step(host_capacity if memory is host else left, bound_by)
    try:
        with host.limited(host_capacity):
            data = _read(job, folder, step)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory: a batch of {len(job.rows.queries):,} pairs cannot be read, as this process may use "
            f"{in_words(host_capacity)} of main memory ({host_bound_by}); a micro-batch makes no difference to that. "
            f"{_FEWER_DATA}."
        ) from error
    # What workers hold ready, two batches each; without any, the next batch is read when this one is done.
    ahead = max(1, 2 * hardware.num_workers) * step.batch_bytes
    step.host_peak = host.peak() + ahead
    step.reserve = (ahead if memory is host and hardware.num_workers else 0) + _other_ranks(job)
    step.usable = int(_USABLE * step.capacity) - step.reserve
    stage.micro_batch, watch = micro_batch, _Watch()
    trainer = _trainer(hardware, folder, watch)
    try:
        with memory.limited(step.usable), expected_warnings_ignored():
            trainer.fit(stage, datamodule=data)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return step
    step.fits, step.peak, step.seconds = True, memory.peak(), min(watch.seconds)
    states = (state.values() for optimizer in trainer.optimizers for state in optimizer.state.values())
    step.optimizer_bytes = sum(value.nbytes for state in states for value in state if isinstance(value, Tensor))
    return step


class _OneBatch(MMFusionDataModule):
    """Hands out one batch of a data module, as often as training asks for it, and nothing to validate on."""

    def __init__(self, data: MMFusionDataModule, batch: Any) -> None:
        self.__dict__.update(data.__dict__)
        self.batch = batch

    def prepare_data(self) -> None:
        pass

    def setup(self, stage: str) -> None:
        pass

    def train_dataloader(self) -> Any:
        return DataLoader([self.batch] * _MOST_STEPS, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return []


class _Watch(L.Callback):
    """Seconds of steps; ends training when it has taken long enough."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._began = _now()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seconds.append(_now() - self._began)
        trainer.should_stop = sum(self.seconds) > _SECONDS


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _trainer(hardware: Hardware, folder: Path, watch: _Watch) -> L.Trainer:
    return L.Trainer(
        default_root_dir=folder,
        accelerator=hardware.accelerator,
        devices=1,
        precision=hardware.precision,
        max_steps=_MOST_STEPS,
        max_epochs=-1,
        gradient_clip_val=1.0,
        val_check_interval=10**9,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=[PrepareModel(hardware), watch],
        # One process, whatever launched it.
        plugins=[LightningEnvironment()],
    )


def _read(job: _Job, folder: Path, step: Step) -> _OneBatch:
    """Reads the batch, with features of frozen encoders that are computed for its rows alone."""
    data, none = job.data, job.rows.products[:0]
    whole = {name: getattr(data, name) for name in ("train_rows", "val_rows", "train_qrels", "val_qrels")}
    chosen = {name: getattr(data, name) for name in _CACHES if getattr(data, name) is not None}
    data._text_cache = data._vision_cache = None
    data.train_rows, data.val_rows = np.unique(job.rows.products), none
    data.train_qrels = data.train_qrels.restrict(query_rows=job.rows.queries)
    data.val_qrels = data.val_qrels.restrict(query_rows=none)
    few, every = len(data.train_rows), len(np.union1d(whole["train_rows"], whole["val_rows"]))
    for name, (model, _) in chosen.items():
        setattr(data, name, (model, folder / name))
        began = time.perf_counter()
        data._open_caches()
        seconds = time.perf_counter() - began
        # Those that are there cost nothing more.
        share = 0.0 if any(job.caches.glob("*/feature_cache.json")) else every / few
        step.caches.seconds += seconds * share
        step.caches.bytes += sum(path.stat().st_size for path in (folder / name).glob("*/*")) * share
        if name == "_vision_cache":
            step.caches.products_per_second = few / seconds
    for name, value in whole.items():
        setattr(data, name, value)
    began = time.perf_counter()
    batch = PairTable(data._queries, data._train_products)[job.rows]
    step.load_seconds = time.perf_counter() - began
    step.batch_bytes = sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))
    return _OneBatch(data, batch)


def _other_ranks(job: _Job) -> int:
    """Bytes of gradients that ranks exchange, and of their queries and products, as a loss gathers them."""
    if job.ranks == 1:
        return 0
    model, rows = job.stage.model, len(job.rows.queries) + len(job.rows.products)
    gradients = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    return int(gradients + 2 * 4 * model.config.embedding_dim * rows * job.ranks)
