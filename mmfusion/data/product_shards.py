"""The products of a catalogue where they lie: row groups of Parquet files, each read when its rows are needed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.data.catalogue_batches import as_types
from mmfusion.data.catalogue_checks import check_photo_paths
from mmfusion.data.catalogue_error import CatalogueError, reading
from mmfusion.data.catalogue_files import Folder, find_folder
from mmfusion.data.catalogue_schema import read_schemas

IntArray = npt.NDArray[np.int64]
Record = dict[str, Any]

RETRY_AFTER = (0.5, 2.0, 8.0)
"""Seconds to wait before a row group that could not be read is tried again."""

_BATCH_ROWS = 256

logger = logging.getLogger("mmfusion")


class ProductShards:
    """Row groups of the products table, in the order of its rows; a row is the same number as in [`Catalogue`].

    Attributes:
        column_names: Columns of the table.
        starts: First row of each row group, and the number of all rows at the end, int64 (G + 1,).
    """

    def __init__(
        self, folder: Folder, files: Sequence[str], schema: pa.Schema, file: IntArray, number: IntArray, rows: IntArray
    ) -> None:
        """Use `open`.

        Args:
            folder: Where the files are.
            files: Paths of the files.
            schema: Types that columns are read as.
            file, number, rows: File, number in the file and length of each row group, (G,).
        """
        self.column_names = list(schema.names)
        self.starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._folder, self._files, self.schema = folder, files, schema
        self._file, self._number = file, number
        self._process = os.getpid()

    @classmethod
    def open(cls, folder: Folder) -> ProductShards:
        """Reads the footers of the products' files.

        Raises:
            CatalogueError: A file is missing, unreadable or lacks a column, or none has rows.
        """
        files = folder.files("products")
        schema, _ = read_schemas(folder, "products", files)
        groups = []
        for at, path in enumerate(files):
            with reading(_place(folder, path), "Write the file again."), folder.fs.open(path, "rb") as handle:
                metadata = pq.ParquetFile(handle).metadata
            if metadata.num_rows == 0:
                logger.info("%s has no rows and is skipped", _place(folder, path))
            groups += [(at, group, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
        columns = np.array(groups, dtype=np.int64).reshape(-1, 3).T
        return cls(folder, files, schema, *columns)

    def __len__(self) -> int:
        return len(self._file)

    def groups_of(self, rows: IntArray) -> IntArray:
        """Row group of each row, int64 (n,)."""
        return groups_of(self.starts, rows)

    def read(self, group: int, rows: IntArray, columns: Sequence[str]) -> list[Record]:
        """Reads some rows of a row group; a read that fails is tried again.

        The row group is in memory, compressed, for as long as this takes.

        Args:
            group: 0 to number of row groups - 1.
            rows: Ascending rows of the table, all of this group, (n,).
            columns: Columns to read.

        Returns:
            Values by column, undecoded, of each row, in order.

        Raises:
            CatalogueError: The row group cannot be read, its text is not UTF-8, or the path of a photo leaves the
                folder.
        """
        for wait in (*RETRY_AFTER, None):
            try:
                return self._read(group, rows, columns)
            except CatalogueError:
                raise
            except Exception as error:
                # Which exception a file system raises for a broken connection is its own affair.
                reason = f"{type(error).__name__}: {(str(error).strip() or 'no details').splitlines()[0][:300]}"
                if wait is None:
                    raise CatalogueError(
                        f"cannot be read after {len(RETRY_AFTER) + 1} tries ({reason})",
                        self._place(group),
                        "Check the file and the connection, and run the same command to resume.",
                    ) from error
                logger.warning("%s: %s; trying again in %.1f s", self._place(group), reason, wait)
                time.sleep(wait)
        raise AssertionError

    def _read(self, group: int, rows: IntArray, columns: Sequence[str]) -> list[Record]:
        schema = pa.schema([self.schema.field(name) for name in columns])
        wanted = rows - self.starts[group]
        records: list[Record] = []
        start = 0
        with self._own_folder().fs.open(self._files[self._file[group]], "rb") as handle:
            # Pre-buffering asks for the row group in a few large pieces, which is what object stores are good at.
            file = pq.ParquetFile(handle, pre_buffer=True)
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[int(self._number[group])], columns=schema.names):
                inside = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
                start += len(batch)
                if len(inside):
                    table = as_types(pa.Table.from_batches([batch]).take(inside), schema, self._place(group))
                    records += self._checked(table, group)
        if start != self.starts[group + 1] - self.starts[group]:
            raise self.changed(group)
        return records

    def _checked(self, table: pa.Table, group: int) -> list[Record]:
        place = self._place(group)
        with reading(place, "Write its text as UTF-8."):
            table.validate(full=True)
        if "image" in table.column_names:
            check_photo_paths(table["image"], self._folder.photo_root, place)
        records: list[Record] = table.to_pylist()
        return records

    def changed(self, group: int) -> CatalogueError:
        """The error of a row group that does not hold the products it held when the catalogue was loaded."""
        return CatalogueError(
            "holds other products than when training began",
            self._place(group),
            "Keep the files of a catalogue as they are while it is streamed; write new ones to another folder.",
        )

    def _own_folder(self) -> Folder:
        # Connections and event loops of a file system do not survive a fork into a worker.
        if self._process != os.getpid():
            folder = find_folder(self._folder.name)
            assert folder is not None
            self._folder, self._process = folder, os.getpid()
        return self._folder

    def _place(self, group: int) -> str:
        number, first = int(self._number[group]), int(self.starts[group])
        before = self.starts[np.searchsorted(self._file, self._file[group])]
        return (
            f"{_place(self._folder, self._files[self._file[group]])}, row group {number} (from row "
            f"{first - before} of the file)"
        )


def groups_of(starts: IntArray, rows: IntArray) -> IntArray:
    """Row group of each row (n,), given the first row of each group and the number of rows (G + 1,)."""
    # From the right, as a group without rows starts where the next one does.
    return np.searchsorted(starts, rows, side="right") - 1


def _place(folder: Folder, path: str) -> str:
    return f"catalogue {folder.name!r}, file {os.path.relpath(path, folder.root)!r}"
