"""Checkpoints for resuming: whole or not there, the last good one is found, and a full disk takes none away."""

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from commands import command
from small_disk import fill
from training_runs import assert_same_weights

from mmfusion import MMFusionConfig, MMFusionModel
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.files import move_files, replace_text, whole_file
from mmfusion.stages import Stage1
from mmfusion.training import RunError
from mmfusion.training.checkpoints import (
    STOPPED,
    CheckpointNotWrittenError,
    WholeCheckpointIO,
    damage,
    last_good_checkpoint,
)
from mmfusion.training.full_disk import DiskFullError

# Checkpoints of steps 3, 6 and 9.
TRAINING: dict[str, Any] = {"steps": 10, "batch_size": 6, "checkpoint_every": 3, "validate_every": 100}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_catalogue(tmp_path_factory.mktemp("checkpoints") / "catalogue", num_products=120)


@pytest.fixture(scope="module")
def whole(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(catalogue, folder)
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """The same run, as if it had been killed when it was about to save the model."""
    shutil.copytree(whole, tmp_path / "run")
    record = (tmp_path / "run" / "run.json").read_text()
    (tmp_path / "run" / "run.json").write_text(record.replace('"complete": true', '"complete": false'))
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "run" / name).unlink()
    return tmp_path / "run"


def train(catalogue: Path, output: Path, **options: Any) -> None:
    arguments = {"catalogue": str(catalogue), "output": str(output), **TRAINING, **options}
    command("stage1")(**arguments)


def checkpoints(run: Path) -> list[str]:
    return names(run / "checkpoints")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def at_step(patch: pytest.MonkeyPatch, actions: dict[int, Callable[[], object]]) -> None:
    """Has something happen once a step and its checkpoint are done."""

    def act(stage: L.LightningModule, *_: Any) -> None:
        if stage.global_step in actions:
            actions.pop(stage.global_step)()

    patch.setattr(Stage1, "on_train_batch_end", act)


# --- files


def test_a_file_has_its_name_only_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    replace_text(path, "before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"a half")
        file.flush()
        raise KeyboardInterrupt
    assert path.read_text() == "before" and names(tmp_path) == ["file.json"]


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_so_is_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("sync") or sync(descriptor))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("rename") or replace(*paths))
    WholeCheckpointIO().save_checkpoint({"step": 3}, tmp_path / "step=3.ckpt")
    assert calls == ["sync", "rename", "sync"]
    assert torch.load(tmp_path / "step=3.ckpt", weights_only=True) == {"step": 3}


def test_the_file_that_makes_a_folder_a_model_is_moved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, moved = tmp_path / "source", []
    source.mkdir()
    for name in ("config.json", "model.safetensors", "a.json"):
        (source / name).write_text(name)
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: moved.append(Path(new).name) or replace(old, new))
    move_files(source, tmp_path, last=["config.json"])
    assert moved == ["a.json", "model.safetensors", "config.json"] and not source.exists()


# --- damage


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda content: b"", "it is empty"),
        (lambda content: content[: len(content) // 2], "it is cut off"),
        (lambda content: bytes(len(content)), "it is cut off"),
        # What a power cut leaves of a file that no disk was waited for: its length, and zeros.
        (lambda content: content[:20_000] + bytes(10_000) + content[30_000:], "the checksum of .* in it is wrong"),
    ],
    ids=["empty", "truncated", "zeros", "a hole of zeros"],
)
def test_damage_is_seen(harm: Callable[[bytes], bytes], reason: str, whole: Path, tmp_path: Path) -> None:
    good = whole / "checkpoints" / "step=9.ckpt"
    (tmp_path / "step=9.ckpt").write_bytes(harm(good.read_bytes()))
    assert re.match(reason, str(damage(tmp_path / "step=9.ckpt")))
    assert damage(good) is None


