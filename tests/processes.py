"""Processes of tests, with all that they start: ended when time is up, and looked for when all tests are over.

Python starts by a fork of a process that has imported what takes long (`process_server.py`), where there is one to be
had: on Linux, and with an environment that does not ask Python or a library for another start.

Ranks are no children of the test and may have sessions of their own (torchrun's do), so that neither a kill nor a kill
of the process group reaches them. What they all have is the environment: a mark in it finds them under `/proc`. On
systems without `/proc` only the process group is ended, and nothing is looked for.
"""

from __future__ import annotations

import functools
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import process_server

MARK = "MMFUSION_TESTS"
PROC = Path("/proc")
# They end by themselves with the process that they belong to.
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "compile_worker", "torch_shm_manager")


def run_to_end(
    command: Sequence[object], *, timeout: float = 600, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with captured text, but a time-out (or Ctrl-C) ends all that the command has started.

    Args:
        command: What to run.
        timeout: Seconds.
        env: Its environment; default this process's.
        options: Those of `started`.

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
    command: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    children: int = 0,
    fresh: bool = False,
    **options: Any,
) -> Iterator[subprocess.Popen[Any]]:
    """A process in a session of its own; if it has not ended after the block, it is ended with all that it started.

    Args:
        command: What to run.
        env: Its environment; default this process's.
        children: How many Python processes the command starts in its turn, such as ranks: they are forked as well.
        fresh: Whether Python starts anew, rather than by a fork.
        options: Those of `subprocess.Popen`.
    """
    mark = f"{session_mark()}.{uuid.uuid4().hex}"
    words = list(map(str, command))
    environment = {**(os.environ if env is None else env), MARK: mark}
    kind = subprocess.Popen if fresh or not _can_be_forked(words, environment) else functools.partial(Forked, children)
    process = kind(words, env=environment, start_new_session=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            end(marked(mark, process.pid))
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()


class Forked(subprocess.Popen[Any]):
    """A Python process that the server forks: it waits for this process's child, and tells how it ended."""

    def __init__(self, children: int, arguments: Sequence[str], **options: Any) -> None:
        self._children = children
        super().__init__(arguments, **options)

    def _execute_child(self, args: Any, *rest: Any) -> None:
        _, _, _, _, folder, environment, _, _, _, into, into_here, out_here, out, errors_here, errors, *_ = rest
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(_server())
        folder = os.fspath(folder or os.getcwd())
        request = {"arguments": args[1:], "environment": environment, "folder": folder, "children": self._children}
        streams = (0 if into == -1 else into, 1 if out == -1 else out, 2 if errors == -1 else errors)
        process_server.send(self._connection, {**request, "session": True}, streams)
        self._close_pipe_fds(into, into_here, out_here, out, errors_here, errors)  # type: ignore[attr-defined]
        self.pid = process_server.receive(self._connection)[0]
        assert self.pid, "the server of processes has ended"
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags & os.WNOHANG and not select.select([self._connection], [], [], 0)[0]:
            return 0, 0
        status = process_server.receive(self._connection)[0]
        assert status is not None, "the server of processes has ended"
        self._connection.close()
        return self.pid, status

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self._handle_exitstatus(status)  # type: ignore[attr-defined]
        return self.returncode


_servers: list[subprocess.Popen[bytes]] = []


def end_server() -> None:
    """Ends the server of processes, if one was started."""
    while _servers:
        server = _servers.pop()
        # Rather than by the end of its input, which a child of this process may hold as well.
        server.kill()
        server.communicate()
    _server.cache_clear()


@functools.cache
def _server() -> str:
    """Starts the server of this process, which ends with it; its address."""
    address = f"\0mmfusion-tests-{uuid.uuid4().hex}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen()
    program = f"import process_server, socket; process_server.serve(socket.socket(fileno={listener.fileno()}))"
    room = "room for the command lines of its children ".ljust(4000, ".")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [sys.executable, "-c", program, room],
        env={**os.environ, "PYTHONPATH": path, MARK: session_mark()},
        stdin=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        start_new_session=True,
    )
    listener.close()
    _servers.append(server)
    return address


def _can_be_forked(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    if not sys.platform.startswith("linux") or command[0] != sys.executable:
        return False
    return process_server.fixed(environment) == process_server.fixed(os.environ)


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


def marked(mark: str, session: int | None = None) -> dict[int, str]:
    """Command lines of living processes with a mark or of a session, but for this process and its parents.

    A process that was forked shows the environment that the other one began with: this one (its children are found),
    or the server of processes, which has the mark of all tests.
    """
    alive = dict(_living())
    needle = f"{MARK}={mark}".encode()
    found = {pid for pid in alive if needle in _read(pid, "environ")}
    found |= {pid for pid, (parent, _, _) in alive.items() if parent == os.getpid() and mark == session_mark()}
    found |= {pid for pid, (_, own, _) in alive.items() if own == session}
    return {pid: alive[pid][2] for pid in sorted(found - _parents_of(os.getpid(), alive))}


def end(pids: Mapping[int, str]) -> None:
    """Kills processes."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _living() -> Iterator[tuple[int, tuple[int, int, str]]]:
    """Process, its parent, session and command line."""
    for folder in PROC.glob("[0-9]*"):
        state, _, rest = _read(int(folder.name), "stat").rpartition(b")")[2].strip().partition(b" ")
        if state and state != b"Z":
            line = _read(int(folder.name), "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
            parent, _, session, *_ = map(int, rest.split()[:3])
            yield int(folder.name), (parent, session, line)


def _parents_of(pid: int, alive: Mapping[int, tuple[int, int, str]]) -> set[int]:
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
