"""Two gloo ranks, and micro-batches, against one process on the same global batch, through the shipped stages."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from processes import run_to_end

from mmfusion.data.toy_catalogue import write_toy_catalogue

Gradients = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_ranks")
    write_toy_catalogue(folder / "catalogue", num_products=80)
    return folder


def gradients_of_one(folder: Path, stage: str, micro_batch: int = 0, **config: Any) -> Gradients:
    two_ranks.main(str(folder / "catalogue"), str(folder), stage, 1, micro_batch, **config)
    return load(folder / f"{stage}-1-{micro_batch}.pt")


def gradients_of_two(folder: Path, stage: str, micro_batch: int) -> Gradients:
    command = [sys.executable, two_ranks.__file__, str(folder / "catalogue"), str(folder), stage, "2", str(micro_batch)]
    # Lightning takes these for the marks of a cluster's launcher.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "LOCAL_RANK"))}
    done = run_to_end(command, env=environment, children=1)
    assert done.returncode == 0, done.stdout + done.stderr
    return load(folder / f"{stage}-2-{micro_batch}.pt")


def load(path: Path) -> Gradients:
    steps: Gradients = torch.load(path, weights_only=True)
    return steps


def assert_equal(one: Gradients, two: Gradients) -> None:
    assert len(one) == len(two) == 2
    for step, (single, double) in enumerate(zip(one, two, strict=True)):
        assert single.keys() == double.keys()
        # Part of the first step's gradients may be 0 by construction; those of both encoders must not be.
        for part in ("model.text_model.embeddings", "model.vision_model.embedder", "model.query_projection"):
            assert any(value.abs().max() > 1e-8 for name, value in single.items() if name.startswith(part)), part
        for name, value in single.items():
            torch.testing.assert_close(double[name], value, rtol=1e-7, atol=1e-10, msg=f"step {step}, {name}")


# A rank has 6 rows: with micro-batches of 4, the last one is uneven.
@pytest.mark.parametrize("micro_batch", [0, 4])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_ranks_give_the_gradients_of_one_process(folder: Path, stage: str, micro_batch: int) -> None:
    assert_equal(gradients_of_one(folder, stage), gradients_of_two(folder, stage, micro_batch))


@pytest.mark.parametrize(
    ("stage", "config"),
    [
        ("stage1", {}),
        ("stage2", {"vision_feature_layers": [0], "neck_hidden_size": 8, "neck_heads": 2}),
        ("stage2", {"fusion": "moe", "fusion_balance_weight": 1.0, "share_text_encoder": False}),
        ("stage2", {"fusion": "gated", "query_router": True, "matryoshka_dims": [4, 8]}),
    ],
)
def test_micro_batches_give_the_gradients_of_the_whole_batch(folder: Path, stage: str, config: dict[str, Any]) -> None:
    assert_equal(gradients_of_one(folder, stage, **config), gradients_of_one(folder, stage, 5, **config))
