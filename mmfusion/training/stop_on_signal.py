"""SIGTERM and SLURM's warning: training stops after the step, with a checkpoint."""

import logging
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmfusion.training.checkpoints import ResumeCheckpoint

log = logging.getLogger("mmfusion")

# EX_TEMPFAIL of sysexits.h: not done yet, try again.
STOPPED = 75


# A Checkpoint, as Lightning calls these after all other callbacks: the state is then that of a finished step.
class StopOnSignal(Checkpoint):
    """Stops training after the optimizer step, or the validation, in which a signal arrived at one of the ranks.

    A checkpoint is written, and the process ends with code `STOPPED`; the same command resumes exactly. A signal after
    the last step changes nothing, as training is about to end.

    The signals are SIGTERM and, in a SLURM job, SIGUSR1, which `sbatch --signal=SIGUSR1@120` sends ahead of the time
    limit, and upon which the job is queued again, as Lightning has it. Lightning's own handlers are replaced: they
    write from within a step, talk to other ranks from within a signal, and end with code 0.
    """

    def __init__(self, checkpoints: ResumeCheckpoint) -> None:
        """Args: checkpoints: Writes the checkpoint; comes before this one among the callbacks of the trainer."""
        self.checkpoints = checkpoints
        self._received: signal.Signals | None = None
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
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
        if stop and trainer.global_step < trainer.max_steps:
            written = self.checkpoints.write_now(trainer)
            self._stop(trainer, f"after step {self._step}, which is {'' if written else 'not '}in a checkpoint")

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = signal.Signals(number)

    def _stop(self, trainer: L.Trainer, when: str) -> None:
        name = (self._received or signal.SIGTERM).name
        if trainer.is_global_zero:
            log.warning("%s: training stops %s; run the same command to resume", name, when)
            if name != "SIGTERM":
                _queue_again()
        # Lightning's launcher takes a rank of its own that ends with another code than 0 for one that failed.
        raise SIGTERMException(STOPPED if trainer.local_rank == 0 else 0)


def _queue_again() -> None:
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ["SLURM_JOB_ID"])
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    try:
        subprocess.run(["scontrol", "requeue", f"{job}_{task}" if task else job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("the job is not queued again (%s); submit it once more to resume", error)
