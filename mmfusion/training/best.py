"""The model that did best in validation, and the end of a training that gets no better."""

import math
import re
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L

from mmfusion.files import link_or_copy, sync
from mmfusion.model import MMFusionProcessor
from mmfusion.model.errors import MMFusionError
from mmfusion.stages.sharding import whole_model
from mmfusion.training.checkpoints import save_whole
from mmfusion.training.run import Run

# Of the first view that a stage ranks; photos alone where products train without queries.
_SCORE = re.compile(r"val/.*/(ndcg|recall)@10$")


class NoScoreError(MMFusionError):
    """The best model was asked for, and nothing says which one it is."""


class KeepBest(L.Callback):
    """Keeps the model with the highest validation score, and stops training that no longer improves it.

    Models are kept as whole folders, so that a kill leaves the best one so far; what is known of validations is part of
    each checkpoint, so that a resumed training keeps and stops as one that was never interrupted. Older models stay as
    long as one of the last two checkpoints counts on them.

    Attributes:
        name: The metric that decides.
        best: Its highest value, from 0 to 1; None before the first validation.
        step: Optimizer steps of that model.
        metrics: All metrics of that validation.
    """

    def __init__(self, run: Run, processor: MMFusionProcessor, *, keep: bool, patience: int | None = None) -> None:
        """Takes a run.

        Args:
            run: Run folder; models are kept in its folder `best`. Validations before a run was extended do not stop it.
            processor: Saved with the model.
            keep: Whether models are kept at all, rather than training stopped alone.
            patience: Validations without a better score after which training stops, at least 1; None: never.

        Raises:
            ValueError: `patience` is below 1.
        """
        if patience is not None and patience < 1:
            raise ValueError(f"patience is {patience}; give at least 1 validation, or leave it out.")
        self.run, self.processor, self.keep, self.patience = run, processor, keep, patience
        self.name, self.step = "", 0
        self.best: float | None = None
        self.metrics: dict[str, float] = {}
        self._validated: list[int] = []
        self._in_checkpoints: deque[int] = deque(maxlen=2)

    @property
    def folder(self) -> Path:
        """Where the best model is."""
        return self._place(self.step)

    def state_dict(self) -> dict[str, Any]:
        self._in_checkpoints.append(self.step)
        names = ("name", "best", "step", "metrics")
        return {**{name: getattr(self, name) for name in names}, "validated": list(self._validated)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validated = list(state_dict["validated"])
        for name in ("name", "best", "step", "metrics"):
            setattr(self, name, state_dict[name])
        self._in_checkpoints.append(self.step)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop |= self._is_over()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step, found = trainer.global_step, validation_score(trainer)
        if found is None:
            raise NoScoreError(
                f"The validation of step {step} has no score, so that no model is the best: no query of the validation "
                "split has a relevant product in it. Check the split, give --dev_fraction 0.1, or leave --keep and "
                "--patience out."
            )
        if step not in self._validated:
            self._validated.append(step)
        if self.best is None or found[1] > self.best:
            (self.name, self.best), self.step = found, step
            self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            if self.keep:
                # On all ranks, which gather what they share.
                model = whole_model(pl_module.model)  # type: ignore[arg-type]
                if trainer.is_global_zero:
                    save_whole(self.folder, model, self.processor)
                    self._remove_old()
        trainer.should_stop |= self._is_over()

    def adopt(self) -> None:
        """Makes the best model that of the run folder, its config last."""
        files = sorted(self.folder.iterdir(), key=lambda path: path.name == "config.json")
        for path in files:
            link_or_copy(path, self.run.folder / path.name)
        sync(self.run.folder)
        self._remove_old()

    def _is_over(self) -> bool:
        since = max(self.step, *(at for at, _ in self.run.schedules(0)))
        return self.patience is not None and sum(step > since for step in self._validated) >= self.patience

    def _place(self, step: int) -> Path:
        return self.run.folder / "best" / f"step={step}"

    def _remove_old(self) -> None:
        kept = {self._place(step) for step in (self.step, *self._in_checkpoints)}
        for path in (self.run.folder / "best").iterdir():
            if path not in kept:
                shutil.rmtree(path)


def validation_score(trainer: L.Trainer) -> tuple[str, float] | None:
    """Name and value of the metric that says which model is best; None without a validation, or where it is undefined.

    It is nDCG@10 of the first view that the stage ranks, or Recall@10 from titles to photos where products train alone.
    """
    scores = ((name, float(value)) for name, value in trainer.callback_metrics.items() if _SCORE.match(name))
    name, value = next(scores, ("", math.nan))
    return None if math.isnan(value) else (name, value)
