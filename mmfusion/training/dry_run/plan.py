"""The plan of a training, in words with units."""

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mmfusion.data.batch import TrainBatch
from mmfusion.stages import Stage
from mmfusion.stages.optimization import part_of
from mmfusion.training.checkpoints import step_of
from mmfusion.training.dry_run.largest import Contents, Epoch
from mmfusion.training.dry_run.memory import Memory, in_words
from mmfusion.training.dry_run.rehearsal_data import CacheCost
from mmfusion.training.dry_run.trial import Trial
from mmfusion.training.hardware import Hardware
from mmfusion.training.run import Run

# Checkpoints that are kept, and the one that is being written.
_CHECKPOINTS = 3


@dataclass
class Measured:
    """What a dry run found out.

    Attributes:
        memory: Of the device.
        capacity: Bytes of it that the process could use.
        micro_batch: With which the step was taken.
        batch: The largest one, of a rank.
        epoch: All batches.
        caches: Cost of features of frozen encoders.
        load_seconds, batch_bytes: Of the largest batch.
        host_peak: Bytes of main memory while it was read, and for those read ahead.
        reserve: Bytes of the device's memory that training needs beside the step.
        foretold: Peak bytes of the step that was asked for.
        trial: The step, None if none fitted.
        validation_seconds: Of one validation; None if there is none.
    """

    memory: Memory
    capacity: int
    micro_batch: int
    batch: Contents = field(default_factory=lambda: Contents(0, 0, 0, 0, 0))
    epoch: Epoch | None = None
    caches: CacheCost = field(default_factory=CacheCost)
    load_seconds: float = 0.0
    batch_bytes: int = 0
    host_peak: int = 0
    reserve: int = 0
    foretold: int | None = None
    trial: Trial | None = None
    validation_seconds: float | None = None

    def set_batch(self, batch: TrainBatch) -> None:
        """Counts a batch that was read: photos that can be decoded, and bytes."""
        mask = batch.get("photo_mask")
        photos = 0 if mask is None else int(mask.sum())
        self.batch = Contents(**{**vars(self.batch), "photos": photos})
        self.batch_bytes = sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))


@dataclass(frozen=True)
class Schedule:
    """How long a training is; names are those of the recipes' arguments."""

    steps: int
    accumulate: int
    validate_every: int
    hardware: Hardware
    ranks: int


def describe(measured: Measured, schedule: Schedule, stage: Stage, run: Run) -> Iterator[str]:
    """Lines of the plan."""
    done = _steps_done(run)
    yield f"dry run of {run.record['recipe']}: this is the plan; nothing was written to {run.rehearsal_of}"
    yield ""
    yield from _parameters(stage, measured)
    yield from _batches(measured, schedule)
    yield from _training(measured, schedule, done)
    yield from _memory(measured, schedule)
    yield from _disk(measured, stage, run)


def _line(name: str, text: str) -> str:
    return f"{name:<20}{text}"


def _parameters(stage: Stage, measured: Measured) -> Iterator[str]:
    counts = dict.fromkeys(("text", "vision", "head"), (0, 0))
    for name, parameter in stage.named_parameters():
        part = part_of(name.removeprefix("model.")) if name.startswith("model.") else "loss"
        trained, frozen = counts.get(part, (0, 0))
        own = parameter.numel()
        counts[part] = (trained + own, frozen) if parameter.requires_grad else (trained, frozen + own)
    for part, (trained, frozen) in counts.items():
        yield _line(f"parameters, {part}", f"{trained:,} trained, {frozen:,} frozen")
    trained, frozen = (sum(values) for values in zip(*counts.values(), strict=True))
    yield _line("parameters, all", f"{trained:,} trained, {frozen:,} frozen")
    if measured.trial is not None:
        gradients = in_words(_trained_bytes(stage))
        state = in_words(measured.trial.optimizer_bytes)
        yield _line(
            "optimizer", f"AdamW, {state} of state ({measured.trial.optimizer_bytes:,} bytes); gradients {gradients}"
        )


def _batches(measured: Measured, schedule: Schedule) -> Iterator[str]:
    hardware, batch = schedule.hardware, measured.batch
    where = f"{schedule.ranks} x {measured.memory.device}, {hardware.num_nodes} node(s), {hardware.precision}"
    yield _line("devices", f"{where}; measured on one, without communication" if schedule.ranks > 1 else where)
    sizes = f"{batch.pairs:,.0f} pairs, {batch.products:,.0f} products"
    whole = f"{batch.pairs * schedule.ranks:,.0f} pairs, {batch.products * schedule.ranks:,.0f} products"
    yield _line("batch", f"{sizes} per device; {whole} on all; {schedule.accumulate} batch(es) per step")
    if measured.micro_batch:
        yield _line("micro-batch", f"{measured.micro_batch:,} rows")
    yield _line("largest batch", f"{_texts_and_photos(batch)} per device; {in_words(measured.batch_bytes)} of tensors")
    if measured.epoch is None:
        return
    factor = schedule.ranks * schedule.accumulate
    yield _line("step, at most", _contents(batch.times(factor)))
    how = "" if measured.epoch.counted == measured.epoch.batches else f" (estimated from {measured.epoch.counted})"
    steps = math.ceil(measured.epoch.batches / schedule.accumulate)
    yield _line(
        "epoch", f"{steps:,} steps of {measured.epoch.batches:,} batches{how}; {_contents(measured.epoch.contents)}"
    )


