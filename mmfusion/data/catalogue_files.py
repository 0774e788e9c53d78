"""The files of a catalogue: finding the folder and its Parquet files, and reading them a few megabytes at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.data.catalogue_error import CatalogueError, reading

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_BATCH_BYTES = 16 << 20
"""About how much of a table is held in memory at a time while it is converted, in bytes."""
_MAX_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Folder:
    """A folder of Parquet files on any file system that fsspec knows."""

    name: str
    fs: Any
    root: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, fsspec.get_filesystem_class("file"))

    @property
    def photo_root(self) -> str | None:
        return self.root if self.is_local else None

    def files(self, table: str) -> list[str]:
        """Paths of a table's files, sorted by name."""
        with reading(f"catalogue {self.name!r}", "Check the address and your access to it."):
            names = self._list(self.root)
            nested = self._list(f"{self.root}/{table}") if names.get(table) == "directory" else {}
        layouts = {
            f"{table}.parquet": [f"{table}.parquet"] if f"{table}.parquet" in names else [],
            f"{table}-*.parquet": [name for name in names if re.fullmatch(rf"{table}-.*\.parquet", name)],
            f"{table}/*.parquet": [f"{table}/{name}" for name in nested if name.endswith(".parquet")],
        }
        found = [layout for layout, paths in layouts.items() if paths]
        if not found:
            here = ", ".join(sorted(names)[:8]) or "nothing"
            raise CatalogueError(
                f"table {table!r} is missing (the folder holds: {here})",
                f"catalogue {self.name!r}",
                f"Add {' or '.join(layouts)}.",
            )
        if len(found) > 1:
            raise CatalogueError(
                f"table {table!r} is there more than once: {' and '.join(found)}",
                f"catalogue {self.name!r}",
                "Keep one of them.",
            )
        return [f"{self.root}/{path}" for path in sorted(layouts[found[0]])]

    def _list(self, path: str) -> dict[str, str]:
        """Kind of each entry (``file`` or ``directory``) by its name; links count as what they lead to."""
        kinds = {}
        for entry in self.fs.ls(path, detail=True):
            linked = entry.get("islink") and self.fs.isdir(entry["name"])
            kinds[entry["name"].rstrip("/").rsplit("/", 1)[-1]] = "directory" if linked else entry["type"]
        return kinds


def find_folder(name: str) -> Folder | None:
    """The folder that a source means, or None where it is a Hub data set id."""
    remedy = "Give a folder, a URL of a folder, or a Hub data set id such as 'organisation/name'."
    if "://" in name:
        with reading(f"catalogue {name!r}", remedy):
            fs, root = fsspec.url_to_fs(name)
            is_folder = fs.isdir(root)
        if not is_folder:
            raise CatalogueError("there is no such folder", f"catalogue {name!r}", remedy)
        return Folder(name, fs, root.rstrip("/"))
    path = os.path.abspath(os.path.expanduser(name))
    if os.path.isdir(path):
        return Folder(name, fsspec.filesystem("file"), path)
    if os.path.exists(path):
        raise CatalogueError("this is a file, not a folder", f"catalogue {name!r}", "Give the folder that holds it.")
    if _HUB_ID.fullmatch(name):
        return None
    raise CatalogueError("there is no such folder", f"catalogue {name!r}", remedy)


def refuse_revision(name: str, revision: str | None) -> None:
    """Refuses a revision given for a folder, which has none."""
    if revision is not None:
        raise CatalogueError(
            f"revision={revision!r} for a folder", f"catalogue {name!r}", "Only a Hub data set has revisions: drop it."
        )


@dataclass(frozen=True)
class Batch:
    """Some rows of one file, and the number of the first of them."""

    table: pa.Table
    start: int


def read_batches(folder: Folder, path: str, schema: pa.Schema) -> Iterator[Batch]:
    """Reads the columns of ``schema``, as its types, a few megabytes at a time."""
    place = f"catalogue {folder.name!r}, file {os.path.relpath(path, folder.root)!r}"
    remedy = "Write the file again, and check the space in the cache folder."
    start = 0
    with reading(place, remedy), folder.fs.open(path, "rb") as handle:
        file = pq.ParquetFile(handle, buffer_size=1 << 20, pre_buffer=False)
        for record_batch in file.iter_batches(_batch_rows(file.metadata, schema.names), columns=schema.names):
            table = pa.Table.from_batches([record_batch]).select(schema.names).cast(schema)
            yield Batch(table, start)
            start += len(table)


def _batch_rows(metadata: pq.FileMetaData, columns: Sequence[str]) -> int:
    """Rows of which these columns take about `_BATCH_BYTES` together."""
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    parts = [group.column(at) for group in groups for at in range(group.num_columns)]
    size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)
    return int(min(max(_BATCH_BYTES * metadata.num_rows // max(size, 1), 1), _MAX_BATCH_ROWS))
