"""One job at a time in an output folder: a lock of the operating system, which ends with the process that holds it.

The lock is `flock` on a file in the folder, which says whose it is. A kill leaves the file and not the lock, so that
the next job takes it over. All ranks of a job count as one: the first one holds the lock, and the others know it by its
job. Over NFS the lock holds between machines unless the mount has `local_lock`. Where a file system has no locks, and
on Windows, a second job is not noticed.
"""

import errno
import json
import logging
import os
import socket
import sys
import weakref
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from mmfusion.model.errors import MMFusionError

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("mmfusion")

NAME = ".mmfusion.lock"
# What launchers give to all ranks of a job alike.
_OF_A_JOB = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM)


class RunError(MMFusionError):
    """An output folder cannot be used."""


class _HeldFile:
    """An open file with a lock on it, and how many in this process have taken it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor, self.holders = path, descriptor, 0

    def let_go(self) -> None:
        self.holders -= 1
        if self.holders == 0 and _held.pop(_place(self.descriptor), None) is self:
            # Still under the lock, so that it is no other job's. Whoever has opened the file already looks again.
            self.path.unlink(missing_ok=True)
            os.close(self.descriptor)


# Of this process, by device and inode of the file. A child that is forked has none.
_held: dict[tuple[int, int], _HeldFile] = {}


class OutputLock:
    """A lock that is held until `release`, or until nobody refers to it, or until the process ends, in whatever way."""

    def __init__(self, file: _HeldFile | None) -> None:
        self._finalizer = None
        if file is not None:
            file.holders += 1
            self._finalizer = weakref.finalize(self, _let_go_in, os.getpid(), file)

    def release(self) -> None:
        """Lets go; a second time does nothing."""
        if self._finalizer is not None:
            self._finalizer()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.release()


def _let_go_in(process: int, file: _HeldFile) -> None:
    if os.getpid() == process:
        file.let_go()


def take_lock(folder: str | os.PathLike[str], *, beside: bool = False) -> OutputLock:
    """Takes the lock of an output folder; a process that has it gets it again.

    Args:
        folder: Output folder, created if missing unless `beside`.
        beside: Puts the file beside the folder, which is going to be replaced as a whole.

    Raises:
        RunError: Another job has it (the message says which process, where and since when), or `folder` is a file.
    """
    folder = Path(folder).absolute()
    path = folder.with_name(f".{folder.name}{NAME}") if beside else folder / NAME
    if folder.exists() and not folder.is_dir():
        raise RunError(f"The output folder {folder} is a file; give another --output.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        return OutputLock(None)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            # Nothing can be written there, which is found, or does not matter, later.
            return OutputLock(None)
        known = _held.get(_place(descriptor))
        if known is not None:
            os.close(descriptor)
            return OutputLock(known)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError) and error.errno not in _NO_LOCKS:
                raise
            owner = _read(descriptor)
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise RunError(_in_use(folder, owner)) from None
            log.warning("%s has no file locks: another job with this --output would not be noticed", path.parent)
            return OutputLock(None)
        if _is_named(path, descriptor):
            break
        # The job before has let go and removed its file in between.
        os.close(descriptor)
    _write(descriptor)
    file = _held[_place(descriptor)] = _HeldFile(path, descriptor)
    return OutputLock(file)


def is_held_by_our_job(folder: Path) -> bool:
    """Whether the first rank of this process's job has the lock of a folder; True where that cannot be told."""
    job = _job()
    if sys.platform == "win32" or job is None:
        return True
    try:
        owner = json.loads((folder / NAME).read_text("utf-8"))
        # Lightning starts the other ranks from the first one, which is known by its process.
        started_us = owner["process"] == os.getppid() and owner["host"] == socket.gethostname()
        return bool(started_us or owner["job"] == job)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _in_use(folder: Path, owner: dict[str, Any] | None) -> str:
    who = "another process"
    if owner is not None:
        who = f"process {owner['process']} on {owner['host']}, since {owner['started']}"
    return (
        f"The output folder {folder} is in use by another job ({who}); wait until it has ended, end it, or give "
        "another --output."
    )


def _job() -> list[str | None] | None:
    values = [os.environ.get(name) for name in _OF_A_JOB]
    return values if any(values) else None


def _write(descriptor: int) -> None:
    owner = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now().astimezone().isoformat(" ", "seconds"),
        "job": _job(),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _read(descriptor: int) -> dict[str, Any] | None:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return {name: owner[name] for name in ("process", "host", "started")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _place(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _is_named(path: Path, descriptor: int) -> bool:
    with suppress(OSError):
        found = path.stat()
        return (found.st_dev, found.st_ino) == _place(descriptor)
    return False


def _let_children_go() -> None:
    # A worker that is forked has the open file, too, and would hold the lock when this process has been killed.
    for file in _held.values():
        os.close(file.descriptor)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_children_go)
