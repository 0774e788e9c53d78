"""torch.compile by flag: the same training, under the same names."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from two_ranks import build_model

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.stages import Stage2
from mmfusion.training.hardware import Hardware, compile_blocks
from mmfusion.training.trainer import PrepareModel

# Relative, of the loss in double precision after three steps: a compiler may sum in another order.
TOLERANCE = 1e-6


def train(folder: Path, catalogue: Catalogue, hardware: Hardware) -> tuple[float, list[str], L.LightningModule]:
    model, processor = build_model(folder / "backbones", vision_feature_layers=[0], neck_hidden_size=8, neck_heads=2)
    stage = Stage2(model, modality_dropout=0.0)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=3,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PrepareModel(hardware)],
    )
    trainer.fit(stage, datamodule=MMFusionDataModule(catalogue, processor, batch_size=8))
    return float(trainer.callback_metrics["train/loss"]), list(stage.state_dict()), stage


def compare(tmp_path: Path, hardware: Hardware) -> None:
    write_toy_catalogue(tmp_path / "catalogue", num_products=80)
    catalogue = Catalogue.load(tmp_path / "catalogue", cache_dir=tmp_path / "cache")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, names, _ = train(tmp_path, catalogue, Hardware())
    assert not torch._dynamo.utils.counters["stats"]
    compiled, own, stage = train(tmp_path, catalogue, hardware)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert compiled == pytest.approx(plain, rel=TOLERANCE) and own == names
    stage.model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_train_as_eager_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    compile = torch.compile

    def without_code(*args: Any, **options: Any) -> Any:
        # All but the generation of code, which takes long.
        return compile(*args, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", without_code)
    compare(tmp_path, Hardware(compile=True, activation_checkpointing=checkpointing))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_generated_code_trains_as_eager_blocks(tmp_path: Path) -> None:
    compare(tmp_path, Hardware(compile=True))


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"hardware.compile needs a C\+\+ compiler \(g\+\+, .*install one"):
        compile_blocks(build_model(tmp_path / "backbones")[0])
