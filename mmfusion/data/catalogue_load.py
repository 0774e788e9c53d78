"""Loading a table of a catalogue: from Parquet files or the Hub to one memory-mapped Arrow file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa

from mmfusion.data.catalogue_batches import as_types, read_batches
from mmfusion.data.catalogue_error import CatalogueError, reading
from mmfusion.data.catalogue_files import Folder
from mmfusion.data.catalogue_schema import ROLES, is_number, read_schemas, target_schema
from mmfusion.files import whole_file


def load_from_folder(folder: Folder, table: str, cache_dir: str, leave_out: Collection[str] = ()) -> datasets.Dataset:
    """One table of a folder, memory-mapped from a conversion in ``cache_dir`` that is made where it is missing.

    Columns to ``leave_out`` are neither read nor written; the table need not have them.
    """
    files = folder.files(table)
    schema, fingerprint = read_schemas(folder, table, files)
    place = f"catalogue {folder.name!r}, table {table!r}"
    columns = [column for column in schema.names if column not in leave_out]
    part = "" if columns == schema.names else f"-{hashlib.sha256(repr(columns).encode()).hexdigest()[:8]}"
    schema = pa.schema([schema.field(column) for column in columns])
    mapped = os.path.join(cache_dir, f"{table}-{fingerprint}{part}.arrow")
    if not os.path.exists(mapped):
        with reading(f"cache folder {cache_dir!r}", "Give a folder that can be written to."):
            os.makedirs(cache_dir, exist_ok=True)
        with reading(place, "Write the table again, and check the space in the cache folder."):
            _convert(folder, files, schema, mapped)
    with reading(place, f"Convert columns of a rare type; if {mapped!r} is damaged, remove it."):
        return datasets.Dataset.from_file(mapped)


def _convert(folder: Folder, files: Sequence[str], schema: pa.Schema, mapped: str) -> None:
    """Writes the files as one Arrow stream that can be memory-mapped.

    `datasets.load_dataset` would do the same but holds a whole row group in memory, which may be the whole table.
    """
    try:
        with whole_file(Path(mapped), concurrent=True) as file, pa.ipc.new_stream(file, schema) as writer:
            for path in files:
                for batch in read_batches(folder, path, schema):
                    writer.write_table(batch.table)
    finally:
        # Arrow's allocator keeps what it was given: up to 100 MiB beside everything that follows.
        pa.default_memory_pool().release_unused()


def load_from_hub(
    name: str, table: str, cache_dir: str, revision: str | None, leave_out: Collection[str] = ()
) -> datasets.Dataset:
    """One configuration of a Hub data set, all its splits in one memory-mapped table, photos undecoded.

    Columns to ``leave_out`` are not in the table, but are downloaded, as files come whole.
    """
    place = f"Hub data set {name!r}, configuration {table!r}"
    remedy = f"Check the id (there is no folder {name!r} either), the configuration's name, the network and your login."
    with reading(place, remedy), _without_progress_bars():
        splits = datasets.load_dataset(name, table, cache_dir=cache_dir, revision=revision, keep_in_memory=False)
        parts = list(splits.values())
    if len(parts) > 1 and table != "qrels" and "split" not in parts[0].column_names:
        raise CatalogueError(
            f"{len(parts)} splits ({', '.join(splits)}) but no column 'split'",
            place,
            "Add the column, or use one split.",
        )
    with reading(place, "Write all splits with the same columns."):
        loaded = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    if len(loaded) == 0:
        raise CatalogueError("the table has no rows", place, "Push at least one row.")
    schema = loaded.features.arrow_schema.remove_metadata()
    target = target_schema(schema, table, place)
    with reading(place, "Convert the column on the Hub."):
        plain = _undecoded(loaded, schema)
        for column in target.names:
            stored = plain.features.arrow_schema.field(column).type
            if (
                is_number(stored)
                and ROLES.get(column) in ("text", "photo")
                and not is_number(target.field(column).type)
            ):
                filled = as_types(plain.data.table.select([column]), pa.schema([target.field(column)]), place)
                plain = plain.remove_columns([column]).add_column(column, filled.column(column).to_pylist())
            elif stored != target.field(column).type:
                plain = plain.cast_column(column, datasets.Features.from_arrow_schema(target)[column])
    return plain.remove_columns([column for column in plain.column_names if column in leave_out])


def _undecoded(table: datasets.Dataset, schema: pa.Schema) -> datasets.Dataset:
    """The same mapped table, its photos left as the structs that they are stored as."""
    info = datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(schema))
    # Renewing the metadata alone: `Dataset.cast` would write the photos to disk a second time.
    return datasets.Dataset(table.data.cast(info.features.arrow_schema), info=info, fingerprint=table._fingerprint)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
