"""The files that an import reads: given as files, folders, globs, URLs or a Hub data set, compressed or not."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import fsspec

from mmfusion.data.catalogue_schema import CatalogueError, reading
from mmfusion.files import is_hub_id

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_ARCHIVES = (".zip", ".rar", ".7z")
_PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class SourceFile:
    """A file on this machine.

    Attributes:
        path: Where it is.
        name: What errors and reports call it: its path as given, or within the folder that was given.
    """

    path: Path
    name: str

    @property
    def suffix(self) -> str:
        """Lower-case suffix, without that of a compression: ".csv" of "Export.CSV.gz"."""
        name = self.path.name.lower()
        for ending in _COMPRESSED:
            name = name.removesuffix(ending)
        return os.path.splitext(name)[1]

    @property
    def is_photo(self) -> bool:
        """Whether its suffix is that of a photo."""
        return self.suffix in _PHOTOS

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its bytes, without the compression.

        Raises:
            CatalogueError: It cannot be read, at once or in the middle.
        """
        with reading(self.name, "Check that the file is complete and may be read."):
            with self.path.open("rb") as raw:
                # A feed that was fetched may be compressed and not say so in its name.
                compression = "gzip" if raw.read(2) == b"\x1f\x8b" else "infer"
            with fsspec.open(os.fspath(self.path), "rb", compression=compression) as file:
                yield file

    @cached_property
    def head(self) -> bytes:
        """Its first 64 KiB, to recognise a format by."""
        with self.open() as file:
            return bytes(file.read(HEAD_BYTES))


@dataclass(frozen=True)
class Source:
    """What an import was given.

    Attributes:
        given: The arguments.
        files: All files behind them, each once, those of a folder sorted by name.
    """

    given: tuple[str, ...]
    files: tuple[SourceFile, ...]

    def __str__(self) -> str:
        return " ".join(self.given)

    @cached_property
    def tables(self) -> list[SourceFile]:
        """The files that are no photos."""
        return [file for file in self.files if not file.is_photo]

    @cached_property
    def folders(self) -> list[Path]:
        """Folders that relative paths of photos may start from: those given, and those of the files given."""
        places = [Path(one).absolute() for one in self.given if os.path.exists(one)]
        places += [file.path.absolute() for file in self.files if not file.is_photo]
        return list(dict.fromkeys(place if place.is_dir() else place.parent for place in places))


def open_source(given: Sequence[str], downloads: Path) -> Source:
    """Finds the files behind files, folders, globs, URLs (of fsspec) and ids of Hub data sets.

    Args:
        given: At least one of them.
        downloads: Folder for what is not on this machine; what is there already is not fetched again.

    Raises:
        CatalogueError: Nothing is found, or it cannot be fetched.
    """
    files: dict[Path, SourceFile] = {}
    for one in given:
        for file in _find(one, downloads):
            files.setdefault(file.path, file)
    if not files:
        raise CatalogueError("no files are found", " ".join(given) or "import", "Give a file, a folder or a URL.")
    return Source(tuple(given), tuple(files.values()))


def _find(given: str, downloads: Path) -> Iterator[SourceFile]:
    path = Path(os.path.expanduser(given))
    if "://" in given:
        yield _fetch(given, downloads)
    elif path.is_dir():
        yield from _files_below(path)
    elif path.suffix.lower() in _ARCHIVES:
        raise CatalogueError("is an archive", given, "Unpack it and give the folder.")
    elif path.is_file():
        yield SourceFile(path, given)
    elif matches := sorted(glob.glob(os.fspath(path), recursive=True)):
        for match in matches:
            yield from _files_below(Path(match)) if os.path.isdir(match) else [SourceFile(Path(match), match)]
    elif is_hub_id(given):
        yield from _files_below(_from_hub(given))
    else:
        remedy = "Check the spelling; give a file, a folder, a glob, a URL or the id of a data set on the Hub."
        raise CatalogueError("there is no such file or folder", given, remedy)


def _files_below(folder: Path) -> Iterator[SourceFile]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(place, name)
                yield SourceFile(path, path.relative_to(folder).as_posix())


def _fetch(url: str, downloads: Path) -> SourceFile:
    name = url.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    with reading(url.split("?")[0], "Check the address and your access to it."):
        # Looks whether the file has changed since it was fetched, so that tomorrow's export is read tomorrow.
        local = fsspec.open_local(
            f"filecache::{url}", filecache={"cache_storage": os.fspath(downloads), "check_files": True}
        )
        path = Path(local if isinstance(local, str) else local[0])
        target = downloads / name
        target.unlink(missing_ok=True)
        target.symlink_to(path.absolute())
    return SourceFile(target, name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    with reading(f"Hub data set {name!r}", "Check the id, the network and your login; no such folder is here either."):
        return Path(snapshot_download(name, repo_type="dataset"))
