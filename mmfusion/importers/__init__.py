"""From a shop's own files to a catalogue: one small reader per format, and what all of them share.

A reader is an `Importer` that `register_importer` adds. It turns the rows of its files into `Item`s and leaves the rest
to `import_catalogue`: grouping of variants, duplicates, photos, splits, and writing.
"""

from mmfusion.importers.items import Imported, ImportLog, Item, Judgement, Query, ReadSettings, Variants
from mmfusion.importers.registry import Importer, find_importer, importer_names, register_importer
from mmfusion.importers.source import Source, open_source

__all__ = [
    "ImportLog",
    "Imported",
    "Importer",
    "Item",
    "Judgement",
    "Query",
    "ReadSettings",
    "Source",
    "Variants",
    "find_importer",
    "importer_names",
    "open_source",
    "register_importer",
]
