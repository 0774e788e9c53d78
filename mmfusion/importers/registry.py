"""The formats that an import knows, and which of them a source has."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Protocol, TypeVar

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers import formats
from mmfusion.importers.items import Imported, ImportLog, ReadSettings
from mmfusion.importers.source import Source

# In the order in which they are asked: the particular before the general.
_ORDER = (
    "shopify",
    "merchant",
    "woocommerce",
    "esci",
    "gs10m",
    "beir",
    "trec",
    "webdataset",
    "huggingface",
    "photo_folder",
    "generic",
)


class Importer(Protocol):
    """A reader of one format. It is registered as a class without arguments.

    Attributes:
        summary: What the format is, in a few words: "a product export of Shopify".
    """

    summary: str

    def recognises(self, source: Source) -> bool:
        """Whether the source has this format, from names, headers and the first bytes alone."""

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        """Reads the source.

        Raises:
            CatalogueError: The source as a whole cannot be read. A bad row goes to the log instead.
        """


Class = TypeVar("Class", bound=type[Importer])
_IMPORTERS: dict[str, Importer] = {}


def register_importer(name: str):  # type: ignore[no-untyped-def]  # a decorator
    """Adds a format under the name that `--format` takes; formats of others are asked before the built-in ones.

    Raises:
        ValueError: There is a format of this name.
    """

    def add(importer: Class) -> Class:
        if name in _IMPORTERS:
            raise ValueError(f"There is an importer {name!r} already; choose another name.")
        _IMPORTERS[name] = importer()
        return importer

    return add


def importer_names() -> list[str]:
    """Names of all formats, in the order in which they are asked."""
    for module in pkgutil.iter_modules(formats.__path__):
        import_module(f"{formats.__name__}.{module.name}")
    return sorted(_IMPORTERS, key=lambda name: _ORDER.index(name) if name in _ORDER else -1)


def find_importer(source: Source, name: str | None = None) -> tuple[str, Importer]:
    """The format of a source, or the one that was asked for.

    Raises:
        CatalogueError: No format of this name, or none recognises the source.
    """
    names = importer_names()
    if name is not None:
        if name not in names:
            raise CatalogueError(f"format {name!r} is unknown", "--format", f"Use one of {', '.join(names)}.")
        return name, _IMPORTERS[name]
    for one in names:
        if _IMPORTERS[one].recognises(source):
            return one, _IMPORTERS[one]
    remedy = f"Say what it is with --format (one of {', '.join(names)}), or give a table with --columns."
    raise CatalogueError("the format is not recognised", str(source), remedy)
