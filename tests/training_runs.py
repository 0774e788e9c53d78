"""Short trainings in this process, and what two of them must have in common."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file

from mmfusion.data.datamodule import MMFusionDataModule


def fit(stage: L.LightningModule, data: MMFusionDataModule, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {
        "max_steps": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(accelerator="cpu", num_sanity_val_steps=0, **{**quiet, **options})
    trainer.fit(stage, datamodule=data)
    return trainer


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def assert_same_ends(first: dict[str, Any], second: dict[str, Any]) -> None:
    for name, value in first.items():
        # Softmax ignores a bias of keys: its gradient is rounding, which Adam scales up.
        if "key_value.bias" not in name:
            torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5, msg=name)