def test_training_goes_on_from_the_last_checkpoint_that_is_not_damaged(
    catalogue: Path, whole: Path, copied: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    last = copied / "checkpoints" / "step=9.ckpt"
    os.truncate(last, last.stat().st_size - 100)
    (copied / "checkpoints" / ".step=12.ckpt.partial").write_bytes(b"what a kill left")
    train(catalogue, copied)
    (warning,) = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert warning.startswith(f"{last} is damaged (it is cut off") and "\n" not in warning
    assert "resuming from step=6.ckpt" in capsys.readouterr().out
    assert checkpoints(copied) == ["step=6.ckpt", "step=9.ckpt", "step=9.ckpt.damaged"]
    assert_same_weights(whole, copied)


def test_training_begins_anew_where_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    for step in (3, 12):
        (tmp_path / f"step={step}.ckpt").write_bytes(b"no checkpoint")
    assert last_good_checkpoint(tmp_path, rename_damaged=False) is None
    assert names(tmp_path) == ["step=12.ckpt", "step=3.ckpt"]
    assert last_good_checkpoint(tmp_path, rename_damaged=True) is None
    assert names(tmp_path) == ["step=12.ckpt.damaged", "step=3.ckpt.damaged"]


def test_a_checkpoint_of_another_architecture_is_refused(catalogue: Path, copied: Path) -> None:
    base = copied / "toy_base"
    config = MMFusionConfig.from_pretrained(base)
    config.projection_hidden_size = 8
    MMFusionModel(config).save_pretrained(base)
    with pytest.raises(RunError, match=r"step=9.ckpt holds weights of another architecture: .* is missing there"):
        train(catalogue, copied)
    assert "step=9.ckpt" in checkpoints(copied)


# --- a kill before the first checkpoint, and one at the end


def test_a_training_killed_before_its_first_checkpoint_begins_anew_alike(
    catalogue: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Stage1, "on_train_batch_start", killed)
        train(catalogue, tmp_path / "run")
    train(catalogue, tmp_path / "run")
    assert_same_weights(whole, tmp_path / "run")


def test_no_half_of_a_model_is_ever_in_the_run_folder(
    catalogue: Path, whole: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(model: MMFusionModel, folder: Path, **_: Any) -> None:
        Path(folder).mkdir()
        for name in ("config.json", "model.safetensors"):
            (Path(folder) / name).write_bytes(b"a half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MMFusionModel, "save_pretrained", killed)
        train(catalogue, copied)
    assert not {"config.json", "model.safetensors"} & set(names(copied))
    train(catalogue, copied)
    assert_same_weights(whole, copied)
    assert names(copied) == names(whole)


def test_a_training_killed_after_its_last_step_still_says_how_well_it_does(
    catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    steps = {"steps": 3, "validate_every": 3}
    train(catalogue, tmp_path / "whole", **steps)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MMFusionModel, "save_pretrained", killed)
        train(catalogue, tmp_path / "killed", **steps)
    train(catalogue, tmp_path / "killed", **steps)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    whole, resumed = (json.loads((tmp_path / name / "run.json").read_text())["metrics"] for name in ("whole", "killed"))
    scores = {name: value for name, value in whole.items() if name.startswith("val/")}
    assert scores and {name: resumed[name] for name in scores} == scores


# --- a full disk


def test_a_checkpoint_that_does_not_fit_leaves_nothing(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(CheckpointNotWrittenError) as refused:
        WholeCheckpointIO().save_checkpoint({"weights": torch.zeros(1_000_000)}, small_disk / "step=3.ckpt")
    assert refused.value.errno == errno.ENOSPC
    assert names(small_disk) == ["filler"]


def test_a_disk_that_is_full_for_a_while_costs_a_warning(
    catalogue: Path, whole: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_disk / "run"
    at_step(monkeypatch, {4: lambda: fill(small_disk), 7: (small_disk / "filler").unlink})
    train(catalogue, run)
    (warning,) = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert "checkpoint of step 6" in warning and "No space left" in warning and "the last one is step=3.ckpt" in warning
    assert "\n" not in warning
    assert checkpoints(run) == ["step=3.ckpt", "step=9.ckpt"]
    assert_same_weights(whole, run)


def test_a_disk_that_stays_full_stops_training_and_the_last_checkpoint_resumes_it(
    catalogue: Path,
    whole: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = small_disk / "run"
    at_step(monkeypatch, {4: lambda: fill(small_disk)})
    with pytest.raises(DiskFullError, match=r"Two checkpoints in a row .* stops at step 9\..* is step=3\.ckpt"):
        train(catalogue, run)
    assert checkpoints(run) == ["step=3.ckpt"]
    (small_disk / "filler").unlink()
    train(catalogue, run)
    assert "resuming from step=3.ckpt" in capsys.readouterr().out
    assert_same_weights(whole, run)


def test_a_disk_that_is_full_at_the_end_loses_no_checkpoint(
    catalogue: Path, whole: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_disk / "run"
    at_step(monkeypatch, {10: lambda: fill(small_disk)})
    with pytest.raises(DiskFullError, match=r"run cannot be written, as its disk or your quota is full; make room"):
        train(catalogue, run)
    assert not (run / "model.safetensors").exists() and checkpoints(run) == ["step=6.ckpt", "step=9.ckpt"]
    (small_disk / "filler").unlink()
    train(catalogue, run)
    assert_same_weights(whole, run)


# --- signals


def test_sigterm_stops_after_the_step_and_the_same_command_goes_on(
    catalogue: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    at_step(monkeypatch, {4: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(SystemExit) as stopped:
        train(catalogue, tmp_path / "run")
    assert stopped.value.code == STOPPED
    assert "SIGTERM: training stops after step 5, which is in a checkpoint; run the same command" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == before
    train(catalogue, tmp_path / "run")
    assert "resuming from step=5.ckpt" in capsys.readouterr().out
    assert checkpoints(tmp_path / "run") == ["step=6.ckpt", "step=9.ckpt"]
    assert_same_weights(whole, tmp_path / "run")


def test_slurm_is_asked_to_queue_a_job_again_that_its_time_runs_out_for(
    catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    job = {"NTASKS": "1", "JOB_ID": "12", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    at_step(monkeypatch, {4: lambda: os.kill(os.getpid(), signal.SIGUSR1)})
    with pytest.raises(SystemExit) as stopped:
        train(catalogue, tmp_path / "run")
    assert stopped.value.code == STOPPED and checkpoints(tmp_path / "run") == ["step=3.ckpt", "step=5.ckpt"]
    assert (tmp_path / "asked").read_text() == "requeue 12\n"
    assert "SIGUSR1: training stops after step 5" in caplog.text


def test_a_signal_after_the_last_step_changes_nothing(
    catalogue: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, {9: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    train(catalogue, tmp_path / "run")
    assert_same_weights(whole, tmp_path / "run")
