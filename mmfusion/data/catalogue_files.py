"""The tables of a catalogue where they are kept: Parquet files in a folder, on any file system, or the Hub."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from mmfusion.data.catalogue_schema import CatalogueError, as_types, lacks_values, reading, target_schema
from mmfusion.data.hub_ids import check_readable
from mmfusion.files import is_hub_id, whole_file

# About how much of a table is in memory at a time, in bytes.
_BATCH_BYTES = 16 << 20
_MAX_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Folder:
    """A folder of Parquet files on any file system that fsspec knows."""

    name: str
    fs: Any
    root: str

    @property
    def photo_root(self) -> str | None:
        """Where photos are that are stored as a path; only in a local folder."""
        return self.root if isinstance(self.fs, fsspec.get_filesystem_class("file")) else None

    def place(self, path: str) -> str:
        """A file as errors name it."""
        return f"catalogue {self.name!r}, file {os.path.relpath(path, self.root)!r}"

    def files(self, table: str) -> list[str]:
        """Paths of a table's files, sorted by name."""
        with reading(f"catalogue {self.name!r}", "Check the address and your access to it."):
            names = self._list(self.root)
            nested = self._list(f"{self.root}/{table}") if self.fs.isdir(f"{self.root}/{table}") else []
        layouts = {
            f"{table}.parquet": [name for name in names if name == f"{table}.parquet"],
            f"{table}-*.parquet": [name for name in names if re.fullmatch(rf"{table}-.*\.parquet", name)],
            f"{table}/*.parquet": [f"{table}/{name}" for name in nested if name.endswith(".parquet")],
        }
        found = [layout for layout, paths in layouts.items() if paths]
        if not found:
            here = ", ".join(names[:8]) or "nothing"
            problem, remedy = f"is missing (the folder holds: {here})", f"Add {' or '.join(layouts)}."
            if table != "products" and "import.md" in names:
                remedy = (
                    "Import it with --clicks or --judgements; on products alone, use mmfusion fit, or mmfusion audit "
                    "--queries false."
                )
        else:
            problem, remedy = f"is there more than once: {' and '.join(found)}", "Keep one of them."
        if len(found) != 1:
            raise CatalogueError(f"table {table!r} {problem}", f"catalogue {self.name!r}", remedy)
        return [f"{self.root}/{path}" for path in sorted(layouts[found[0]])]

    def _list(self, path: str) -> list[str]:
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in self.fs.ls(path, detail=False))


def find_folder(name: str, revision: str | None = None) -> Folder | None:
    """The folder that a source means, or None where it is a Hub data set id.

    Raises:
        CatalogueError: There is no such folder, or it is given with a revision.
    """
    place = f"catalogue {name!r}"
    remedy = "Give a folder, a URL of a folder, or a Hub data set id such as 'organisation/name'."
    if "://" in name:
        with reading(place, remedy):
            fs, root = fsspec.url_to_fs(name)
            is_folder = fs.isdir(root)
    else:
        fs, root = fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(name))
        is_folder = os.path.isdir(root)
        if os.path.isfile(root):
            raise CatalogueError("this is a file, not a folder", place, "Give the folder that holds it.")
    if is_folder and revision is not None:
        raise CatalogueError(
            f"revision={revision!r} for a folder", place, "Only a Hub data set has revisions: drop it."
        )
    if not is_folder and not is_hub_id(name):
        raise CatalogueError("there is no such folder", place, remedy)
    return Folder(name, fs, root.rstrip("/")) if is_folder else None


