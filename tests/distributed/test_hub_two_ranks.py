"""Two gloo ranks that push their checkpoints to the Hub: one of them does, both end, two others continue exactly."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from loopback_hub.server import LoopbackHub
from processes import run_to_end
from safetensors.torch import load_file

from mmfusion.training.run import read_record

CHECKOUT = Path(__file__).resolve().parents[2]
REPO, BRANCH = "org/ranks", "checkpoints"
RECIPE = str(CHECKOUT / "recipes" / "stage1.py")
RANKS = ["--hardware.accelerator", "cpu", "--hardware.devices", "2"]
# A checkpoint of step 3 of 4: something is left to do from what is on the Hub at the end.
SIZES = shlex.split("--num_products 60 --steps 4 --batch_size 4 --checkpoint_every 3 --validate_every 2")


def run(hub: LoopbackHub, home: Path, command: list[str]) -> str:
    """Runs a command as two ranks until both have ended, well; returns what they print."""
    # Lightning takes these for the marks of a cluster's launcher.
    kept = {
        name: value for name, value in hub.environment(home).items() if not name.startswith(("SLURM", "LOCAL_RANK"))
    }
    done = run_to_end(
        [sys.executable, *command],
        env={
            **kept,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(CHECKOUT), kept.get("PYTHONPATH", "")]),
        },
        timeout=400,
        children=2,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_one_of_two_ranks_pushes_and_two_others_end_with_the_same_weights(hub: LoopbackHub, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    said = run(hub, tmp_path / "home", [RECIPE, "--output", str(first), *SIZES, *RANKS, "--hub.repo", REPO])
    assert f"checkpoint of step 3 is on the Hub; continue it with --resume hub:{REPO}@{BRANCH}" in said
    assert Counter(seen.path for seen in hub.requests)["/api/repos/create"] == 1, "both ranks have pushed"
    titles = [commit.title for commit in hub.repo(REPO).commits(BRANCH)]
    assert len(set(titles)) == len(titles) and "last checkpoint, step 3" in titles
    assert (read_record(first) or {})["complete"]

    expected = load_file(first / "model.safetensors")
    first.rename(tmp_path / "of another machine")
    # This launcher starts both at once, so that one has to wait for what the other fetches.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    resume = [RECIPE, "--output", str(second), "--resume", f"hub:{REPO}", *RANKS]
    said = run(hub, tmp_path / "home of another machine", [*launcher, *resume])
    assert "resuming from step=3" in said
    found = load_file(second / "model.safetensors")
    assert found.keys() == expected.keys()
    assert not [name for name, value in found.items() if not torch.equal(value, expected[name])]
