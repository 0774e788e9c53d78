"""Exact resume: a training that was killed or stopped at any moment ends like one that was left alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_to_end, started
from safetensors.torch import load_file
from training_runs import assert_same_weights

from mmfusion.data.toy_catalogue import write_toy_catalogue

CHECKOUT = Path(__file__).resolve().parents[2]
CHECKPOINT_EVERY = 3
# EX_TEMPFAIL: the same command continues.
STOPPED = 75


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_catalogue(tmp_path_factory.mktemp("resume") / "catalogue", num_products=120)


@pytest.fixture(scope="module")
def whole(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of a training of so many steps that nothing interrupted."""

    @cache
    def run(steps: int) -> Path:
        training = Training(catalogue, tmp_path_factory.mktemp("whole") / "run", steps)
        training.run()
        return training.output

    return run


class Training:
    """A recipe in a process of its own: dropout, shuffling, a worker and accumulation, over epochs of 42 queries."""

    def __init__(self, catalogue: Path, output: Path, steps: int, *options: str) -> None:
        self.output = output
        self.command = [
            *(sys.executable, str(CHECKOUT / "recipes" / "stage1.py"), "--catalogue", str(catalogue)),
            *("--output", str(output), "--steps", str(steps), "--batch_size", "6", "--accumulate", "2"),
            *("--checkpoint_every", str(CHECKPOINT_EVERY), "--validate_every", "4", "--hardware.num_workers", "1"),
            *options,
        ]

    def run(self) -> str:
        done = run_to_end(self.command, env=environment(), timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run_until(self, step: int, delay: float, number: signal.Signals) -> tuple[int, str]:
        """Runs until `delay` seconds after the checkpoint of a step, or until the next one, and sends a signal."""
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with started(self.command, env=environment(), **pipes) as process:
            deadline = time.monotonic() + 300
            while self.last_step() < step:
                assert process.poll() is None, f"ended before the checkpoint of step {step}"
                assert time.monotonic() < deadline, f"no checkpoint of step {step}"
                time.sleep(0.01)
            until = time.monotonic() + delay
            while self.last_step() < step + CHECKPOINT_EVERY and time.monotonic() < until:
                time.sleep(0.01)
            # To workers as well, as schedulers do.
            os.killpg(process.pid, number)
            _, said = process.communicate(timeout=300)
        return process.returncode, said

    def last_step(self) -> int:
        found = (self.output / "checkpoints").glob("step=*.ckpt")
        return max((int(path.stem.split("=")[1]) for path in found), default=0)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_training_killed_at_random_steps_ends_with_the_same_weights(
    catalogue: Path, whole: Callable[[int], Path], tmp_path: Path, kills: int
) -> None:
    # A kill costs at most what lies between two checkpoints, and leaves the training at most two of them further.
    steps = 2 * CHECKPOINT_EVERY * (kills + 1)
    killed = Training(catalogue, tmp_path / "killed", steps)
    moments = random.Random(0)
    for _ in range(kills):
        next_checkpoint = killed.last_step() // CHECKPOINT_EVERY * CHECKPOINT_EVERY + CHECKPOINT_EVERY
        code, _ = killed.run_until(next_checkpoint, moments.uniform(0, 1.5), signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not (killed.output / "model.safetensors").exists()
    # From a checkpoint, not anew: that would end with the same weights as well.
    last = killed.last_step()
    assert f"resuming from step={last}.ckpt" in killed.run()
    assert_same_weights(whole(steps), killed.output)


def test_a_training_that_is_asked_to_stop_writes_a_checkpoint_and_goes_on_from_there(
    catalogue: Path, whole: Callable[[int], Path], tmp_path: Path
) -> None:
    stopped = Training(catalogue, tmp_path / "stopped", 18)
    code, said = stopped.run_until(CHECKPOINT_EVERY, 0.3, signal.SIGTERM)
    assert code == STOPPED, said
    last = stopped.last_step()
    assert f"SIGTERM: training stops after step {last}, which is in a checkpoint; run the same command" in said
    assert f"resuming from step={last}.ckpt" in stopped.run()
    assert_same_weights(whole(18), stopped.output)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), marks=pytest.mark.slow),
        ("--lora.rank", "2", "--lora.targets", "all-linear", "--lora.dropout", "0.1"),
    ],
)
def test_an_extension_that_was_killed_ends_with_the_bits_of_one_that_was_not(
    catalogue: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    # The first run ends between two checkpoints, and keeps its best model in both.
    best = ("--keep", "best", *options)
    whole, killed = (Training(catalogue, tmp_path / name, 8, *best) for name in ("whole", "killed"))
    whole.run()
    shutil.copytree(whole.output, killed.output)
    before = load_file(whole.output / "model.safetensors")
    whole, killed = (Training(catalogue, run.output, 20, *best) for run in (whole, killed))
    whole.run()
    code, _ = killed.run_until(4 * CHECKPOINT_EVERY, 0.5, signal.SIGKILL)
    assert code == -signal.SIGKILL
    # Until it is done, the model is the one that was finished.
    left = load_file(killed.output / "model.safetensors")
    assert all(torch.equal(left[name], value) for name, value in before.items())
    assert "resuming from" in killed.run()
    assert_same_weights(whole.output, killed.output)
    ends = [json.loads((run.output / "run.json").read_text()) for run in (whole, killed)]
    assert [end["extensions"] for end in ends] == [[{"at": 8, "steps": 8}]] * 2
    assert ends[0]["best"] == ends[1]["best"] and ends[0]["steps"] == 20
    last = [torch.load(run.output / "checkpoints" / "step=18.ckpt", weights_only=True) for run in (whole, killed)]
    weights = [one["state_dict"] for one in last]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    # The model is one without adapters, which are what checkpoints hold.
    names = load_file(whole.output / "toy_base" / "model.safetensors").keys()
    assert names == before.keys() == load_file(whole.output / "model.safetensors").keys()
    assert any(".lora_A." in name for name in weights[0]) == bool(options)
