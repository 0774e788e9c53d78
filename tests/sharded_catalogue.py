"""The toy catalogue with its products in several files of small row groups, as large catalogues come."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from mmfusion.data.toy_catalogue import write_toy_catalogue

FILES = (40, 0, 7, 73)
GROUP_ROWS = 8


def write_sharded(folder: Path, files: Sequence[int] = FILES, group_rows: int = GROUP_ROWS) -> Path:
    """A catalogue whose products are in as many files as there are numbers of rows, one of them empty by default."""
    whole = write_toy_catalogue(folder.with_name(f"{folder.name}_whole"), num_products=sum(files))
    (folder / "products").mkdir(parents=True)
    for table in ("queries", "qrels"):
        shutil.copy(whole / f"{table}.parquet", folder)
    products, start = pq.read_table(whole / "products.parquet"), 0
    for number, rows in enumerate(files):
        part = products.slice(start, rows)
        pq.write_table(part, folder / "products" / f"{number:05d}.parquet", row_group_size=group_rows)
        start += rows
    return folder


def bytes_of_photos(path: Path, group: int) -> tuple[int, int]:
    """Where the photos of a row group lie in a file: first byte, and the one after the last."""
    metadata = pq.ParquetFile(path).metadata.row_group(group)
    columns = [metadata.column(at) for at in range(metadata.num_columns)]
    photos = [
        column for column in columns if column.path_in_schema.startswith("image") and column.total_compressed_size
    ]
    start = min(column.dictionary_page_offset or column.data_page_offset for column in photos)
    return start, max((c.dictionary_page_offset or c.data_page_offset) + c.total_compressed_size for c in photos)
