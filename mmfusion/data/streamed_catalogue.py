"""A catalogue whose products stay where they are: row groups of Parquet files, each read when its rows are needed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any, Literal

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.data.catalogue import BaseCatalogue, check_unknown
from mmfusion.data.catalogue_checks import check_photo_paths
from mmfusion.data.catalogue_files import Folder, ParquetTable, find_folder
from mmfusion.data.catalogue_schema import CatalogueError, as_types, first_line, reading
from mmfusion.data.hub_ids import check_readable

IntArray = npt.NDArray[np.int64]
Record = dict[str, Any]

RETRY_AFTER = (0.5, 2.0, 8.0)
"""Seconds to wait before a row group that could not be read is tried again."""

_BATCH_ROWS = 256

logger = logging.getLogger(__name__)


class StreamedCatalogue(BaseCatalogue):
    """A catalogue for training from streams; rows are those of the whole catalogue.

    ``products`` holds ``product_id`` and ``split`` alone (some 20 bytes a product, memory-mapped); titles, photos and
    further columns are read from ``shards``, many at a time. Queries and judgements are loaded as by `Catalogue`.

    Attributes:
        shards: The products' row groups.
    """

    shards: ProductShards

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str],
        revision: str | None = None,
        unknown: Literal["error", "drop"] = "error",
    ) -> StreamedCatalogue:
        """Loads what is small, and checks it; see [`Catalogue.load`].

        Args:
            source: As there; a Hub data set needs a folder of Parquet files for each configuration, as
                ``push_to_hub(org/name, config_name="products")`` writes.
            cache_dir: Folder for ids, queries and judgements.
            revision, unknown: As there.

        Raises:
            CatalogueError: As there; texts and photos of products are checked when they are read.
        """
        check_unknown(unknown)
        name, cache = os.fspath(source), os.path.abspath(cache_dir)
        folder = _find(name, revision)
        table = ParquetTable(folder, "products")
        products = table.mapped(
            cache, [column for column in table.schema.names if column not in ("product_id", "split")]
        )
        others = {one: ParquetTable(folder, one).mapped(cache) for one in ("queries", "qrels")}
        catalogue = cls._checked({"products": products, **others}, name, folder.photo_root, unknown)
        catalogue.shards = ProductShards(table)
        return catalogue

    @property
    def product_schema(self) -> pa.Schema:
        return self.shards.schema


class ProductShards:
    """Row groups of the products table, in the order of its rows; a row is the same number as in [`Catalogue`].

    Attributes:
        schema: Columns of the table, as they are read.
        starts: First row of each row group, and the number of all rows at the end, int64 (G + 1,).
    """

    def __init__(self, table: ParquetTable) -> None:
        """Takes a table whose footers are read."""
        self.schema = table.schema
        self._folder, self._files = table.folder, table.files
        # File, number in the file, and row of the file that it begins with.
        self._groups: list[tuple[int, int, int]] = []
        rows: list[int] = []
        for at, footer in enumerate(table.footers):
            if footer.num_rows == 0:
                logger.info("%s has no rows and is skipped", table.folder.place(table.files[at]))
            counts = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
            first = np.cumsum([0, *counts])
            self._groups += [(at, number, int(first[number])) for number in range(len(counts))]
            rows += counts
        self.starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._process = os.getpid()

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
        waits = list(RETRY_AFTER)
        while True:
            try:
                return self._read(group, rows, columns)
            except CatalogueError:
                raise
            except Exception as error:
                # Which exception a file system raises for a broken connection is its own affair.
                if not waits:
                    raise CatalogueError(
                        f"cannot be read after {len(RETRY_AFTER) + 1} tries ({first_line(error)})",
                        self._place(group),
                        "Check the file and the connection, and run the same command to resume.",
                    ) from error
                logger.warning("%s: %s; trying again in %.1f s", self._place(group), first_line(error), waits[0])
                time.sleep(waits.pop(0))

    def _read(self, group: int, rows: IntArray, columns: Sequence[str]) -> list[Record]:
        schema, place = pa.schema([self.schema.field(name) for name in columns]), self._place(group)
        file, number, _ = self._groups[group]
        wanted = rows - self.starts[group]
        records: list[Record] = []
        start = 0
        # Connections and event loops of a file system do not survive a fork into a worker.
        if self._process != os.getpid():
            folder = find_folder(self._folder.name)
            assert folder is not None
            self._folder, self._process = folder, os.getpid()
        with self._folder.fs.open(self._files[file], "rb") as handle:
            # Pre-buffering asks for the row group in a few large pieces, which is what object stores are good at.
            parquet = pq.ParquetFile(handle, pre_buffer=True)
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[number], columns=schema.names):
                inside = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
                start += len(batch)
                if len(inside):
                    table = as_types(pa.Table.from_batches([batch]).take(inside), schema, place)
                    with reading(place, "Write its text as UTF-8."):
                        table.validate(full=True)
                    if "image" in table.column_names:
                        check_photo_paths(table["image"], self._folder.photo_root, place)
                    records += table.to_pylist()
        if start != self.starts[group + 1] - self.starts[group]:
            raise self.changed(group)
        return records

    def changed(self, group: int) -> CatalogueError:
        """The error of a row group that does not hold the products it held when the catalogue was loaded."""
        return CatalogueError(
            "holds other products than when training began",
            self._place(group),
            "Keep the files of a catalogue as they are while it is streamed; write new ones to another folder.",
        )

    def _place(self, group: int) -> str:
        file, number, first = self._groups[group]
        return f"{self._folder.place(self._files[file])}, row group {number} (from row {first} of the file)"


def groups_of(starts: IntArray, rows: IntArray) -> IntArray:
    """Row group of each row (n,), given the first row of each group and the number of rows (G + 1,)."""
    # From the right, as a group without rows starts where the next one does.
    return np.searchsorted(starts, rows, side="right") - 1


def _find(name: str, revision: str | None) -> Folder:
    folder = find_folder(name, revision)
    if folder is not None:
        return folder
    check_readable(name, "dataset")
    url = f"hf://datasets/{name}{'' if revision is None else f'@{revision}'}"
    remedy = f"Check the id (there is no folder {name!r} either), the network and your login."
    with reading(f"Hub data set {name!r}", remedy):
        fs, root = fsspec.url_to_fs(url)
        # Asking whether it is a folder would say no where the Hub cannot be reached.
        fs.ls(root)
    return Folder(url, fs, root)
