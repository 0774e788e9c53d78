"""Trains a stage for some steps, and saves the loss of each and the weights; run by test_strategies.py as a script.

Usage: two_ranks_curve.py CATALOGUE OUTPUT STAGE STRATEGY DEVICES
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file
from two_ranks import GLOBAL_BATCH, build_model

from mmfusion.data.batch import TrainBatch
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.stages import Lora, Stage, Stage1, Stage2, add_adapters, whole_model
from mmfusion.training.hardware import Hardware, lightning_strategy
from mmfusion.training.monitoring import StepStatistics

STEPS, MISSING = 10, 3
FURTHER = 8


class Curve(L.Callback):
    """Keeps what is logged in each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        logged = trainer.callback_metrics.items()
        self.steps.append({name: float(value) for name, value in logged if not name.startswith("speed/")})


class PhotosMissing(L.Callback):
    """In one step, no product of the second half of the global batch has a photo: a whole rank, or half of one."""

    def on_train_batch_start(self, trainer: L.Trainer, _: object, batch: TrainBatch, batch_idx: int) -> None:
        if trainer.global_step != MISSING:
            return
        if trainer.world_size == 1:
            pairs, further = batch["photo_mask"].split([GLOBAL_BATCH, FURTHER])
            pairs[GLOBAL_BATCH // 2 :] = False
            further[FURTHER // 2 :] = False
        elif trainer.global_rank == 1:
            del batch["pixel_values"], batch["photo_mask"]


def build_stage(name: str, folder: Path) -> tuple[Stage, Any]:
    if name == "stage1":
        model, processor = build_model(folder)
        return Stage1(model), processor
    if name == "lora":
        model, processor = build_model(folder)
        stage = Stage1(model)
        add_adapters(model, Lora(rank=4, vision_targets=["convolution"]))
        return stage, processor
    # An expert's load is balanced over the batch of a rank, so that it is not part of the comparison.
    model, processor = build_model(folder, query_router=True, role_embedding=True)
    return Stage2(model, modality_dropout=0.0), processor


def main(catalogue: str, output: str, stage_name: str, strategy: str, devices: int) -> None:
    folder = Path(output)
    name = f"{stage_name}-{strategy}-{devices}"
    stage, processor = build_stage(stage_name, folder / name)
    table = Catalogue.load(catalogue, cache_dir=folder / "cache")
    data = MMFusionDataModule(
        table,
        processor,
        batch_size=GLOBAL_BATCH // devices,
        # One batch of queries, and batches of products that ranks have unequal numbers of.
        eval_batch_size=5,
        extra_products=FURTHER // devices,
        seed=3,
    )
    curve = Curve()
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=devices,
        strategy=lightning_strategy(Hardware(strategy=strategy, devices=devices)),
        max_steps=STEPS,
        max_epochs=-1,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PhotosMissing(), StepStatistics(), curve],
    )
    trainer.fit(stage, datamodule=data)
    weights = whole_model(stage.model).state_dict()
    if trainer.is_global_zero:
        (folder / f"{name}.json").write_text(json.dumps(curve.steps))
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / f"{name}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:5], int(sys.argv[5]))
