"""The Lightning trainer of the recipes: steps as the budget, exact resume, CSV logs."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.model import MMFusionProcessor
from mmfusion.stages import Stage
from mmfusion.stages.sharding import whole_model
from mmfusion.training.best import KeepBest
from mmfusion.training.checkpoints import (
    RandomState,
    ResumeCheckpoint,
    WholeCheckpointIO,
    check_fits,
    last_good_checkpoint,
    save_whole,
)
from mmfusion.training.full_disk import full_disk_ends
from mmfusion.training.hardware import Hardware, checkpoint_activations, compile_blocks, lightning_strategy
from mmfusion.training.hub_checkpoints import HubCheckpoints, PushCheckpoints
from mmfusion.training.monitoring import InBatchAccuracy, StepProgress, StepStatistics, draw_curves
from mmfusion.training.run import Run, is_first_rank, step_of

# Lightning and torch warn of what is meant to be so here: frozen parts in evaluation mode, few workers, short epochs,
# checkpoints that are there to be resumed, perhaps without pushing them any more, outputs that nobody changes in place,
# batches that carry their rows themselves, a catalogue of which nothing has to be embedded.
_EXPECTED_WARNINGS = (
    r"Found \d+ module\(s\) in eval mode",
    r".*does not have many workers",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"Couldn't infer the batch indices fetched from your dataloader",
    r"Total length of `(WorkersLoader|list)` across ranks is zero",
    r"FSDP2-wrapped module .* returned a view tensor",
    r"Be aware that when using `ckpt_path`.*\['(PushCheckpoints|ResumeCheckpoint)\b",
)


class PrepareModel(L.Callback):
    """Checkpoints and compiles the encoders, as the settings say, before Lightning wraps the model."""

    def __init__(self, hardware: Hardware) -> None:
        """Args: hardware: Its `activation_checkpointing` and `compile`."""
        self.hardware = hardware

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and self.hardware.activation_checkpointing:
            checkpoint_activations(pl_module.model)  # type: ignore[arg-type]
        if stage == "fit" and self.hardware.compile:
            compile_blocks(pl_module.model)  # type: ignore[arg-type]


def build_trainer(
    run: Run,
    hardware: Hardware,
    *,
    steps: int,
    accumulate: int,
    checkpoint_every: int,
    validate_every: int,
    log_to: Literal["csv", "tensorboard", "wandb"] = "csv",
    hub: HubCheckpoints | None = None,
    best: KeepBest | None = None,
) -> L.Trainer:
    """A trainer that writes below `run.folder` only.

    Args:
        run: Run folder.
        hardware: Devices and precision.
        steps: Optimizer steps, at least 1.
        accumulate: Batches per optimizer step, at least 1. Negatives come from one batch, not from the whole step.
        checkpoint_every: Optimizer steps between checkpoints for resuming; the last two are kept.
        validate_every: Optimizer steps between validations.
        log_to: Where curves go besides the CSV file.
        hub: Where checkpoints are pushed in the background; by default they stay in the run folder.
        best: Keeps the best model and stops early; None: the last model is the result, after all steps.

    Raises:
        ValueError: A number is below 1, or the devices do not support the precision or the strategy.
    """
    for name, value in (("steps", steps), ("accumulate", accumulate), ("checkpoint_every", checkpoint_every)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give at least 1.")
    trainer = L.Trainer(
        default_root_dir=run.folder,
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=lightning_strategy(hardware),
        precision=hardware.precision,
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        val_check_interval=validate_every * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=min(10, steps),
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=_loggers(run, log_to),
        callbacks=[
            PrepareModel(hardware),
            StepProgress(),
            RandomState(),
            LearningRateMonitor("step"),
            StepStatistics(),
            InBatchAccuracy(),
            *([PushCheckpoints(run, hub)] if hub is not None and hub.repo is not None else []),
            *([] if best is None else [best]),
            ResumeCheckpoint(run.checkpoints, every=checkpoint_every),
        ],
        plugins=[WholeCheckpointIO()],
    )
    if trainer.precision != hardware.precision:
        # Lightning takes another one and says so in a warning only.
        raise ValueError(
            f"hardware.precision is {hardware.precision}, which training on {type(trainer.accelerator).__name__} does "
            f"not support; give {trainer.precision}."
        )
    return trainer


@contextmanager
def expected_warnings_ignored() -> Iterator[None]:
    """Keeps quiet what Lightning and torch say of runs that are as they should be."""
    with warnings.catch_warnings():
        for expected in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=expected)
        yield


def fit(
    run: Run, trainer: L.Trainer, stage: Stage, data: MMFusionDataModule, processor: MMFusionProcessor
) -> dict[str, float]:
    """Trains or resumes, saves model, processor and curves into the run folder, and returns the metrics of that model.

    It is the last model, or the best one where the trainer has a [`KeepBest`] that keeps it.
    """
    best = next((one for one in trainer.callbacks if isinstance(one, KeepBest)), None)  # type: ignore[attr-defined]
    stage.schedules = run.schedules(trainer.max_steps)
    checkpoint = last_good_checkpoint(run.checkpoints, rename_damaged=is_first_rank())
    if checkpoint is not None:
        check_fits(checkpoint, stage.state_dict())
        print(f"resuming from {checkpoint.name}", flush=True)
    started = time.time()
    with expected_warnings_ignored(), full_disk_ends(run.folder):
        trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if checkpoint is not None and step_of(checkpoint) == trainer.max_steps:
            # Interrupted just before the last validation, which fit skips then.
            trainer.validate(stage, datamodule=data, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    model, facts = whole_model(stage.model), {}
    if best is not None and best.keep:
        metrics, facts = best.metrics, {"best": {"step": best.step, "metric": best.name, "value": best.best}}
    if trainer.is_global_zero:
        with full_disk_ends(run.folder):
            if best is not None and best.keep:
                best.adopt()
            else:
                save_whole(run.folder, model, processor)
            draw_curves(run.folder / "logs", run.folder / "curves.png")
            seconds = round(time.time() - started, 1)
            run.finish(metrics=metrics, fit_seconds=seconds, steps=trainer.global_step, **facts)
        _print_table(metrics, run.folder)
    return metrics


def _loggers(run: Run, log_to: str) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(run.folder, name="logs")]
    if log_to == "tensorboard":
        loggers.append(TensorBoardLogger(run.folder, name="tensorboard"))
    if log_to == "wandb":
        loggers.append(WandbLogger(save_dir=run.folder, project="mmfusion", name=run.folder.name))
    return loggers


def _print_table(metrics: dict[str, Any], folder: Path) -> None:
    print(f"\n{'metric':<28}{'value':>10}")
    # A learning rate at the end of its schedule is 0 and says nothing; curves.png shows the schedule.
    for name, value in sorted(item for item in metrics.items() if not item[0].startswith("lr-")):
        shown = f"{100 * value:.1f} %" if name.startswith("val/") else f"{value:.4f}"
        print(f"{name:<28}{shown:>10}")
    print(f"model, processor, logs and curves.png: {folder}")