class ParquetTable:
    """A table of a catalogue as Parquet files; opening it reads their footers.

    Attributes:
        files: Paths of the files.
        footers: Metadata of each file.
        schema: Types that the columns are read as.
        fingerprint: What changes when a file does.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        """Opens the files of a table.

        Raises:
            CatalogueError: There are none, one is unreadable or lacks a column, or none has rows.
        """
        self.folder, self.name, self.files = folder, name, folder.files(name)
        self.footers: list[pq.FileMetaData] = []
        schemas: list[pa.Schema] = []
        digest = hashlib.sha256()
        for path in self.files:
            place = folder.place(path)
            remedy = "Check that it is a complete Parquet file, and write it again if it is not."
            with reading(place, remedy), folder.fs.open(path, "rb") as handle:
                self.footers.append(pq.ParquetFile(handle).metadata)
                digest.update(self._state(path, handle))
            schemas.append(target_schema(self.footers[-1].schema.to_arrow_schema(), name, place))
            different = sorted(set(schemas[0].names) ^ set(schemas[-1].names))
            if different:
                first = os.path.basename(self.files[0])
                remedy = f"Write all files with the columns of {first!r}: {', '.join(schemas[0].names)}."
                raise CatalogueError(f"column {different[0]!r} is not in all files of table {name!r}", place, remedy)
        if not sum(footer.num_rows for footer in self.footers):
            remedy = "Write at least one row to it."
            raise CatalogueError(f"table {name!r} has no rows", f"catalogue {folder.name!r}", remedy)
        with reading(f"catalogue {folder.name!r}, files of table {name!r}", "Write all of them with the same types."):
            self.schema = pa.unify_schemas(schemas, promote_options="permissive")
        digest.update(str(self.schema).encode())
        self.fingerprint = digest.hexdigest()[:16]

    def _state(self, path: str, handle: Any) -> bytes:
        """What changes when the file does: its footer (sizes and statistics of all columns), and its time or tag."""
        size = handle.seek(-8, 2) + 8
        footer = int.from_bytes(handle.read(4), "little")
        handle.seek(size - 8 - footer)
        info = self.folder.fs.info(path)
        state = [str(info[key]) for key in ("mtime", "ETag", "etag", "LastModified", "created") if key in info]
        return hashlib.sha256(handle.read(footer) + repr((size, state)).encode()).digest()

    def _batches(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """Rows of the columns of ``schema``, as its types, a few megabytes at a time."""
        for path, footer in zip(self.files, self.footers, strict=True):
            place, start = self.folder.place(path), 0
            remedy = "Write the file again, and check the space in the cache folder."
            with reading(place, remedy), self.folder.fs.open(path, "rb") as handle:
                file = pq.ParquetFile(handle, buffer_size=1 << 20, pre_buffer=False)
                for batch in file.iter_batches(_batch_rows(footer, schema.names), columns=schema.names):
                    yield as_types(pa.Table.from_batches([batch]), schema, place, start)
                    start += len(batch)

    def mapped(self, cache_dir: str, leave_out: Collection[str] = ()) -> datasets.Dataset:
        """The table, memory-mapped from a conversion in ``cache_dir`` that is made where it is missing.

        Columns to ``leave_out`` are neither read nor written; the table need not have them.
        """
        columns = [column for column in self.schema.names if column not in leave_out]
        part = "" if columns == self.schema.names else f"-{hashlib.sha256(repr(columns).encode()).hexdigest()[:8]}"
        mapped = os.path.join(cache_dir, f"{self.name}-{self.fingerprint}{part}.arrow")
        place = f"catalogue {self.folder.name!r}, table {self.name!r}"
        if not os.path.exists(mapped):
            with reading(f"cache folder {cache_dir!r}", "Give a folder that can be written to."):
                os.makedirs(cache_dir, exist_ok=True)
            with reading(place, "Write the table again, and check the space in the cache folder."):
                schema = pa.schema([self.schema.field(column) for column in columns])
                with _one_writer(Path(mapped)) as is_first:
                    if is_first:
                        self._convert(schema, Path(mapped))
        with reading(place, f"Convert columns of a rare type; if {mapped!r} is damaged, remove it."):
            return datasets.Dataset.from_file(mapped)

    def _convert(self, schema: pa.Schema, mapped: Path) -> None:
        """Writes the files as one Arrow stream that can be memory-mapped.

        `datasets.load_dataset` would do the same but holds a whole row group in memory, which may be the whole table.
        """
        try:
            with whole_file(mapped, concurrent=True) as file, pa.ipc.new_stream(file, schema) as writer:
                for table in self._batches(schema):
                    writer.write_table(table)
        finally:
            # Arrow's allocator keeps what it was given: up to 100 MiB in addition to everything that follows.
            pa.default_memory_pool().release_unused()


def load_from_hub(
    name: str, table: str, cache_dir: str, revision: str | None, leave_out: Collection[str] = ()
) -> datasets.Dataset:
    """One configuration of a Hub data set, all its splits in one memory-mapped table, photos undecoded.

    Columns to ``leave_out`` are not in the table, but are downloaded, as files come whole.
    """
    if not Path(cache_dir, name.replace("/", "___").lower()).is_dir():
        check_readable(name, "dataset")
    place = f"Hub data set {name!r}, configuration {table!r}"
    remedy = f"Check the id (there is no folder {name!r} either), the configuration's name, the network and your login."
    with reading(place, remedy), _without_progress_bars():
        splits = datasets.load_dataset(name, table, cache_dir=cache_dir, revision=revision, keep_in_memory=False)
        parts = list(splits.values())
    if len(parts) > 1 and table != "qrels" and "split" not in parts[0].column_names:
        problem = f"{len(parts)} splits ({', '.join(splits)}) but no column 'split'"
        raise CatalogueError(problem, place, "Add the column, or use one split.")
    with reading(place, "Write all splits with the same columns."):
        loaded = datasets.concatenate_datasets(parts)
    if len(loaded) == 0:
        raise CatalogueError("the table has no rows", place, "Push at least one row.")
    schema = loaded.features.arrow_schema.remove_metadata()
    target = target_schema(schema, table, place)
    with reading(place, "Convert the column on the Hub."):
        # Renewing the metadata alone leaves photos as they are: `Dataset.cast` would write them a second time.
        info = datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(schema))
        stored = loaded.data.cast(info.features.arrow_schema)
        plain = datasets.Dataset(stored, info=info, fingerprint=loaded._fingerprint)
        for field in target:
            if lacks_values(schema.field(field.name).type, field):
                empty = as_types(stored.table.select([field.name]), pa.schema([field]), place)
                plain = plain.remove_columns(field.name).add_column(field.name, empty[field.name].to_pylist())
            elif schema.field(field.name).type != field.type:
                plain = plain.cast_column(field.name, datasets.Features.from_arrow_schema(target)[field.name])
    return plain.remove_columns([column for column in plain.column_names if column in leave_out])


@contextmanager
def _one_writer(mapped: Path) -> Iterator[bool]:
    """Lets one process after the other convert a table; says whether it is not there yet."""
    lock = FileLock(mapped.with_name(f".{mapped.name}.lock"))
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        # A file system without locks: each converts it for itself, and one of them gets the name.
        yield not mapped.exists()
        return
    try:
        for killed in mapped.parent.glob(f".{mapped.name}.*.partial"):
            killed.unlink(missing_ok=True)
        yield not mapped.exists()
    finally:
        lock.release()


def _batch_rows(metadata: pq.FileMetaData, columns: Collection[str]) -> int:
    """Rows of which these columns take about `_BATCH_BYTES` together."""
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    parts = [group.column(at) for group in groups for at in range(group.num_columns)]
    size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)
    return int(min(max(_BATCH_BYTES * metadata.num_rows // max(size, 1), 1), _MAX_BATCH_ROWS))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
