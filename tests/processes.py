"""Processes of tests, with all that they start: ended when time is up, and looked for when all tests are over.

Ranks are no children of the test and may have sessions of their own (torchrun's do), so that neither a kill nor a kill
of the process group reaches them. What they all have is the environment: a mark in it finds them under `/proc`. On
systems without `/proc` only the process group is ended, and nothing is looked for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MARK = "MMFUSION_TESTS"
PROC = Path("/proc")
# They end by themselves with the process that they belong to.
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "compile_worker", "torch_shm_manager")


def run_to_end(
    command: Sequence[object], *, timeout: float, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with captured text, but a time-out (or Ctrl-C) ends all that the command has started.

    Raises:
        subprocess.TimeoutExpired: It has not ended after so many seconds; what it printed is in the text.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command, env=env, **pipes, **options) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as late:
            said = b"".join(part for part in (late.stdout, late.stderr) if part).decode(errors="replace")
            raise subprocess.TimeoutExpired(f"{' '.join(process.args)}, which said:\n{said}", timeout) from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


@contextmanager
def started(
    command: Sequence[object], *, env: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """A process in a session of its own; if it has not ended after the block, it is ended with all that it started."""
    mark = f"{session_mark()}.{uuid.uuid4().hex}"
    process = subprocess.Popen(
        list(map(str, command)),
        env={**(os.environ if env is None else env), MARK: mark},
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            end(marked(mark))
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()


def session_mark() -> str:
    """The mark of all processes of this test session, workers of pytest-xdist and what they start included."""
    return os.environ.setdefault(MARK, uuid.uuid4().hex)


def left_behind(seconds: float) -> dict[int, str]:
    """Command lines of processes of this session that are still there after so many seconds, but for this one."""
    until = time.monotonic() + seconds
    while True:
        found = {pid: line for pid, line in marked(session_mark()).items() if not any(name in line for name in HELPERS)}
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.1)


def marked(mark: str) -> dict[int, str]:
    """Command lines of living processes with a mark, and of their children; never of this process and its parents."""
    alive = dict(_living())
    needle = f"{MARK}={mark}".encode()
    found = {pid for pid in alive if needle in _read(pid, "environ")} - _parents_of(os.getpid(), alive)
    # A child that was forked by this process has the environment that this one began with.
    found |= {pid for pid, (parent, _) in alive.items() if parent == os.getpid() and mark == session_mark()}
    return {pid: alive[pid][1] for pid in sorted(found)}


def end(pids: Mapping[int, str]) -> None:
    """Kills processes."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _living() -> Iterator[tuple[int, tuple[int, str]]]:
    for folder in PROC.glob("[0-9]*"):
        state, _, rest = _read(int(folder.name), "stat").rpartition(b")")[2].strip().partition(b" ")
        if state and state != b"Z":
            line = _read(int(folder.name), "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
            yield int(folder.name), (int(rest.split()[0]), line)


def _parents_of(pid: int, alive: Mapping[int, tuple[int, str]]) -> set[int]:
    found = set()
    while pid in alive and pid not in found:
        found.add(pid)
        pid = alive[pid][0]
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""
