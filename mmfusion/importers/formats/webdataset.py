"""Shards of webdataset: tar files of photos, JSON and texts that share a key."""

from __future__ import annotations

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.collect import KEY, PHOTOS, shown_as, tables_of, warn_of_unread
from mmfusion.importers.formats.generic import read_tables
from mmfusion.importers.items import Imported, ImportLog, ReadSettings
from mmfusion.importers.registry import register_importer
from mmfusion.importers.shards import ShardsTable
from mmfusion.importers.source import Source, SourceFile


@register_importer("webdataset")
class WebdatasetImporter:
    """A product is a sample. Its id is that of its JSON or of a file `.id`, else its key."""

    summary = "shards of webdataset"

    def recognises(self, source: Source) -> bool:
        """Whether there is a tar file."""
        return any(map(_is_shard, source.tables))

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        """Reads all shards, in the order of their names."""
        shards = [file for file in source.tables if _is_shard(file)]
        if not shards:
            raise CatalogueError("there is no tar file", str(source), "Give shards, e.g. 'data/shard-*.tar'.")
        warn_of_unread(tables_of(source), [], "shards", log)
        imported = read_tables([ShardsTable(shards)], settings, log)
        return shown_as(imported, {KEY: "key of the sample", PHOTOS: "photos of the sample"})


def _is_shard(file: SourceFile) -> bool:
    return file.suffix in (".tar", ".tgz")