def _contents(of: Contents) -> str:
    return f"{of.pairs:,.0f} pairs, {of.products:,.0f} products, {_texts_and_photos(of)}"


def _texts_and_photos(of: Contents) -> str:
    return f"{of.tokens:,.0f} text tokens ({of.padded:,.0f} with padding), {of.photos:,.0f} photos"


def _training(measured: Measured, schedule: Schedule, done: int) -> Iterator[str]:
    left = max(0, schedule.steps - done)
    so_far = f", of which {done:,} are done" if done else ""
    if measured.epoch is not None:
        epochs = schedule.steps * schedule.accumulate / measured.epoch.batches
        yield _line("training", f"{schedule.steps:,} steps{so_far}, {epochs:,.1f} epochs")
    if measured.trial is None:
        return
    own, workers = measured.trial.seconds, schedule.hardware.num_workers
    batch = max(own, measured.load_seconds / workers) if workers else own + measured.load_seconds
    step = schedule.accumulate * batch
    reading = f"{_duration(measured.load_seconds)} to read it" + (f" in {workers} worker(s)" if workers else "")
    yield _line("time of a step", f"{_duration(step)}: largest batch {_duration(own)}, {reading}")
    validations = schedule.steps // schedule.validate_every - done // schedule.validate_every
    validating = validations * (measured.validation_seconds or 0.0)
    parts = [f"{left:,} steps {_duration(step * left)}"]
    if measured.validation_seconds is not None:
        each = _duration(measured.validation_seconds)
        parts.append(f"{validations:,} validations {_duration(validating)} ({each} each, without ranking)")
    if measured.caches.seconds:
        speed = measured.caches.products_per_second
        how = f" ({speed:,.1f} photo products per second)" if speed else ""
        parts.append(f"caches of frozen features {_duration(measured.caches.seconds)}{how}")
    total = step * left + validating + measured.caches.seconds
    yield _line("ETA", f"{_duration(total)}: {', '.join(parts)}; without checkpoints and start")


def _memory(measured: Measured, schedule: Schedule) -> Iterator[str]:
    what = f"{in_words(measured.capacity)} that this process may use ({measured.memory.bound_by()})"
    if measured.trial is not None:
        how = f", with --micro_batch {measured.micro_batch}" if measured.micro_batch else ""
        yield _line("memory, measured", f"{in_words(measured.trial.peak)} of {what}{how}; {measured.memory.source}")
    if measured.foretold is not None:
        yield _line("memory, foretold", f"{in_words(measured.foretold)} of {what}, from smaller steps")
    if measured.reserve:
        yield _line("memory, besides", f"{in_words(measured.reserve)} for batches read ahead and other ranks, computed")
    if measured.memory.device != "cpu":
        yield _line("main memory", f"{in_words(measured.host_peak)} per device to read batches")


def _disk(measured: Measured, stage: Stage, run: Run) -> Iterator[str]:
    output = run.rehearsal_of
    assert output is not None
    weights = sum(value.nbytes for value in stage.state_dict().values())
    state = 0 if measured.trial is None else measured.trial.optimizer_bytes
    catalogue = _size(run.folder) - _size(run.folder / "rehearsal")
    parts = {
        f"{_CHECKPOINTS} checkpoints": _CHECKPOINTS * (weights + state),
        "model": weights,
        "catalogue and tiny encoders" if (run.folder / "toy_base").exists() else "catalogue": catalogue,
        "caches": int(measured.caches.bytes),
    }
    needed, free = sum(parts.values()), shutil.disk_usage(_existing(output)).free
    named = ", ".join(f"{name} {in_words(size)}" for name, size in parts.items() if size)
    yield _line("disk", f"{in_words(needed)} of {in_words(free)} free in {_existing(output)}: {named}")
    if needed > free:
        yield _line("WARNING", "the disk has too little room; give another --output or --feature_cache, or make room")


def _trained_bytes(stage: Stage) -> int:
    return sum(value.nbytes for value in stage.parameters() if value.requires_grad)


def _steps_done(run: Run) -> int:
    assert run.rehearsal_of is not None
    latest = Run(run.rehearsal_of, run.record).latest_checkpoint()
    return 0 if latest is None else step_of(latest)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if os.path.isdir(path))


def _duration(seconds: float) -> str:
    """With a unit that fits."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
