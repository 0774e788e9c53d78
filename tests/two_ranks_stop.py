"""Trains stage 1, on two ranks, with a loss that becomes NaN on the second one; run by test_ranks_stop.py as a script.

Usage: two_ranks_stop.py CATALOGUE OUTPUT
"""

import sys
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from two_ranks import build_model

from mmfusion.data.batch import TrainBatch
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.stages import NonFiniteLossError, Stage1


class NaNOnOneRank(Stage1):
    """Its second step fails on rank 1, whose vectors the other rank has gathered by then."""

    def terms(self, batch: TrainBatch) -> dict[str, tuple[float, Tensor]]:
        terms = super().terms(batch)
        if self.global_step == 1 and self.global_rank == 1:
            weight, value = terms["query_text"]
            terms["query_text"] = weight, value * float("nan")
        return terms


def main(catalogue: str, output: str) -> None:
    folder = Path(output)
    model, processor = build_model(folder / "backbones")
    data = MMFusionDataModule(Catalogue.load(catalogue, cache_dir=folder / "cache"), processor, batch_size=6)
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        precision="64-true",
        max_steps=4,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(NaNOnOneRank(model), datamodule=data)
    except NonFiniteLossError as error:
        (folder / f"rank{trainer.global_rank}.txt").write_text(str(error))
        raise


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2])
