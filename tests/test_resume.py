"""Exact resume: a training killed in mid-epoch ends with the weights of one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmfusion.data.embedded import write_embedded_catalogue

CHECKOUT = Path(__file__).resolve().parent.parent
STEPS, CHECKPOINT_EVERY = 14, 3


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedded_catalogue(tmp_path_factory.mktemp("resume") / "catalogue", num_products=120)


def command(catalogue: Path, output: Path) -> list[str]:
    # Dropout, shuffling, a worker and accumulation, over several epochs of 42 queries, so that the kill lands in the
    # middle of one.
    return [
        *(sys.executable, str(CHECKOUT / "recipes" / "stage1.py"), "--catalogue", str(catalogue)),
        *("--output", str(output), "--steps", str(STEPS), "--batch_size", "6", "--accumulate", "2"),
        *("--checkpoint_every", str(CHECKPOINT_EVERY), "--validate_every", "4", "--hardware.num_workers", "1"),
    ]


def run(catalogue: Path, output: Path) -> str:
    done = subprocess.run(command(catalogue, output), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def kill_after_checkpoint(catalogue: Path, output: Path, step: int) -> None:
    process = subprocess.Popen(
        command(catalogue, output),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not (output / "checkpoints" / f"step={step}.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline, f"ended before the checkpoint of step {step}"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("step", [3, pytest.param(6, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow)])
def test_killed_and_resumed_training_ends_with_the_same_weights(catalogue: Path, tmp_path: Path, step: int) -> None:
    run(catalogue, tmp_path / "whole")
    kill_after_checkpoint(catalogue, tmp_path / "killed", step)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    # From the checkpoint, not anew: that would end with the same weights as well.
    assert f"resuming from step={step}" in run(catalogue, tmp_path / "killed")
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    differing = [name for name in whole if not torch.equal(whole[name], killed[name])]
    assert not differing
