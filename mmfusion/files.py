"""Files and folders that are whole or not there, checksums, and what is a Hub id rather than a path."""

import ctypes
import glob
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_id(source: object) -> bool:
    """Whether this is a Hub id (`org/name`) and no path: neither such a file nor a folder `org` is on this machine."""
    return (
        isinstance(source, str)
        and HUB_ID.fullmatch(source) is not None
        and not Path(source).exists()
        and not Path(source).parent.is_dir()
    )


def absolute_place(source: str) -> str:
    """A file or folder of this machine as an absolute path; a URL or Hub id as it is."""
    return str(Path(source).absolute()) if Path(source).exists() else source


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file, read block by block."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path, *, concurrent: bool = False) -> Iterator[BinaryIO]:
    """A file to write that gets its name once all of it is on the disk, so that no reader finds half of it.

    It is written next to its place, as a rename is atomic within one file system only. An exception in the block leaves
    what had the name before; so does a kill, which also leaves a file that `is_partial`.

    Args:
        path: Where the file belongs.
        concurrent: Other processes, perhaps on other machines, may write the same file at the same time; a name of
            its own keeps each out of the others' way. Otherwise the next writer overwrites what a kill left.
    """
    own = f".{secrets.token_hex(4)}" if concurrent else ""
    partial = path.with_name(f".{path.name}{own}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def is_partial(path: Path) -> bool:
    """Whether this is what a kill left of a file that was being written."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def replace_text(path: Path, text: str, *, concurrent: bool = False) -> None:
    """Writes a text as a `whole_file`."""
    with whole_file(path, concurrent=concurrent) as file:
        file.write(text.encode())


@contextmanager
def whole_folder(folder: Path, *, files: frozenset[str] | None, overwrite: bool) -> Iterator[Path]:
    """A hidden folder next to `folder` to write into, which takes its place when the block ends.

    A reader sees the old folder or the new one, complete. If writing fails or is killed, the old one stays as it was;
    what a kill left next to it is removed when the folder is replaced again. (Where the system cannot exchange two
    names, there is no folder for a moment; killed then, the old one is called `.NAME.old-…`.)

    Args:
        folder: Where the files belong.
        files: Names that the folder may hold; a folder with anything else in it is never replaced. None: any.
        overwrite: Whether a folder with such files may be replaced.

    Raises:
        FileExistsError: The folder holds something that must not be replaced.
    """
    _check_replaceable(folder, files, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    token = secrets.token_hex(6)
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


def move_files(source: Path, target: Path, last: Sequence[str]) -> None:
    """Moves the files of a folder into another one on the same file system, each of them whole, and removes the folder.

    Args:
        source: Folder without subfolders.
        target: Folder; files of the same names are replaced.
        last: Names of files that others are known by: they follow, in this order, once all others are in place.
    """
    files = sorted(path for path in source.iterdir() if path.name not in last)
    for path in [*files, *(source / name for name in last)]:
        sync(path)
        os.replace(path, target / path.name)
    sync(target)
    source.rmdir()


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name, or a copy where the file system has no links; `target` is replaced.

    Of a symbolic link, as the cache of the Hub is made of, the file behind it gets the name.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def sync(path: Path) -> None:
    """Has the disk hold a file's content, or the names in a folder."""
    # Windows neither opens folders nor flushes what was opened for reading.
    if os.name != "nt":
        with _opened(path) as descriptor:
            os.fsync(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Marks a folder as being written, until the end of the block or of the process."""
    if sys.platform == "win32":
        yield
        return
    with _opened(folder) as descriptor:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _remove_leftovers(folder: Path) -> None:
    """Removes new folders whose writer was killed; without locks none is known to be one."""
    if sys.platform == "win32":
        return
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.new-*"):
        with suppress(OSError), _opened(path) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)


def _check_replaceable(folder: Path, files: frozenset[str] | None, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder to save into")
    found = {path.name for path in folder.iterdir()}
    foreign = sorted(found - (found if files is None else files))
    if foreign:
        raise FileExistsError(f"{folder} also holds {foreign[0]!r}, which saving would delete; name another folder")
    if found and not overwrite:
        raise FileExistsError(f"{folder} already holds {', '.join(sorted(found))}; pass overwrite=True to replace it")
