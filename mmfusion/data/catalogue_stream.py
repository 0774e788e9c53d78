"""Streaming the products of a catalogue, once and in order, without a cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue_batches import Batch, read_batches
from mmfusion.data.catalogue_checks import check_photo_paths, first_true
from mmfusion.data.catalogue_error import CatalogueError, reading
from mmfusion.data.catalogue_files import Folder
from mmfusion.data.catalogue_rows import tidy_product
from mmfusion.data.catalogue_schema import read_schemas, target_schema


def stream_from_folder(folder: Folder, columns: Sequence[str] | None, split: str | None) -> Iterator[dict[str, Any]]:
    """Products of a folder, one at a time; the schema is checked at once, a batch when it is reached."""
    files = folder.files("products")
    schema, _ = read_schemas(folder, "products", files)
    place = f"catalogue {folder.name!r}, table 'products'"
    wanted = _columns_to_read(schema.names, columns, place)
    use_split = split is not None and "split" in schema.names
    read = pa.schema([schema.field(name) for name in dict.fromkeys([*wanted, *(["split"] if use_split else [])])])

    def records() -> Iterator[dict[str, Any]]:
        for path in files:
            for batch in read_batches(folder, path, read):
                _check_batch(batch, folder.photo_root, f"catalogue {folder.name!r}, file {os.path.basename(path)!r}")
                kept = batch.table.filter(pc.equal(batch.table["split"], split)) if use_split else batch.table
                with reading(place, "Write its text as UTF-8."):
                    rows = kept.select(wanted).to_pylist()
                yield from (_streamed(record, columns, folder.photo_root) for record in rows)

    return records()


def stream_from_hub(
    name: str, columns: Sequence[str] | None, split: str | None, revision: str | None
) -> Iterator[dict[str, Any]]:
    """Products of a Hub data set, one at a time; the schema is checked at once, an id when it is reached."""
    place = f"Hub data set {name!r}, configuration 'products'"
    remedy = f"Check the id (there is no folder {name!r} either), the configuration's name, the network and your login."
    with reading(place, remedy):
        parts = list(datasets.load_dataset(name, "products", revision=revision, streaming=True).values())
        parts = [part if part.features is not None else part._resolve_features() for part in parts]
        schema = parts[0].features.arrow_schema.remove_metadata()
    target_schema(schema, "products", place)
    wanted = _columns_to_read(schema.names, columns, place)
    use_split = split is not None and "split" in schema.names

    def records() -> Iterator[dict[str, Any]]:
        for part in parts:
            with reading(place, remedy):
                for record in part.decode(False):
                    if use_split and record["split"] != split:
                        continue
                    record = {name: record[name] for name in wanted}
                    if record["product_id"] in (None, ""):
                        raise CatalogueError(f"the id is {record['product_id']!r}", place, "Give every row an id.")
                    record["product_id"] = str(record["product_id"])
                    yield _streamed(record, columns, None)

    return records()


def batched(records: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of ``size`` records; the last may be shorter."""
    while batch := list(islice(records, size)):
        yield batch


def _columns_to_read(available: Sequence[str], columns: Sequence[str] | None, place: str) -> list[str]:
    if columns is None:
        return list(available)
    for name in columns:
        if name not in available:
            raise CatalogueError(f"column {name!r} does not exist", place, f"Choose from {', '.join(available)}.")
    return ["product_id", *(name for name in columns if name != "product_id")]


def _check_batch(batch: Batch, photo_root: str | None, place: str) -> None:
    ids = batch.table["product_id"]
    row = first_true(pc.or_kleene(pc.is_null(ids), pc.equal(ids, "")))
    if row is not None:
        raise CatalogueError(
            f"the id is {ids[row].as_py()!r}",
            f"{place}, column 'product_id', row {batch.start + row}",
            "Give every row an id.",
        )
    if "image" in batch.table.column_names:
        check_photo_paths(batch.table["image"], photo_root, place, batch.start)


def _streamed(record: dict[str, Any], columns: Sequence[str] | None, photo_root: str | None) -> dict[str, Any]:
    tidy = tidy_product(record, photo_root)
    return tidy if columns is None else {name: tidy[name] for name in record}
