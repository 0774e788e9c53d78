"""How fast training goes, what it waits for, and how large its gradients are."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler
from torch import Tensor

from mmfusion.distributed.shards import gradient_norm

log = logging.getLogger("mmfusion")

Clock = Callable[[], float]
# Batches that figures are means of, and that a warning looks back on.
WINDOW = 50
# Share of the time from which waiting for data is worth a warning.
LONG_WAIT = 0.1


class FetchTimer(Profiler):
    """Measures, as the trainer's profiler, how long training waits for its next batch."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        """Args: clock: Gives seconds."""
        super().__init__()
        self.clock = clock
        self._begun: float | None = None
        self._started = self._waited = 0.0

    def start(self, action_name: str) -> None:
        if _is_fetch(action_name):
            self._started = self.clock()
            self._begun = self._started if self._begun is None else self._begun

    def stop(self, action_name: str) -> None:
        if _is_fetch(action_name):
            self._waited += self.clock() - self._started

    def take(self) -> tuple[float, float]:
        """When the first fetch since the last call began, and the seconds that it and others took."""
        begun = self.clock() if self._begun is None else self._begun
        waited, self._begun, self._waited = self._waited, None, 0.0
        return begun, waited


class StepStatistics(L.Callback):
    """Logs, and warns once when more than 10 % of the time goes into waiting for data.

    `speed/samples_per_second`: pairs of query and product of all ranks, as the first one sees it. `speed/data_wait`:
    share of the time from 0 to 1 in which a rank waits for its batch; on a GPU, which may still be busy with the batch
    before, this is an upper bound of what it idles. Both are means over the last 50 batches, without validations and
    checkpoints. `optimization/gradient_norm`: L2 norm over all parameters, before clipping.
    """

    def __init__(self, fetches: FetchTimer) -> None:
        """Args: fetches: The profiler of the trainer."""
        self.fetches = fetches
        self._batches: deque[_Batch] = deque(maxlen=WINDOW)
        self._warmed_up = self._warned = False

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        pl_module.log("optimization/gradient_norm", gradient_norm(pl_module.parameters()))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Mapping[str, Tensor], *_: Any
    ) -> None:
        begun, waited = self.fetches.take()
        if not self._warmed_up:
            # Workers start, and much is allocated: that is no measure of what follows.
            self._warmed_up = True
            return
        samples = len(batch["query_rows"]) * trainer.world_size
        self._batches.append(_Batch(samples, waited, self.fetches.clock() - begun))
        samples, waited, seconds = (sum(values) for values in zip(*self._batches, strict=True))
        speed = {"speed/samples_per_second": samples / seconds, "speed/data_wait": waited / seconds}
        pl_module.log_dict(speed, rank_zero_only=True)
        if trainer.is_global_zero and len(self._batches) == WINDOW and waited > LONG_WAIT * seconds:
            self._warn(waited / seconds)

    def _warn(self, share: float) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "training waits for data %.0f %% of the time (over %d batches); give more --hardware.num_workers, or "
                "have features cached that do not change: an encoder whose learning rate is 0, or "
                "--freeze_vision_blocks",
                *(100 * share, WINDOW),
            )


class _Batch(NamedTuple):
    samples: int
    waited: float
    seconds: float


def _is_fetch(action_name: str) -> bool:
    return action_name.endswith("train_dataloader_next")
