"""One job at a time in an output folder: a lock of the operating system, which ends with the process that holds it.

The lock is `flock` on a file in the folder, which names its owner. A kill leaves the file and not the lock, so that the
next job takes it over. All ranks of a job count as one: the first one holds the lock, and the others know it by its
job. Over NFS the lock holds between machines unless the mount has `local_lock`. Where a file system has no locks, and
on Windows, a second job is not noticed.
"""

import errno
import json
import logging
import os
import socket
import sys
import time
import weakref
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from mmfusion.model.errors import MMFusionError

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

NAME = ".mmfusion.lock"
# What launchers set to the same value for all ranks of a job.
_OF_A_JOB = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM)
# How often a lock is tried, and seconds in between.
_LOOKS, _PAUSE = 4, 0.1


class RunError(MMFusionError):
    """An output folder cannot be used."""


class _HeldFile:
    """An open file with a lock on it, which ends when nobody in this process refers to it any more."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, _let_go, os.getpid(), path, descriptor)


class OutputLock:
    """A lock that is held until `release`, or until nobody refers to it, or until the process ends, however it does."""

    def __init__(self, file: _HeldFile | None = None) -> None:
        self._file = file

    def release(self) -> None:
        """Lets go; a second time does nothing, and others in this process that have taken the lock still have it."""
        self._file = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.release()


# Of this process, by device and inode of the file. A child that is forked has none.
_held: weakref.WeakValueDictionary[tuple[int, int], _HeldFile] = weakref.WeakValueDictionary()


def _let_go(process: int, path: Path, descriptor: int) -> None:
    if os.getpid() == process:
        # Still under the lock, so that it is no other job's. Whoever has opened the file already looks again.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def take_lock(folder: str | os.PathLike[str], *, beside: bool = False) -> OutputLock:
    """Takes the lock of an output folder; a process that has it gets it again.

    Args:
        folder: Output folder, created if missing unless `beside`.
        beside: Puts the file next to the folder, which is going to be replaced as a whole.

    Raises:
        RunError: Another job has it (the message says which process, where and since when), or `folder` is a file.
    """
    folder = Path(folder).absolute()
    path = folder.with_name(f".{folder.name}{NAME}") if beside else folder / NAME
    if folder.exists() and not folder.is_dir():
        raise RunError(f"The output folder {folder} is a file; give another --output.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        return OutputLock()
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            # Nothing can be written there, which is found, or does not matter, later.
            return OutputLock()
        known = _held.get(_place(descriptor))
        try:
            taken = known is None and _try_lock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s has no file locks: another job with this --output would not be noticed", path.parent)
            return OutputLock()
        if taken and _is_named(path, descriptor):
            break
        owner = _read_owner(path)
        os.close(descriptor)
        if known is not None:
            return OutputLock(known)
        if not taken:
            raise _in_use(folder, owner)
        # The job before has released it and removed its file in between.
    own = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now().astimezone().isoformat(" ", "seconds"),
        "job": _job(),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(own).encode(), 0)
    file = _held[_place(descriptor)] = _HeldFile(path, descriptor)
    return OutputLock(file)


def refuse_lock_of_another_job(folder: Path) -> None:
    """Raises what `take_lock` raises on the first rank, on another one, which takes no lock.

    Raises:
        RunError: Another job than that of this process has the lock of the folder.
    """
    path = folder / NAME
    if sys.platform == "win32" or _is_ours(_read_owner(path)):
        return
    with suppress(OSError), path.open("rb") as file:
        # What a killed job left is not locked. Otherwise the owner has written its name by now.
        if not _try_lock(file.fileno(), fcntl.LOCK_SH) and not _is_ours(_read_owner(path)):
            raise _in_use(folder, _read_owner(path))


def _is_ours(owner: dict[str, Any]) -> bool:
    # Lightning starts the other ranks from the first one, which is known by its process.
    started_us = owner.get("process") == os.getppid() and owner.get("host") == socket.gethostname()
    return started_us or (_job() is not None and owner.get("job") == _job())


def _try_lock(descriptor: int, kind: int) -> bool:
    for _ in range(_LOOKS):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            # Another rank may be looking, or the owner may be about to write who it is.
            time.sleep(_PAUSE)
    return False


def _in_use(folder: Path, owner: dict[str, Any]) -> RunError:
    who = "process {process} on {host}, since {started}".format(**owner) if owner else "another process"
    return RunError(
        f"The output folder {folder} is in use by another job ({who}); wait until it has ended, end it, or give "
        "another --output."
    )


def _job() -> list[str | None] | None:
    values = [os.environ.get(name) for name in _OF_A_JOB]
    return values if any(values) else None


def _read_owner(path: Path) -> dict[str, Any]:
    """Who has, or had, a lock; empty where the file does not say."""
    with suppress(OSError, ValueError):
        owner = json.loads(path.read_text("utf-8"))
        return {name: owner.get(name) for name in ("process", "host", "started", "job")}
    return {}


def _place(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _is_named(path: Path, descriptor: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _let_children_go() -> None:
    # A worker that is forked has the open file, too, and would hold the lock when this process has been killed.
    for file in _held.values():
        os.close(file.descriptor)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_children_go)
