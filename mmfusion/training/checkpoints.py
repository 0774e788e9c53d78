"""Checkpoints to resume from: written whole, checked before they are read, and two of them kept."""

import logging
import os
import pickle
import random
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any
from zipfile import BadZipFile, ZipFile

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from mmfusion.distributed import world_size
from mmfusion.files import is_partial, move_files, whole_file
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.model.errors import MMFusionError
from mmfusion.training.full_disk import DiskFullError
from mmfusion.training.output_lock import RunError
from mmfusion.training.run import list_checkpoints

logger = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h: not done yet, try again.
STOPPED = 75
_KEPT = 2


def last_good_checkpoint(folder: Path, *, rename_damaged: bool) -> Path | None:
    """The checkpoint with the most steps that is not damaged, or None; logs a warning for each damaged one.

    Args:
        folder: Folder of the checkpoints.
        rename_damaged: Whether damaged ones are renamed to `*.damaged`, and what a kill left of others is removed. One
            process does this, before training starts.
    """
    if rename_damaged:
        for left in filter(is_partial, folder.glob(".*")):
            left.unlink(missing_ok=True)
    for path in reversed(list_checkpoints(folder)):
        reason = damage(path)
        if reason is None:
            return path
        if rename_damaged:
            logger.warning("%s is damaged (%s): renamed to %s.damaged; trying the one before", path, reason, path.name)
            os.replace(path, path.with_name(f"{path.name}.damaged"))
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint file, or None. Reads all of it, as torch itself compares no checksum."""
    if checkpoint.stat().st_size == 0:
        return "it is empty"
    try:
        with ZipFile(checkpoint) as archive:
            broken = archive.testzip()
    except BadZipFile as error:
        return f"it is cut off, or is not a checkpoint: {error}"
    return f"the checksum of {broken} in it is wrong" if broken else None


def read_weights(checkpoint: Path, **options: Any) -> dict[str, Tensor]:
    """The weights in a checkpoint; what else a pickle could do, it does not get to do here.

    Args:
        checkpoint: File.
        options: For `torch.load`.

    Raises:
        RunError: It holds more than tensors and plain values, or is not a checkpoint.
    """
    try:
        weights: dict[str, Tensor] = torch.load(checkpoint, weights_only=True, **options)["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
        raise RunError(
            f"{checkpoint} holds more than tensors and plain values, which could run code, or is not a checkpoint of a "
            "training; delete it to resume from the one before, or to start again."
        ) from error
    return weights


def check_fits(checkpoint: Path, weights: dict[str, Tensor]) -> None:
    """Checks that a checkpoint holds the weights of the model in training.

    Args:
        checkpoint: File that is not damaged.
        weights: State of the Lightning module.

    Raises:
        RunError: It holds weights of another architecture, or more than tensors and plain values.
    """
    # On the meta device only names and shapes are read.
    saved = read_weights(checkpoint, map_location="meta")
    there, here = ({name: tuple(value.shape) for name, value in state.items()} for state in (saved, weights))
    differing = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
    if differing:
        name = differing[0]
        raise RunError(
            f"{checkpoint} holds weights of another architecture: {name} is {there.get(name, 'missing')} there and "
            f"{here.get(name, 'missing')} in this model, and {len(differing) - 1} more differ. Give --base the model "
            "that this run started with, or another --output to start again."
        )


def save_whole(folder: Path, model: MMFusionModel, processor: MMFusionProcessor) -> None:
    """Saves a model so that a kill leaves no half of it: `config.json`, which makes a folder a model, comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        move_files(partial, folder, last=["config.json"])
    finally:
        # Nobody needs it any more, and on a full disk the room is needed.
        shutil.rmtree(partial, ignore_errors=True)


