"""One job at a time in an output folder: real processes, real kills."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import main_of
from processes import started

from mmfusion.commands import run_command
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.training import RunError, open_run, take_lock
from mmfusion.training.output_lock import NAME, refuse_lock_of_another_job

CHECKOUT = Path(__file__).resolve().parents[2]
# Takes the lock of a folder, says so, and stays; with a worker that outlives it, where asked for.
HOLDER = """
import os, sys, time
from mmfusion.training.output_lock import take_lock
lock = take_lock(sys.argv[1], beside="beside" in sys.argv)
if "worker" in sys.argv and (child := os.fork()) == 0:
    os.setsid()
    time.sleep(600)
print(child if "worker" in sys.argv else "held", flush=True)
time.sleep(600)
"""


class Holder:
    """A process that holds the lock of a folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-c", HOLDER, folder, *options]
        self._block = started(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
        self.process = self._block.__enter__()
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline().strip()
        assert self.said, "the process ended"

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(30)
        self._block.__exit__(None, None, None)


@pytest.fixture
def holders() -> Iterator[list[Holder]]:
    """Those that are in the list at the end are ended."""
    found: list[Holder] = []
    yield found
    for one in found:
        one.end()


@pytest.mark.parametrize("beside", [False, True])
def test_a_second_job_is_told_of_the_first_and_takes_over_when_it_has_been_killed(
    tmp_path: Path, holders: list[Holder], beside: bool
) -> None:
    folder = tmp_path / "run"
    before = time.time()
    first = Holder(folder, *(["beside"] if beside else []))
    holders.append(first)
    with pytest.raises(RunError) as refused:
        take_lock(folder, beside=beside)
    told = str(refused.value)
    assert f"The output folder {folder} is in use" in told and "another --output" in told and "\n" not in told
    assert f"process {first.process.pid} on {socket.gethostname()}, since " in told
    since = time.mktime(time.strptime(told.split("since ")[1][:19], "%Y-%m-%d %H:%M:%S"))
    assert before - 2 <= since <= time.time() + 1
    first.end()
    file = tmp_path / f".run{NAME}" if beside else folder / NAME
    assert json.loads(file.read_text())["process"] == first.process.pid
    with take_lock(folder, beside=beside):
        assert json.loads(file.read_text())["process"] == os.getpid()
    assert not file.exists()


def test_a_worker_that_outlives_its_job_does_not_keep_the_lock(tmp_path: Path, holders: list[Holder]) -> None:
    first = Holder(tmp_path / "run", "worker")
    worker = int(first.said)
    try:
        first.end()
        os.kill(worker, 0)
        take_lock(tmp_path / "run")
    finally:
        os.kill(worker, signal.SIGKILL)


def test_one_process_is_one_job(tmp_path: Path) -> None:
    outer, inner = take_lock(tmp_path), take_lock(tmp_path)
    inner.release()
    inner.release()
    assert (tmp_path / NAME).exists()
    outer.release()
    assert not (tmp_path / NAME).exists()
    # One that nobody refers to is let go.
    take_lock(tmp_path)
    assert not (tmp_path / NAME).exists()


def test_a_run_holds_its_folder_until_it_is_finished(tmp_path: Path, holders: list[Holder]) -> None:
    run = open_run(tmp_path / "run", "stage1", {"steps": 1})
    assert (run.folder / NAME).exists()
    run.finish()
    assert not (run.folder / NAME).exists()
    holders.append(Holder(tmp_path / "run"))
    with pytest.raises(RunError, match=f"in use by another job .process {holders[0].process.pid} "):
        open_run(tmp_path / "run", "stage1", {"steps": 1})
    assert open_run(tmp_path / "run", "stage1", {"steps": 1}, dry_run=True).complete


def test_a_folder_that_is_refused_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(RunError, match="files that no command wrote"):
        open_run(tmp_path, "stage1", {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]
    with pytest.raises(RunError, match=r"thesis\.doc is a file; give another --output"):
        open_run(tmp_path / "thesis.doc", "stage1", {})


def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    take_lock(tmp_path)


def test_without_file_locks_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    take_lock(tmp_path)
    assert f"{tmp_path} has no file locks" in caplog.text


def test_a_rank_knows_the_first_one_of_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holders: list[Holder]
) -> None:
    monkeypatch.setenv("MASTER_PORT", "1111")
    holders.append(Holder(tmp_path))
    refuse_lock_of_another_job(tmp_path)
    monkeypatch.setenv("MASTER_PORT", "2222")
    with pytest.raises(RunError, match=f"in use by another job .process {holders[0].process.pid} "):
        refuse_lock_of_another_job(tmp_path)
    # The first rank by its process, as Lightning starts the others and tells them where to meet.
    monkeypatch.setattr(os, "getppid", lambda: holders[0].process.pid)
    refuse_lock_of_another_job(tmp_path)
    monkeypatch.undo()
    holders.pop().end()
    # What a killed job left is in nobody's way.
    assert (tmp_path / NAME).exists()
    refuse_lock_of_another_job(tmp_path)


def test_another_rank_finds_what_the_first_one_refuses_when_that_one_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holders: list[Holder]
) -> None:
    open_run(tmp_path / "run", "stage1", {"steps": 1}).lock.release()  # type: ignore[union-attr]
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "step=1.ckpt").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").touch()
    monkeypatch.setenv("MASTER_PORT", "1111")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("mmfusion.training.run._FIRST_RANK_SECONDS", 0.2)
    # Nobody has the lock: the first rank has read the checkpoint, has refused it, and has ended.
    assert open_run(tmp_path / "run", "stage1", {"steps": 1}).lock is None
    with pytest.raises(RunError, match="steps was 1, now 2"):
        open_run(tmp_path / "run", "stage1", {"steps": 2})
    with pytest.raises(RunError, match="files that no"):
        open_run(tmp_path / "other", "stage1", {})
    with pytest.raises(RunError, match="first rank has not started a run"):
        open_run(tmp_path / "new", "stage1", {})
    monkeypatch.setenv("MASTER_PORT", "2222")
    holders.append(Holder(tmp_path / "run"))
    monkeypatch.setenv("MASTER_PORT", "1111")
    with pytest.raises(RunError, match="is in use by another job"):
        open_run(tmp_path / "run", "stage1", {"steps": 1})


@pytest.mark.parametrize(
    ("name", "options", "beside"),
    [
        ("base", ["--text", "backbones/text", "--vision", "backbones/vision"], False),
        ("stage1", [], False),
        ("stage2", ["--base", "x"], False),
        ("mine", ["--base", "x"], False),
        ("embed", ["--base", "x"], False),
        ("evaluate", ["--base", "x"], False),
        ("ablation", [], False),
        ("export", ["--base", "x"], True),
    ],
)
def test_every_command_that_writes_a_folder_leaves_that_of_another_job_alone(
    tmp_path: Path,
    holders: list[Holder],
    name: str,
    options: list[str],
    beside: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "base":
        write_toy_encoders("backbones")
    holders.append(Holder(tmp_path / "out", *(["beside"] if beside else [])))
    monkeypatch.setattr(sys, "argv", [name, "--output", str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit) as ended:
        run_command(main_of(name))
    assert f"is in use by another job (process {holders[0].process.pid} on " in str(ended.value)
    assert not [path for path in (tmp_path / "out").glob("*") if path.name != NAME]
