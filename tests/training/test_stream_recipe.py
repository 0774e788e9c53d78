"""Stage 1 from streams as a user runs it: killed and resumed, on two ranks, and with files that cannot be read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from flaky_files import SPECIFICATION, specification
from loopback_hub.server import LoopbackHub
from processes import run_to_end, started
from safetensors.torch import load_file
from sharded_catalogue import bytes_of_photos, write_sharded

from mmfusion.data.qrels import Qrels
from mmfusion.data.streamed_catalogue import StreamedCatalogue

CHECKOUT = Path(__file__).resolve().parents[2]
BATCH, CHECKPOINT_EVERY = 6, 3
OWN = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'tests'}"}
# Seconds after which a rank is taken to wait forever.
HANGS = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharded(tmp_path_factory.mktemp("stream") / "catalogue")


@pytest.fixture(scope="module")
def judged(folder: Path) -> set[int]:
    """Rows of the train products with a relevant query."""
    qrels: Qrels = StreamedCatalogue.load(folder, cache_dir=folder.parent / "cache").split_qrels("train")
    return set(qrels.product[qrels.grade > 0].tolist())


def environment() -> dict[str, str]:
    # Lightning takes these for the marks of a cluster's launcher.
    return {**{n: value for n, value in os.environ.items() if not n.startswith(("SLURM", "LOCAL_RANK"))}, **OWN}


def command(catalogue: str | Path, output: Path, steps: int, **flags: Any) -> list[str]:
    options = {
        "catalogue": catalogue,
        "output": output,
        "steps": steps,
        "batch_size": BATCH,
        "stream": "true",
        "shuffle_buffer": 10,
        "checkpoint_every": CHECKPOINT_EVERY,
        "validate_every": 7,
        **flags,
    }
    script = [sys.executable, str(CHECKOUT / "tests" / "stream_training.py")]
    return [*script, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def run(log: Path, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    settings = {**environment, "STREAM_LOG": str(log)}
    return run_to_end(command, env=settings, timeout=HANGS, children=1)


def kill_after(log: Path, command: list[str], environment: dict[str, str], checkpoint: Path, delay: float) -> None:
    """SIGKILL, workers and all, so many seconds after a checkpoint is there."""
    settings, nothing = {**environment, "STREAM_LOG": str(log)}, subprocess.DEVNULL
    with started(command, env=settings, stdout=nothing, stderr=nothing) as process:
        deadline = time.monotonic() + HANGS
        while not checkpoint.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def products_of_epochs(logs: list[Path]) -> dict[int, list[int]]:
    """Products of each epoch in the steps that count: those after the last checkpoint before a kill are done again."""
    epochs: dict[int, list[int]] = defaultdict(list)
    for log in logs:
        steps: dict[int, tuple[int, list[int]]] = {}
        for step, epoch, rows in map(json.loads, log.read_text().splitlines()):
            # What is done again is what was done before.
            assert steps.setdefault(step, (epoch, rows)) == (epoch, rows)
        assert list(steps) == list(range(len(steps)))
        for epoch, rows in steps.values():
            epochs[epoch] += rows
    return epochs


def assert_each_once(epochs: dict[int, list[int]], judged: set[int], batch: int) -> None:
    for rows in list(epochs.values())[:-1]:
        assert len(set(rows)) == len(rows) == len(judged) // batch * batch and set(rows) <= judged
    last = list(epochs.values())[-1]
    assert len(set(last)) == len(last)


@pytest.mark.parametrize(
    "kills", [{12: 0.2}, pytest.param({3: 0.4, 12: 0.0, 21: 0.2}, marks=pytest.mark.slow)], ids=["one", "three"]
)
def test_a_training_killed_in_mid_epoch_sees_no_product_twice_and_none_is_skipped(
    hub: LoopbackHub, folder: Path, judged: set[int], tmp_path: Path, kills: dict[int, float]
) -> None:
    repository = hub.unique("products")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}
    hub.create_repo(repository, files, kind="dataset")
    settings = {**hub.environment(tmp_path / "hf_home"), **OWN}
    # 56 products are nine batches an epoch, so that no kill is at the end of one.
    flags = {"steps": 24, "hardware.num_workers": 1}
    whole = run(tmp_path / "whole", command(repository, tmp_path / "one", **flags), settings)
    assert whole.returncode == 0, whole.stderr
    killed = command(repository, tmp_path / "two", **flags)
    for step, delay in kills.items():
        kill_after(tmp_path / "killed", killed, settings, tmp_path / "two" / "checkpoints" / f"step={step}.ckpt", delay)
    done = run(tmp_path / "killed", killed, settings)
    assert done.returncode == 0 and "resuming from step=" in done.stdout, done.stderr
    epochs = products_of_epochs([tmp_path / "killed.0"])
    assert epochs == products_of_epochs([tmp_path / "whole.0"])
    assert len(epochs) == 3
    assert_each_once(epochs, judged, BATCH)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys() and not [name for name in first if not torch.equal(first[name], second[name])]


TWO_RANKS = {"hardware.devices": 2, "hardware.strategy": "ddp", "hardware.accelerator": "cpu"}


@pytest.mark.slow
def test_two_ranks_share_the_products_of_an_epoch(folder: Path, judged: set[int], tmp_path: Path) -> None:
    flags = {"steps": 10, "validate_every": 4, **TWO_RANKS}
    done = run(tmp_path / "log", command(folder, tmp_path / "run", **flags), environment())
    assert done.returncode == 0, done.stderr
    logs = [tmp_path / "log.0", tmp_path / "log.1"]
    assert len({len(log.read_text().splitlines()) for log in logs}) == 1
    epochs = products_of_epochs(logs)
    assert len(epochs) == 3
    assert_each_once(epochs, judged, 2 * BATCH)


def test_a_rank_that_cannot_read_ends_both_with_file_and_offset(folder: Path, tmp_path: Path) -> None:
    place = bytes_of_photos(folder / "products" / "00003.parquet", 2)
    fails = specification("00003.parquet", place, tmp_path / "failures", 10_000)
    # Without a look at the photos first, which would find the file before there are two ranks.
    flags = {"steps": 1000, "validate_every": 1000, "allow_missing_photos": True, **TWO_RANKS}
    failing = command(f"flaky://{folder}", tmp_path / "run", **flags)
    done = run(tmp_path / "log", failing, {**environment(), SPECIFICATION: fails})
    assert done.returncode == 1
    assert "file 'products/00003.parquet', row group 2 (from row 16 of the file): cannot be read after 4" in done.stderr
    # The other one knows why it ends, rather than that a connection was closed.
    assert "CatalogueError: Another rank could not read its products; see its error." in done.stderr
