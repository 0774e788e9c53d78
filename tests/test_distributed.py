"""Two gloo ranks against one process on the same global batch, through the shipped model and stages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_ranks

from mmfusion.data.embedded import write_embedded_catalogue

Gradients = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_ranks")
    write_embedded_catalogue(folder / "catalogue", num_products=80)
    return folder


def gradients_of_one(folder: Path, stage: str) -> Gradients:
    two_ranks.main(str(folder / "catalogue"), str(folder), stage, 1)
    return load(folder / f"{stage}-1.pt")


def gradients_of_two(folder: Path, stage: str) -> Gradients:
    command = [sys.executable, two_ranks.__file__, str(folder / "catalogue"), str(folder), stage, "2"]
    # Lightning takes these for the marks of a cluster's launcher.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "LOCAL_RANK"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return load(folder / f"{stage}-2.pt")


def load(path: Path) -> Gradients:
    steps: Gradients = torch.load(path, weights_only=True)
    return steps


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_ranks_give_the_gradients_of_one_process(folder: Path, stage: str) -> None:
    one, two = gradients_of_one(folder, stage), gradients_of_two(folder, stage)
    assert len(one) == len(two) == 2
    for step, (single, double) in enumerate(zip(one, two, strict=True)):
        assert single.keys() == double.keys()
        # Part of the first step's gradients may be 0 by construction; those of both encoders must not be.
        for part in ("model.text_model.embeddings", "model.vision_model.embedder", "model.query_projection"):
            assert any(value.abs().max() > 1e-8 for name, value in single.items() if name.startswith(part)), part
        for name, value in single.items():
            torch.testing.assert_close(double[name], value, rtol=1e-7, atol=1e-10, msg=f"step {step}, {name}")
