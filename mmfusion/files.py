"""Files that are whole or not there."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name once all of it is on the disk, so that nobody ever finds a half of it.

    It is written beside its place, as a rename is atomic within one file system only. An exception in the block leaves
    what had the name before; so does a kill, which also leaves a file that `is_partial`.
    """
    partial = path.with_name(f".{path.name}.partial")
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


def replace_text(path: Path, text: str) -> None:
    """Writes a text as a `whole_file`."""
    with whole_file(path) as file:
        file.write(text.encode())


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
    if os.name == "nt":
        # Windows neither opens folders nor flushes what was opened for reading.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
