"""Two gloo ranks end together: none waits forever for one that has stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import two_ranks_stop
from processes import run_to_end, started

from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.training.checkpoints import STOPPED, damage
from mmfusion.training.run import list_checkpoints

CHECKOUT = Path(__file__).resolve().parents[2]
# Seconds after which a rank is taken to wait forever.
HANGS = 600


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_catalogue(tmp_path_factory.mktemp("ranks_stop") / "catalogue", num_products=120)


def environment() -> dict[str, str]:
    # Lightning takes these for the marks of a cluster's launcher.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "LOCAL_RANK"))}
    return {**own, "OMP_NUM_THREADS": "1"}


def test_a_nan_on_one_rank_ends_both(catalogue: Path, tmp_path: Path) -> None:
    command = [sys.executable, two_ranks_stop.__file__, str(catalogue), str(tmp_path)]
    done = run_to_end(command, env=environment(), timeout=HANGS, children=1)
    assert done.returncode == 1, done.stderr
    # Both know why, rather than that a connection was closed.
    assert "The loss is not finite at step 1 on rank 1" in (tmp_path / "rank1.txt").read_text()
    assert "The loss of another rank is not finite at step 1" in (tmp_path / "rank0.txt").read_text()


def test_a_signal_to_one_rank_stops_both_with_a_checkpoint(catalogue: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, str(CHECKOUT / "recipes" / "stage1.py"), "--catalogue", str(catalogue)),
        *("--output", str(tmp_path / "run"), "--steps", "10000", "--batch_size", "6", "--validate_every", "10000"),
        *("--checkpoint_every", "3", "--hardware.devices", "2", "--hardware.strategy", "ddp"),
        *("--hardware.accelerator", "cpu"),
    ]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with started(command, env=environment(), children=1, **pipes) as process:
        deadline = time.monotonic() + HANGS
        while not list_checkpoints(tmp_path / "run" / "checkpoints"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        # To the first rank alone.
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=HANGS)
    assert process.returncode == STOPPED, said
    last = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert damage(last) is None
    assert f"training stops after step {last.stem.split('=')[1]}, which is in a checkpoint" in said