class CheckpointNotWrittenError(OSError, MMFusionError):
    """A checkpoint could not be written, and nothing has its name."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to its place, syncs it to the disk, and renames it.

    Lightning's own plugin goes through the folder for temporary files, which may be on another disk, so that moving
    the file is a copy that a kill cuts off; and it does not sync.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint to a local path; `storage_options` belong to remote ones and are not used.

        Raises:
            CheckpointNotWrittenError: The disk is full, or cannot be written for another reason.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with whole_file(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # torch raises its own error when the end of its archive cannot be written either.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise CheckpointNotWrittenError(cause.errno, cause.strerror, str(path)) from error


# A Checkpoint, as Lightning calls these after all other callbacks: the state is then that of a finished step.
class ResumeCheckpoint(Checkpoint):
    """Writes a checkpoint every few optimizer steps, keeps the last two, and stops training on a signal.

    Needs a trainer with a [`WholeCheckpointIO`]. When a checkpoint cannot be written, it logs a warning and training
    continues: someone may make room, and a disk that was full for a minute should not end a run of days. If the next
    one cannot be written either, training stops, so that at most twice the interval of work is lost. The older
    checkpoints stay until a new one is written.

    When a signal has arrived at one of the ranks, training stops after the optimizer step, or the validation, with a
    checkpoint, and the process ends with code `STOPPED`; the same command resumes exactly. A signal after the last step
    changes nothing. The signals are SIGTERM and, in a SLURM job, SIGUSR1, which `sbatch --signal=SIGUSR1@120` sends
    ahead of the time limit, after which the job is queued again. Lightning's own handlers are replaced: they write
    from within a step, talk to other ranks from within a signal, and end with code 0.

    Unlike Lightning's `ModelCheckpoint` it has no state, so a checkpoint names no folder of the machine that wrote it
    and can be resumed in another one.
    """

    def __init__(self, folder: Path, *, every: int) -> None:
        """Args: folder: Where to. every: Optimizer steps between checkpoints, at least 1."""
        self.folder, self.every = folder, every
        self._step = 0
        self._failed = False
        self._received: signal.Signals | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self._remove_old(trainer)
        if threading.current_thread() is threading.main_thread():
            # Lightning puts back what was there before it when training ends.
            signal.signal(signal.SIGTERM, self._note)
            if SLURMEnvironment.detect():
                signal.signal(signal.SIGUSR1, self._note)
        # One that Lightning's handlers met while training was about to start.
        if trainer.strategy.reduce_boolean_decision(trainer.received_sigterm, all=False):
            self._stop(trainer, "before its first step")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            # Gradients of a step that is not finished are in no checkpoint.
            return
        self._step = trainer.global_step
        stop = trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)
        stop = stop and self._step < trainer.max_steps
        if stop or self._step % self.every == 0:
            self._write(trainer)
        if stop:
            written = "" if not self._failed else "not "
            self._stop(trainer, f"after step {self._step}, which is {written}in a checkpoint")

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = signal.Signals(number)

    def _stop(self, trainer: L.Trainer, when: str) -> None:
        name = (self._received or signal.SIGTERM).name
        if trainer.is_global_zero:
            logger.warning("%s: training stops %s; run the same command to resume", name, when)
            if name != "SIGTERM":
                _queue_again()
        # Lightning's launcher takes a rank of its own that ends with another code than 0 for one that failed.
        raise SIGTERMException(STOPPED if trainer.local_rank == 0 else 0)

    def _write(self, trainer: L.Trainer) -> None:
        reason = None
        try:
            trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")
        except CheckpointNotWrittenError as error:
            reason = error.strerror
            # Where the other ranks wait for the one that writes.
            trainer.strategy.barrier("Trainer.save_checkpoint")
        reason = trainer.strategy.broadcast(reason)
        if reason is None:
            self._failed = False
            self._remove_old(trainer)
            return
        last = next((path.name for path in reversed(list_checkpoints(self.folder))), "none")
        if self._failed:
            raise DiskFullError(
                f"Two checkpoints in a row cannot be written to {self.folder} ({reason}); training stops at step "
                f"{trainer.global_step}. Make room, and run the same command to resume; the last checkpoint is {last}."
            )
        self._failed = True
        if trainer.is_global_zero:
            logger.warning(
                "the checkpoint of step %d cannot be written to %s (%s); the last one is %s. Make room: training goes "
                "on, and stops if the next one cannot be written either",
                *(trainer.global_step, self.folder, reason, last),
            )

    def _remove_old(self, trainer: L.Trainer) -> None:
        for path in list_checkpoints(self.folder)[:-_KEPT] if trainer.is_global_zero else ():
            # Away already where two processes see one folder.
            with suppress(FileNotFoundError):
                path.unlink()


def _queue_again() -> None:
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ["SLURM_JOB_ID"])
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    try:
        subprocess.run(["scontrol", "requeue", f"{job}_{task}" if task else job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        logger.warning("the job is not queued again (%s); submit it once more to resume", error)


class RandomState(L.Callback):
    """Saves and restores the random state of Python, NumPy and torch of every rank.

    Together with the loader's position, which Lightning saves, a run that was killed at any moment and resumed from
    its last checkpoint ends with the weights of the uninterrupted run (on CPU, bit for bit).
    """

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        own = _random_state()
        states = [own] * world_size()
        if world_size() > 1:
            dist.all_gather_object(states, own)
        return {"ranks": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pending = state["ranks"]

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        # As late as possible: building loaders and sanity checks draw numbers that the interrupted run never drew.
        if self._pending is None:
            return
        if len(self._pending) != trainer.world_size:
            raise ValueError(
                f"The checkpoint was written by {len(self._pending)} rank(s), this run has {trainer.world_size}; "
                "resume with the same number of devices, or start again from the weights with --base."
            )
        _set_random_state(self._pending[trainer.global_rank])
        self._pending = None


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])
