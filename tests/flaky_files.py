"""A file system that fails as networks do: `flaky:///folder` reads local files, some bytes of which are hard to get."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

SPECIFICATION = "FLAKY_READS"


class FlakyFile:
    """Fails to read a range of bytes as often as a file in the temporary folder says."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()
        data: bytes = self._file.read(size)
        ending, first, last, counter = os.environ[SPECIFICATION].split("|")
        if self._path.endswith(ending) and start < int(last) and start + len(data) > int(first):
            left = int(Path(counter).read_text())
            if left:
                Path(counter).write_text(str(left - 1))
                raise OSError("connection reset by peer")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FlakyFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class FlakyFileSystem(LocalFileSystem):
    protocol = "flaky"

    def open(self, path: str, mode: str = "rb", **options: Any) -> FlakyFile:
        return FlakyFile(super().open(path, mode, **options), path)


def specification(ending: str, place: tuple[int, int], counter: Path, failures: int) -> str:
    """What the environment variable says: which bytes of which file fail, and how often."""
    counter.write_text(str(failures))
    return f"{ending}|{place[0]}|{place[1]}|{counter}"


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
