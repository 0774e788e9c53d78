"""Replace a folder as a whole, so that nobody ever reads half of it."""

import ctypes
import glob
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmfusion.files import sync

if sys.platform != "win32":
    import fcntl


@contextmanager
def replacing(folder: Path, *, files: frozenset[str], overwrite: bool) -> Iterator[Path]:
    """Give a hidden folder beside `folder` to write into, and put it into place at the end.

    A reader sees the old folder or the new one, complete. If writing fails or is killed, the old one stays as it was;
    what a kill left beside it is removed when the folder is replaced again. (Where the system cannot exchange two
    names, there is no folder for a moment; killed then, the old one is called `.NAME.old-…`.)

    Args:
        folder: where the files belong.
        files: names that the folder may hold; a folder with anything else in it is never replaced.
        overwrite: whether a folder with such files may be replaced.

    Raises:
        FileExistsError: the folder holds something that must not be replaced.
    """
    _check_replaceable(folder, files, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    token = uuid.uuid4().hex[:12]
    new, old = (folder.parent / f".{folder.name}.{kind}-{token}" for kind in ("new", "old"))
    new.mkdir()
    try:
        with _held(new):
            yield new
            for path in new.iterdir():
                sync(path)
            sync(new)
            _put_in_place(new, folder, old)
        sync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _put_in_place(new: Path, folder: Path, old: Path) -> None:
    if not folder.exists():
        os.rename(new, folder)
    elif not _exchanged(new, folder):
        os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            os.rename(old, folder)
            raise


def _exchanged(one: Path, other: Path) -> bool:
    """Exchanges two names at once, where the system can."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2
    failed: int = rename(here, os.fsencode(one), here, os.fsencode(other), exchange)
    return failed == 0


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Marks a folder as being written, until the end of the block or of the process."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Removes new folders whose writer was killed; without locks none is known to be one."""
    if sys.platform == "win32":
        return
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.new-*"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _check_replaceable(folder: Path, files: frozenset[str], overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder to save into")
    found = {path.name for path in folder.iterdir()}
    foreign = sorted(found - files)
    if foreign:
        raise FileExistsError(f"{folder} also holds {foreign[0]!r}, which saving would delete; name another folder")
    if found and not overwrite:
        raise FileExistsError(f"{folder} already holds {', '.join(sorted(found))}; pass overwrite=True to replace it")
