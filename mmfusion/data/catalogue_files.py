"""The files of a catalogue: finding the folder and its Parquet files, and reading them a few megabytes at a time."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import fsspec

from mmfusion.data.catalogue_error import CatalogueError, reading
from mmfusion.files import is_hub_id


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
    if is_hub_id(name):
        return None
    raise CatalogueError("there is no such folder", f"catalogue {name!r}", remedy)


def refuse_revision(name: str, revision: str | None) -> None:
    """Refuses a revision given for a folder, which has none."""
    if revision is not None:
        raise CatalogueError(
            f"revision={revision!r} for a folder", f"catalogue {name!r}", "Only a Hub data set has revisions: drop it."
        )
