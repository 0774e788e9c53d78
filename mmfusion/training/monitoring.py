"""What training says about itself: progress, speed, gradient norm and in-batch accuracy, and curves of its logs."""

import csv
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mmfusion.distributed.shards import gradient_norm
from mmfusion.progress import progress_bar
from mmfusion.stages import Stage

logger = logging.getLogger(__name__)

# Batches that figures are means of, and that a warning looks back on.
WINDOW = 50
# Share of the time from which waiting for data is worth a warning.
LONG_WAIT = 0.1
# Scores that are computed at once for the in-batch accuracy.
_MAX_PAIRS = 2**21
# Parts of the names of what training logs other than losses: shares, and the logit scale.
_NO_LOSSES = ("logit_scale", "weight", "expert_load", "accuracy")


class StepProgress(L.Callback):
    """A progress bar over optimizer steps, which budgets are given in, with the loss, on the first rank."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar = progress_bar(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc=type(pl_module).__name__,
            unit="step",
            disable=not trainer.is_global_zero,
            mininterval=1.0,
        )

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.bar.update(trainer.global_step - self.bar.n)
        shown = {
            name.removeprefix("train/").removeprefix("val/"): f"{float(value):.3f}"
            for name, value in trainer.progress_bar_metrics.items()
        }
        self.bar.set_postfix(shown, refresh=False)

    def on_train_end(self, *_: Any) -> None:
        self.bar.close()

    def on_exception(self, *_: Any) -> None:
        # The next message begins on a new line.
        if hasattr(self, "bar"):
            self.bar.close()


class StepStatistics(L.Callback):
    """Logs speed and gradient norm, and warns once when more than 10 % of the time goes into waiting for data.

    `speed/samples_per_second`: pairs of query and product of all ranks, as the first one sees it. `speed/data_wait`:
    share of the time from 0 to 1 in which a rank waits for its batch; on a GPU, which may still be busy with the batch
    before, this is an upper bound of what it idles. Both are means over the last 50 batches, without validations and
    checkpoints, and need a loader that has a `last_fetch`, as [`ResumableLoader`] does. `optimization/gradient_norm`:
    L2 norm over all parameters, before clipping.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Args: clock: Gives seconds; the one of the loader."""
        self.clock = clock
        # Samples, seconds of waiting and seconds in all, of each batch.
        self._batches: deque[tuple[int, float, float]] = deque(maxlen=WINDOW)
        self._warmed_up = self._warned = False

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        pl_module.log("optimization/gradient_norm", gradient_norm(pl_module.parameters()))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Mapping[str, Tensor], *_: Any
    ) -> None:
        if not self._warmed_up:
            # Workers start, and much is allocated: that is not a measure of what follows.
            self._warmed_up = True
            return
        began, waited = trainer.train_dataloader.last_fetch  # type: ignore[union-attr]
        samples = len(batch["query_rows"]) * trainer.world_size
        self._batches.append((samples, waited, self.clock() - began))
        samples, waited, seconds = (sum(values) for values in zip(*self._batches, strict=True))
        speed = {"speed/samples_per_second": samples / seconds, "speed/data_wait": waited / seconds}
        pl_module.log_dict(speed, rank_zero_only=True)
        full = len(self._batches) == WINDOW and not self._warned
        if trainer.is_global_zero and full and waited > LONG_WAIT * seconds:
            self._warned = True
            logger.warning(
                "training waits for data %.0f %% of the time (over %d batches); give more --hardware.num_workers, or "
                "have features cached that do not change: an encoder whose learning rate is 0, or "
                "--freeze_vision_blocks",
                *(100 * waited / seconds, WINDOW),
            )


class InBatchAccuracy(L.Callback):
    """Logs `train/in_batch_accuracy`, from 0 to 1, in the steps that are logged.

    It is the share of queries of this rank's batch whose best product in it has a positive grade, for what the first
    graded term of the loss compares: the text view in stage 1, the fused vector in stage 2. The stage hands over the
    vectors that its loss was given, so that nothing is embedded again.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Mapping[str, Any], *_: Any
    ) -> None:
        assert isinstance(pl_module, Stage)
        if pl_module.compared is None or trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        best = batch["product_rows"][best_products(*pl_module.compared)]
        qrels = batch["judgements"].qrels
        grades = qrels.grades_of(batch["query_rows"].cpu().numpy(), best[:, None].cpu().numpy())
        pl_module.log("train/in_batch_accuracy", float((grades > 0).mean()), batch_size=len(grades))


@torch.no_grad()
def best_products(queries: Tensor, products: Tensor, present: Tensor | None = None) -> Tensor:
    """Position of the product with the highest inner product for each query, computed a chunk at a time.

    Args:
        queries: (Q, D).
        products: (P, D).
        present: (P,) bool; products with False are never the best. None means all True.

    Returns:
        (Q,) int64.
    """
    # Products of half precision are equal too often.
    candidates = products.float()
    best = []
    for part in queries.float().split(max(1, _MAX_PAIRS // len(products))):
        scores = part @ candidates.T
        best.append((scores if present is None else scores.masked_fill(~present, float("-inf"))).argmax(1))
    return torch.cat(best)


def read_metrics(logs: Path) -> dict[str, dict[int, float]]:
    """Values by metric and step. A resumed run has several files; where they overlap, the later one counts."""
    values: dict[str, dict[int, float]] = {}
    for path in sorted(logs.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])):
        # What follows the last line break was cut off by a kill.
        for row in csv.DictReader(path.read_text("utf-8").rpartition("\n")[0].splitlines()):
            for name, value in row.items():
                if value and name not in ("epoch", "step"):
                    values.setdefault(name, {})[int(row["step"])] = float(value)
    return values


def draw_curves(logs: Path, picture: Path) -> None:
    """Draws losses (left) and validation metrics in percent (right) over optimizer steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    values = read_metrics(logs)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.set(title="training loss", xlabel="optimizer step", ylabel="loss (nats)")
    right.set(title="validation", xlabel="optimizer step", ylabel="percent")
    for axes, prefix, factor, marker in ((left, "train/", 1, None), (right, "val/", 100, "o")):
        for name, points in values.items():
            if name.startswith(prefix) and not any(part in name for part in _NO_LOSSES):
                shown = [factor * value for value in points.values()]
                axes.plot(list(points), shown, marker=marker, label=name.removeprefix(prefix))
        if axes.lines:
            axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
    plt.close(figure)
