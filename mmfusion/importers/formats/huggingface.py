"""Data sets of Hugging Face: `save_to_disk`, imagefolder, and tables that hold photos."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pyarrow as pa

from mmfusion.data.catalogue_schema import TABLES, CatalogueError, is_photo, reading
from mmfusion.importers.arrow_table import ArrowTable
from mmfusion.importers.collect import KEY, PHOTOS, shown_as, tables_of, warn_of_unread
from mmfusion.importers.formats.generic import read_tables
from mmfusion.importers.items import Imported, ImportLog, Item, ReadSettings
from mmfusion.importers.photo_rows import Part, PhotoRows
from mmfusion.importers.registry import register_importer
from mmfusion.importers.source import Source
from mmfusion.importers.splits import split_named, split_of_file, warn_of_leaks
from mmfusion.importers.tables import TextTable, open_table

_ORDER = ("train", "val", "test", None)


@register_importer("huggingface")
class HuggingFaceImporter:
    """Reads folders of `save_to_disk`, photos beside a `metadata.csv`, and Parquet or Arrow with columns of photos.

    Rows of an imagefolder with one id are photos of one product.
    """

    summary = "a data set of Hugging Face"

    def recognises(self, source: Source) -> bool:
        """Whether there are files of `save_to_disk`, a `metadata` with names of files, or columns of photos."""
        return bool(_is_catalogue(source) or _saved(source) or _metadata(source) or _with_photos(source))

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        """Reads what is there of these, in this order.

        Raises:
            CatalogueError: There is none of them, or it is a catalogue of mmfusion already.
        """
        if _is_catalogue(source):
            remedy = "Give it to the other commands as it is, e.g. mmfusion stage1 --catalogue."
            raise CatalogueError("is a catalogue already", str(source), remedy)
        parts = _saved(source) or _metadata(source) or _with_photos(source)
        if not parts:
            remedy = "Give a folder of save_to_disk, an imagefolder with its metadata.csv, or Parquet with photos."
            raise CatalogueError("there is no data set of Hugging Face", str(source), remedy)
        # What `datasets` says about its files in JSON is not a table of rows.
        tables = [table for table in tables_of(source) if table.file.suffix != ".json"]
        warn_of_unread(tables, [part.table for part in parts], "the data set", log)
        # Of an id in several splits, the row of train is kept.
        parts.sort(key=lambda part: _ORDER.index(part.split))
        imported = read_tables([PhotoRows(parts)], settings, log)
        is_folder = parts[0].folder is not None
        if imported.mapping["product_id"] == KEY and not is_folder:
            log.warn(
                "No column holds ids: names of photos, or numbers of rows, are the ids. Name one with --id_column."
            )
        photos = ", ".join(dict.fromkeys(name for part in parts for name in part.photos))
        imported = shown_as(imported, {KEY: "name of the photo", PHOTOS: photos})
        items = _merged(imported.items) if is_folder else imported.items
        return replace(imported, items=_told_of_leaks(items, log))


def _is_catalogue(source: Source) -> bool:
    """Whether the three tables of a catalogue are there: products.parquet, products-*.parquet or products/*.parquet."""
    paths = [file.path for file in source.tables if file.suffix == ".parquet"]
    return {name for path in paths for name in (path.stem.partition("-")[0], path.parent.name)} >= set(TABLES)


def _saved(source: Source) -> list[Part]:
    """Files of `save_to_disk`; folders of several data sets are named by their splits."""
    parts = []
    for file in source.tables:
        state = file.path.parent / "state.json"
        if file.suffix != ".arrow" or not state.exists():
            continue
        with reading(str(state), "Save the data set again."):
            reordered = json.loads(state.read_text("utf-8")).get("_indices_data_files")
        if reordered:
            remedy = "Load it and save it again with a newer version of datasets."
            raise CatalogueError("has its rows in another order than its files", str(state), remedy)
        if table := open_table(file):
            parts.append(Part(table, _photo_columns(table), split=split_named(file.path.parent.name)))
    return parts


def _metadata(source: Source) -> list[Part]:
    """Tables `metadata` of an imagefolder, whose photos are named from their own folders."""
    parts = []
    for file in source.tables:
        if file.path.name.lower().startswith("metadata.") and (table := open_table(file)):
            names = [name for name in table.columns if name.endswith(("file_name", "file_names"))]
            if names:
                folder = file.path.parent.absolute()
                parts.append(Part(table, names, folder, split=split_named(folder.name)))
    return parts


def _with_photos(source: Source) -> list[Part]:
    """Parquet and Arrow files with columns of photos."""
    return [
        Part(table, names, split=split_of_file(table.file.path.name) or split_named(table.file.path.parent.name))
        for table in tables_of(source)
        if (names := _photo_columns(table))
    ]


def _photo_columns(table: TextTable) -> list[str]:
    if not isinstance(table, ArrowTable):
        return []
    return [field.name for field in table.schema if is_photo(field.type) and not pa.types.is_null(field.type)]


def _merged(items: Iterable[Item]) -> Iterator[Item]:
    """Items with the photos of all rows of their id, which need not stand together."""
    products: dict[str, Item] = {}
    for item in items:
        product = products.setdefault(item.item_id, item)
        if product is not item:
            product.photos += [photo for photo in item.photos if photo not in product.photos]
            product.title, product.description = product.title or item.title, product.description or item.description
            product.metadata |= {name: value for name, value in item.metadata.items() if not product.metadata.get(name)}
    yield from products.values()


def _told_of_leaks(items: Iterable[Item], log: ImportLog) -> Iterator[Item]:
    """The items; ids that are in several splits are named at the end."""
    splits: list[tuple[str, str]] = []
    for item in items:
        if item.metadata.get("split"):
            splits.append((item.item_id, item.metadata["split"]))
        yield item
    warn_of_leaks("product", splits, log)
