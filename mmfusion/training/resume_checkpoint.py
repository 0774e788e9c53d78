"""Checkpoints for resuming: when they are written, how many are kept, and what a full disk does."""

import logging
from pathlib import Path
from typing import Any

import lightning as L

from mmfusion.training.checkpoint_files import keep_last, list_checkpoints
from mmfusion.training.checkpoint_io import CheckpointNotWrittenError
from mmfusion.training.full_disk import DiskFullError
from mmfusion.training.movable_checkpoint import MovableCheckpoint

log = logging.getLogger("mmfusion")

_KEPT = 2


class ResumeCheckpoint(MovableCheckpoint):
    """Writes a checkpoint every few optimizer steps, and keeps the last two.

    Needs a trainer with a [`WholeCheckpointIO`]. A checkpoint that cannot be written costs a warning, and training
    goes on: somebody may make room, and a disk that was full for a minute should not end a run of days. If the next
    one cannot be written either, training stops, so that no more than twice the interval of work is ever at stake. The
    older checkpoints stay until a new one is written.
    """

    def __init__(self, folder: Path, *, every: int) -> None:
        """Args: folder: Where to. every: Optimizer steps between checkpoints, at least 1."""
        # Lightning's own choice of what to keep removes an old file for each new one, whether or not it was written.
        super().__init__(
            folder,
            filename="{step}",
            save_top_k=-1,
            every_n_train_steps=every,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.folder = folder
        self.written: Path | None = None
        self._failed = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # The step that training resumes from is in a checkpoint: a second one, written while gradients of the next step
        # are accumulated, would lose these.
        self._last_global_step_saved = trainer.global_step
        self._tidy(trainer)

    def write_now(self, trainer: L.Trainer) -> bool:
        """Writes a checkpoint of this step if there is none, and says whether there is one then."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        return not self._failed

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        reason = None
        try:
            super()._save_checkpoint(trainer, filepath)
        except CheckpointNotWrittenError as error:
            reason = error.strerror
            # Every rank, whether or not it writes, sees the step as done, and meets the others here.
            self._last_global_step_saved = trainer.global_step
            trainer.strategy.barrier("Trainer.save_checkpoint")
        reason = trainer.strategy.broadcast(reason)
        if reason is None:
            self._failed = False
            self._tidy(trainer)
        else:
            self._fail(trainer, reason)

    def _fail(self, trainer: L.Trainer, reason: Any) -> None:
        good = list_checkpoints(self.folder)
        last = good[-1].name if good else "none"
        if self._failed:
            raise DiskFullError(
                f"Two checkpoints in a row cannot be written to {self.folder} ({reason}); training stops at step "
                f"{trainer.global_step}. Make room, and run the same command to resume; the last checkpoint is {last}."
            )
        self._failed = True
        if trainer.is_global_zero:
            log.warning(
                "the checkpoint of step %d cannot be written to %s (%s); the last one is %s. Make room: training goes "
                "on, and stops if the next one cannot be written either",
                *(trainer.global_step, self.folder, reason, last),
            )

    def _tidy(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            keep_last(self.folder, _KEPT)
