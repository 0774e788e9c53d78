"""Trains two steps of a stage through Lightning and saves the gradients; run by test_distributed.py as a script.

Usage: two_ranks.py CATALOGUE OUTPUT STAGE DEVICES MICRO_BATCH
"""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.stages import Stage1, Stage2

GLOBAL_BATCH = 12


class Gradients(L.Callback):
    """Saves what the optimizer sees, on the first rank, and counts what ranks synchronise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[dict[str, torch.Tensor]] = []
        self.synchronised = 0

    def on_train_start(self, trainer: L.Trainer, _: object) -> None:
        if trainer.world_size > 1:
            trainer.strategy.model.register_comm_hook(None, self.all_reduce)

    def all_reduce(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """What DDP does with a bucket of gradients, counted."""
        self.synchronised += bucket.buffer().numel()
        mean = bucket.buffer() / dist.get_world_size()
        return dist.all_reduce(mean, async_op=True).get_future().then(lambda done: done.value()[0])

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, _: object) -> None:
        if trainer.world_size > 1:
            wanted = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
            assert self.synchronised == wanted, f"{self.synchronised} gradients were synchronised, not {wanted} once."
            self.synchronised = 0
        self.steps.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
        if trainer.is_global_zero:
            torch.save(self.steps, self.path)


def build_model(folder: Path, **config: Any) -> tuple[MMFusionModel, MMFusionProcessor]:
    """A tiny model in float64 without dropout (ranks draw other masks), with a BatchNorm backbone."""
    backbones = write_toy_encoders(folder)
    processor = MMFusionProcessor.from_backbones(str(backbones.text), str(backbones.vision))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = BertModel(
        BertConfig(
            vocab_size=len(processor.tokenizer), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes
        )
    )
    vision = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    model = MMFusionModel.from_backbones(
        text,
        vision,
        dtype=torch.float64,
        fusion_hidden_size=16,
        fusion_heads=2,
        fusion_layers=1,
        fusion_dropout=0.0,
        projection_dropout=0.0,
        initializer_range=0.2,
        **{"fusion": "cross_attention", **config},
    )
    for parameter in model.fusion.parameters():
        if parameter.ndim >= 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model, processor


def main(catalogue: str, output: str, stage_name: str, devices: int, micro_batch: int, **config: Any) -> None:
    folder = Path(output)
    model, processor = build_model(folder / "backbones", **config)
    table = Catalogue.load(catalogue, cache_dir=folder / "cache")
    data = MMFusionDataModule(table, processor, batch_size=GLOBAL_BATCH // devices, seed=3)
    options = {"micro_batch": micro_batch}
    stage = Stage1(model, **options) if stage_name == "stage1" else Stage2(model, modality_dropout=0.0, **options)
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="64-true",
        max_steps=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Gradients(folder / f"{stage_name}-{devices}-{micro_batch}.pt")],
    )
    trainer.fit(stage, datamodule=data)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
