"""A progress bar over optimizer steps, which is what budgets are given in."""

from typing import Any

import lightning as L
from tqdm.auto import tqdm


class StepProgress(L.Callback):
    """Shows steps, time left and the loss on the first rank."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar = tqdm(
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
        # What is said next begins on a line of its own.
        if hasattr(self, "bar"):
            self.bar.close()
