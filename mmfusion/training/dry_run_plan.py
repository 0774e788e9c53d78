"""The plan of a training, in words with units."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmfusion.stages import Stage
from mmfusion.stages.optimization import part_of
from mmfusion.training.hardware import Hardware
from mmfusion.training.largest_batch import Contents, Epoch
from mmfusion.training.memory import in_words
from mmfusion.training.run import Run, step_of

# Checkpoints that are kept, and the one that is being written.
_CHECKPOINTS = 3


@dataclass
class CacheCost:
    """What the caches of features will cost that are not there yet.

    Attributes:
        seconds: Time, from the rows that were computed.
        bytes: Size.
        products_per_second: Speed of the vision encoder, photos decoded; 0 where its features are not cached.
    """

    seconds: float = 0.0
    bytes: float = 0.0
    products_per_second: float = 0.0


@dataclass
class Step:
    """What a step with the largest batch needs, on one device; as it is here, if the system ended the process.

    Attributes:
        capacity: Bytes that the process may use in all.
        bound_by: What limits them.
        fits: Whether the step was taken within `usable` bytes; peak, seconds and optimizer are known only then.
        usable: Bytes for the step.
        reserve: Bytes that training needs in addition to the step.
        load_seconds, batch_bytes: Time to read the batch, and its tensors.
        host_peak: Bytes of main memory while it was read, and for those read ahead.
        peak: Bytes.
        seconds: Of the fastest of at most three steps, without reading.
        optimizer_bytes: State of the optimizer.
        caches: Cost of features of frozen encoders, where this step was the first to compute some.
    """

    capacity: int = 0
    bound_by: str = ""
    fits: bool = False
    usable: int = 0
    reserve: int = 0
    load_seconds: float = 0.0
    batch_bytes: int = 0
    host_peak: int = 0
    peak: int = 0
    seconds: float = 0.0
    optimizer_bytes: int = 0
    caches: CacheCost = field(default_factory=CacheCost)


@dataclass
class Plan:
    """A training and what is known of it.

    Attributes:
        run, stage, hardware: Of the training.
        ranks: How many train.
        steps, accumulate, validate_every: As for [`build_trainer`].
        batch: The largest one, of a rank.
        epoch: All batches.
        validated: Queries and products that a validation embeds.
        micro_batch: With which the step was taken.
        caches: Cost of features of frozen encoders.
        step: The step.
    """

    run: Run
    stage: Stage
    hardware: Hardware
    ranks: int
    steps: int
    accumulate: int
    validate_every: int
    batch: Contents
    epoch: Epoch
    validated: int
    caches: CacheCost = field(default_factory=CacheCost)
    step: Step = field(default_factory=Step)

    def __post_init__(self) -> None:
        self.micro_batch = self.stage.micro_batch
        latest = Run(self.run.planned_for or self.run.folder, {}).latest_checkpoint()
        self.done = 0 if latest is None else step_of(latest)

    def lines(self) -> Iterator[str]:
        """Lines of the plan."""
        yield (
            f"dry run of {self.run.record['recipe']}: this is the plan; nothing was written to {self.run.planned_for}"
        )
        yield ""
        for part in (self._parameters, self._batches, self._training, self._memory, self._disk):
            for name, text in part():
                yield f"{name:<20}{text}"

    def _parameters(self) -> Iterator[tuple[str, str]]:
        counts = {part: [0, 0] for part in ("text", "vision", "head", "loss", "all")}
        for name, parameter in self.stage.named_parameters():
            part = part_of(name.removeprefix("model.")) if name.startswith("model.") else "loss"
            for counted in (part, "all"):
                counts[counted][not parameter.requires_grad] += parameter.numel()
        for part, (trained, frozen) in counts.items():
            if part != "loss" or trained:
                yield f"parameters, {part}", f"{trained:,} trained, {frozen:,} frozen"
        if self.step.fits:
            gradients = sum(value.nbytes for value in self.stage.parameters() if value.requires_grad)
            size = self.step.optimizer_bytes
            yield (
                "optimizer",
                f"AdamW, {in_words(size)} of state ({size:,} bytes); gradients {in_words(gradients)}",
            )

    def _batches(self) -> Iterator[tuple[str, str]]:
        batch, ranks, device = self.batch, self.ranks, "cuda" if self.hardware.on_cuda else "cpu"
        one = "; measured on one, without communication" if ranks > 1 else ""
        yield "devices", f"{ranks} x {device}, {self.hardware.num_nodes} node(s), {self.hardware.precision}{one}"
        sizes = [f"{n * batch.pairs:,.0f} pairs, {n * batch.products:,.0f} products" for n in (1, ranks)]
        yield "batch", f"{sizes[0]} per device; {sizes[1]} on all; {self.accumulate} batch(es) per step"
        if self.micro_batch:
            yield "micro-batch", f"{self.micro_batch:,} rows"
        tensors = in_words(self.step.batch_bytes)
        yield "largest batch", f"{_texts_and_photos(batch)} per device; {tensors} of tensors"
        yield "step, at most", _contents(Contents(*(ranks * self.accumulate * number for number in batch)))
        epoch = self.epoch
        how = "" if epoch.counted == epoch.batches else f" (estimated from {epoch.counted})"
        steps = math.ceil(epoch.batches / self.accumulate)
        yield "epoch", f"{steps:,} steps of {epoch.batches:,} batches{how}; {_contents(epoch.contents)}"

    def _training(self) -> Iterator[tuple[str, str]]:
        so_far = f", of which {self.done:,} are done" if self.done else ""
        epochs = self.steps * self.accumulate / self.epoch.batches
        yield "training", f"{self.steps:,} steps{so_far}, {epochs:,.1f} epochs"
        if not self.step.fits:
            return
        own, reading, workers = self.step.seconds, self.step.load_seconds, self.hardware.num_workers
        each = self.accumulate * (max(own, reading / workers) if workers else own + reading)
        by = f" in {workers} worker(s)" if workers else ""
        yield (
            "time of a step",
            f"{_duration(each)}: largest batch {_duration(own)}, {_duration(reading)} to read it{by}",
        )
        left = max(0, self.steps - self.done)
        count = self.steps // self.validate_every - self.done // self.validate_every
        # Rows are read, and go through the forward pass, which is a third of a step.
        validation = self.validated * (reading + own / 3) / (self.batch.pairs + self.batch.products)
        caches, total = self.caches.seconds, each * left + count * validation + self.caches.seconds
        parts = [f"{left:,} steps {_duration(each * left)}"]
        if validation:
            whole = f"{count:,} validations {_duration(count * validation)}"
            parts.append(f"{whole} ({_duration(validation)} each, estimated from the step, without ranking)")
        if caches:
            speed = self.caches.products_per_second
            how = f" ({speed:,.1f} photo products per second)" if speed else ""
            parts.append(f"caches of frozen features {_duration(caches)}{how}")
        yield "ETA", f"{_duration(total)}: {', '.join(parts)}; without checkpoints and start"

    def _memory(self) -> Iterator[tuple[str, str]]:
        step, on_cuda = self.step, self.hardware.on_cuda
        if step.fits:
            how = f", with --micro_batch {self.micro_batch}" if self.micro_batch else ""
            what = f"{in_words(step.capacity)} that this process may use ({step.bound_by}){how}"
            measured = "peak of torch's allocator" if on_cuda else "peak resident memory of a separate process"
            yield "memory, measured", f"{in_words(step.peak)} of {what}; {measured}"
        if step.reserve:
            yield "other memory", f"{in_words(step.reserve)} for batches read ahead and other ranks, computed"
        if on_cuda:
            yield "main memory", f"{in_words(step.host_peak)} per device to read batches"

    def _disk(self) -> Iterator[tuple[str, str]]:
        weights = sum(value.nbytes for value in self.stage.state_dict().values())
        state, folder = self.step.optimizer_bytes, self.run.folder
        parts = {
            f"{_CHECKPOINTS} checkpoints": _CHECKPOINTS * (weights + state),
            "model": weights,
            "catalogue and tiny encoders": _size(folder) - _size(folder / "dry_run"),
            "caches": int(self.caches.bytes),
        }
        output = self.run.planned_for or folder
        # The folder, or the nearest one above it that is there.
        place = next(path for path in (output, *output.parents) if path.is_dir())
        needed, free = sum(parts.values()), shutil.disk_usage(place).free
        named = ", ".join(f"{name} {in_words(size)}" for name, size in parts.items() if size)
        yield "disk", f"{in_words(needed)} of {in_words(free)} free in {place}: {named}"
        if needed > free:
            yield "WARNING", "the disk has too little room; give another --output or --feature_cache, or make room"


def _contents(of: Contents) -> str:
    return f"{of.pairs:,.0f} pairs, {of.products:,.0f} products, {_texts_and_photos(of)}"


def _texts_and_photos(of: Contents) -> str:
    return f"{of.tokens:,.0f} text tokens ({of.padded:,.0f} with padding), {of.photos:,.0f} photos"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _duration(seconds: float) -> str:
    """With a unit that fits."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
