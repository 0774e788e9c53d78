"""Photos alone: their names are ids."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from pathlib import PurePosixPath

from mmfusion.importers.collect import tables_of
from mmfusion.importers.items import Imported, ImportLog, Item, ReadSettings
from mmfusion.importers.registry import register_importer
from mmfusion.importers.source import Source, SourceFile
from mmfusion.importers.xml_items import is_feed

# 0001_2, 0001-b, 0001 (3), 0001.back
_FURTHER = re.compile(
    r"(?P<first>.+?)(?:[ _.-]+|(?= ?\())\(?(?P<which>\d{1,2}|[a-z]|front|back|side|top|detail|main|alt)\)?", re.I
)
# More photos than this below one name are numbers of a camera, or a folder of many products.
_MOST = 30


@register_importer("photo_folder")
class PhotoFolder:
    """Each photo is a product without a text, unless names say that photos belong together.

    - The id is the name without its suffix; the path without suffix, where a name comes in several folders.
    - Where names repeat in subfolders, 0001/1.jpg and 0002/1.jpg, each subfolder is a product.
    - 0001_2.jpg, 0001-b.jpg and 0001 (3).jpg are further photos of 0001 where 0001.jpg lies beside them, or where
      several such names with digits are counted from 0 or 1.
    """

    summary = "a folder of photos"

    def recognises(self, source: Source) -> bool:
        """Whether there are photos and no tables or feeds."""
        photos = any(file.is_photo for file in source.files)
        return photos and not any(map(is_feed, source.tables)) and not tables_of(source)

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        """Reads the names of all photos."""
        photos = [file for file in source.files if file.is_photo]
        products, by = _products(photos)
        if len(products) < len(photos):
            log.warn(f"{len(photos):,} photos are {len(products):,} products: {by}")
        items = []
        for item_id, files in products.items():
            folder = PurePosixPath(files[0].name).parent.name
            # The folder of H&M's 010/0108775015.jpg says nothing more.
            metadata = {"category": folder} if folder and not item_id.startswith(folder) else {}
            paths: list[str | bytes] = [os.fspath(file.path.absolute()) for file in files]
            items.append(Item(item_id, photos=paths, metadata=metadata, place=files[0].name))
        return Imported(items, {"product_id": f"name of the photo ({by})", "image": "photo"}, variants="item")


def _products(photos: list[SourceFile]) -> tuple[dict[str, list[SourceFile]], str]:
    """Photos by the id of their product, and how they were put together."""
    paths = {file: PurePosixPath(file.name).with_suffix("") for file in photos}
    folders = Counter(path.parent for path in paths.values())
    distinct = set(paths.values())
    repeated = len({path.name for path in distinct}) < len(distinct)
    if repeated and len(folders) > 1 and PurePosixPath(".") not in folders and max(folders.values()) <= _MOST:
        return _gathered({file: str(path.parent) for file, path in paths.items()}, paths), "each folder is a product"
    ids = {file: str(path) if repeated else path.name for file, path in paths.items()}
    first = _first_of(set(ids.values()))
    by = "numbered ones belong together" if first else "each name is a product"
    return _gathered({file: first.get(name, name) for file, name in ids.items()}, paths), by


def _first_of(names: set[str]) -> dict[str, str]:
    """Product id by the name of a further photo, where it is certain."""
    further: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        if found := _FURTHER.fullmatch(name):
            further[found["first"]][name] = found["which"]
    counted = {
        first
        for first, which in further.items()
        if re.search(r"\d", first) and len(which) > 1 and {"0", "1", "00", "01"} & set(which.values())
    }
    return {
        name: first
        for first, which in further.items()
        if len(which) < _MOST and (first in names or (first in counted and len(counted) > 1))
        for name in which
    }


def _gathered(ids: dict[SourceFile, str], paths: dict[SourceFile, PurePosixPath]) -> dict[str, list[SourceFile]]:
    products: dict[str, list[SourceFile]] = {}
    # The photo with the product's own name first, 2 before 10.
    for file in sorted(ids, key=lambda file: _natural(str(paths[file]))):
        products.setdefault(ids[file], []).append(file)
    return products


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text) if part]
