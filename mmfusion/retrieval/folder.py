"""Replace a folder as a whole, so that nobody ever reads half of it."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(folder: Path, *, files: frozenset[str], overwrite: bool) -> Iterator[Path]:
    """Give a hidden folder beside `folder` to write into, and put it into place at the end.

    A reader sees the old folder or the new one, complete. If writing fails, the old one stays as it was.

    Args:
        folder: where the files belong.
        files: names that the folder may hold; a folder with anything else in it is never replaced.
        overwrite: whether a folder with such files may be replaced.

    Raises:
        FileExistsError: the folder holds something that must not be replaced.
    """
    _check_replaceable(folder, files, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:12]
    new, old = (folder.parent / f".{folder.name}.{kind}-{token}" for kind in ("new", "old"))
    new.mkdir()
    try:
        yield new
        for path in new.iterdir():
            _sync(path)
        _sync(new)
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
        _sync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
