"""How a catalogue keeps the photos of its products: by paths behind a link, as downloaded files, or as bytes."""

from __future__ import annotations

import base64
import binascii
import csv
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.data.photos import unreadable_photos
from mmfusion.importers.downloads import Downloads
from mmfusion.importers.items import ImportLog, Item
from mmfusion.importers.photos import FoundPhoto, PhotoFolders, photos_of_item
from mmfusion.importers.write import PHOTO

DOWNLOADED = "photos_downloaded"
"""Folder of a catalogue with what was fetched."""

FAILED = "failed_photos.csv"
"""List of photos that are missing, in the folder of a catalogue."""

# Photos that are decoded, as a file of the right name may be an error page or cut off.
_MOST_DECODED = 64
_SHOWN, _EXAMPLES = 3, 50
# Photos that are in memory at a time where they are stored as bytes.
_MOST_BYTES = 16 << 20


@dataclass
class PhotoCounts:
    """What became of photos.

    Attributes:
        named: Photos that products name.
        found: Those of them that are there.
        waiting: Photos, among those that are there, that are still to be downloaded.
        by_id: Photos, among both, that are called by the id of a product rather than named by it.
        products: Products that have a photo.
        unused: Photos in the folders that belong to no product.
        examples: (product, photo as it is named, reason) of the first that are missing.
    """

    named: int = 0
    found: int = 0
    waiting: int = 0
    by_id: int = 0
    products: int = 0
    unused: int = 0
    examples: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Photos that are named and not there."""
        return self.named - self.found


class PhotoStore:
    """Finds the photos of products and says how the catalogue keeps them.

    Call `structs` for each product, then `fetch`, `check` and `link`, and send the tables through `settled`.

    Attributes:
        counts: What became of photos.
        unreadable: Photos that were tried and cannot be read, and the reasons.
    """

    def __init__(
        self,
        folder: Path,
        folders: PhotoFolders,
        log: ImportLog,
        failures: Path,
        *,
        downloads: Downloads | None = None,
        embed: bool = False,
    ) -> None:
        """A store for one import.

        Args:
            folder: The catalogue.
            folders: Where photos are.
            log: Gets warnings.
            failures: File that gets all photos that are missing; it is written where there is one.
            downloads: Fetches photos that are named by URLs and not in `folders`, into `photos_downloaded` of the
                catalogue; None: they are missing.
            embed: Whether the tables hold the bytes of photos rather than paths.
        """
        self.counts = PhotoCounts()
        self.unreadable: list[str] = []
        self.embed = embed
        self._folder, self._folders, self._log, self._downloads = folder, folders, log, downloads
        self._failures = failures
        self._failed_file: TextIO | None = None
        self._names: dict[str, str] = {}
        # Every n-th photo, to be decoded.
        self._sample: list[FoundPhoto | bytes] = []
        self._found, self._every = 0, 1

    def structs(self, item: Item) -> list[dict[str, Any]]:
        """The photos of a product as values of the column `image`: those that were found, each once, in order."""
        kept: dict[str | bytes, dict[str, Any]] = {}
        missing: list[tuple[str, str]] = []
        counts = self.counts
        for photo in item.photos:
            found = self._find(photo, item)
            if isinstance(found, tuple):
                missing.append(found)
            else:
                kept.setdefault(found["path"] or found["bytes"], found)
        counts.named += len(item.photos)
        counts.found += len(item.photos) - len(missing)
        if not kept:
            called = [self._path(photo) for photo in photos_of_item(self._folders, item)]
            kept = {path: {"bytes": None, "path": path} for path in called if path is not None}
            counts.by_id += len(kept)
            # They stand for the ones that are named and are not there.
            counts.named += len(kept) - (len(missing) if kept else 0)
            counts.found += len(kept)
            missing = [] if kept else missing
        for photo, reason in missing:
            self._miss(item.item_id, photo, reason)
        counts.products += bool(kept)
        return list(kept.values())

    def fetch(self) -> None:
        """Downloads what is to be downloaded.

        Raises:
            OSError: The disk is full, for example; what was fetched stays, and is not fetched again.
        """
        if self._downloads is not None:
            self._downloads.fetch()
            self.counts.waiting = 0
            self.counts.found -= sum(self._downloads.wanted[url] for url in self._downloads.failed)

    def check(self, *, allow_missing: bool = False) -> None:
        """Looks into some of the photos, counts those of no product, and warns of what is wrong.

        Raises:
            CatalogueError: Fewer than half of the photos that are named can be read, unless `allow_missing`.
        """
        counts = self.counts
        self._folders.warn()
        counts.unused = sum(1 for _ in self._folders.unused())
        self.unreadable = unreadable_photos(
            {"bytes": None, "path": photo.file} if isinstance(photo, FoundPhoto) else {"bytes": photo, "path": None}
            for photo in self._sample
        )
        bad = len(self.unreadable)
        if bad:
            first = "; ".join(self.unreadable[:_SHOWN])
            self._log.warn(f"{bad:,} of {len(self._sample):,} photos that were tried cannot be read: {first}")
        readable = counts.found * (1 - bad / len(self._sample) if self._sample else 1)
        if readable < counts.named / 2 and not allow_missing:
            raise CatalogueError(
                f"only {readable / counts.named:.0%} of the {counts.named:,} photos that products name can be read; "
                f"among the others: {self._first_missing()}",
                "photos",
                "Give their folder with --photos DIR, fetch them from their URLs with --photos download, or go on with "
                "--allow_missing_photos true.",
            )

    def link(self) -> None:
        """Makes the links that paths go through; where there can be none, tables are going to hold bytes instead."""
        for root, name in self._names.items() if not self.embed else ():
            link = self._folder / name
            if os.path.lexists(link):
                continue
            try:
                os.symlink(root, link, target_is_directory=True)
            except OSError as error:
                self.embed = True
                self._log.warn(
                    f"{link} cannot be a link to {root} ({error.strerror}), so that photos are stored as bytes."
                )

    def settled(self, table: pa.Table) -> Iterator[pa.Table]:
        """A table of products in parts, without photos that could not be fetched, and with bytes where asked for."""
        failed = {} if self._downloads is None else self._downloads.failed_paths()
        if not self.embed and not failed:
            yield table
            return
        start, images, size = 0, list[Any](), 0
        names = table["product_id"]
        for row, photos in enumerate(table["image"]):
            kept = []
            for photo in photos.as_py() or ():
                found = self._settle(photo, names[row].as_py(), failed)
                if found is not None:
                    kept.append(found)
                    size += len(found["bytes"] or b"")
            images.append(kept or None)
            if size >= _MOST_BYTES or row == len(table) - 1:
                part = table.slice(start, row + 1 - start)
                column = pa.array(images, pa.list_(PHOTO))
                yield part.set_column(part.column_names.index("image"), "image", column)
                start, images, size = row + 1, [], 0

    def located(self, photo: dict[str, Any]) -> dict[str, Any]:
        """A value of the column `image` with the whole path of its file."""
        path = photo["path"]
        if photo["bytes"] is not None or not path:
            return photo
        inside, _, rest = path.partition("/")
        root = next((root for root, name in self._names.items() if name == inside), None)
        return {"bytes": None, "path": os.path.abspath(self._folder / path if root is None else f"{root}/{rest}")}

    def missing_of(self, products: Collection[str]) -> dict[str, str]:
        """The first photo that is missing, and why, of those of some products that lack one."""
        if self._failed_file is None:
            return {}
        found: dict[str, str] = {}
        with self._failures.open(encoding="utf-8", newline="") as file:
            for product_id, photo, reason in csv.reader(file):
                if product_id in products:
                    found.setdefault(product_id, f"{photo}: {reason}")
        return found

    def close(self) -> None:
        """Ends the list of photos that are missing."""
        if self._failed_file is not None:
            self._failed_file.close()

    def _find(self, photo: str | bytes, item: Item) -> dict[str, Any] | tuple[str, str]:
        """The value of a photo, or how it is named and why it is missing."""
        if isinstance(photo, str) and photo.startswith("data:"):
            name, _, encoded = photo.partition(",")
            try:
                photo = base64.b64decode(encoded, validate=True)
            except binascii.Error as error:
                return name, f"no base64: {error}"
        if isinstance(photo, bytes):
            if not photo:
                return "", "empty, 0 bytes"
            self._try_later(photo)
            return {"bytes": photo, "path": None}
        found = self._folders.find(photo, item.item_id)
        if isinstance(found, FoundPhoto):
            path = self._path(found)
            return (photo, "its name is no UTF-8") if path is None else {"bytes": None, "path": path}
        if self._downloads is not None and ("://" in photo or photo.startswith("//")):
            self.counts.waiting += 1
            return {"bytes": None, "path": f"{DOWNLOADED}/{self._downloads.want(photo)}"}
        return photo, found

    def _path(self, photo: FoundPhoto) -> str | None:
        """Path of a file below the catalogue; None if it cannot be written into a table."""
        if not photo.path.isascii() and photo.path.encode(errors="replace").decode() != photo.path:
            return None
        name = self._names.get(photo.root)
        if name is None:
            name = self._names[photo.root] = self._link_to(photo.root)
        self._try_later(photo)
        return photo.path if name == "." else f"{name}/{photo.path}"

    def _link_to(self, root: str) -> str:
        """Name of the link to a folder: the one that is there already, or a new one."""
        folder = Path(os.path.abspath(self._folder))
        if Path(root).is_relative_to(folder):
            return os.path.relpath(root, folder)
        for number in count(1):
            name = "photos" if number == 1 else f"photos-{number}"
            link = folder / name
            if name in self._names.values():
                continue
            if not os.path.lexists(link) or (link.is_symlink() and os.path.realpath(link) == os.path.realpath(root)):
                return name
        raise AssertionError("numbers do not end")

    def _try_later(self, photo: FoundPhoto | bytes) -> None:
        """Keeps photos to look into: at most 64, spread over all."""
        self._found += 1
        if self._found % self._every == 0:
            self._sample.append(photo)
            if len(self._sample) > _MOST_DECODED:
                self._sample = self._sample[1::2]
                self._every *= 2

    def _miss(self, product_id: str, photo: str, reason: str) -> None:
        if len(self.counts.examples) < _EXAMPLES:
            self.counts.examples.append((product_id, photo, reason))
        if self._failed_file is None:
            self._failed_file = self._failures.open("w", encoding="utf-8", errors="replace", newline="")
            csv.writer(self._failed_file).writerow(["product_id", "photo", "reason"])
        csv.writer(self._failed_file).writerow([product_id, photo, reason])
        self._failed_file.flush()

    def _settle(
        self, photo: dict[str, Any], product_id: str, failed: dict[str, tuple[str, str]]
    ) -> dict[str, Any] | None:
        """A photo as it is stored; None if it is missing after all."""
        if photo["bytes"] is not None:
            return photo
        inside, _, path = photo["path"].partition("/")
        if inside == DOWNLOADED and path in failed:
            self._miss(product_id, *failed[path])
            return None
        if not self.embed:
            return photo
        file = Path(self.located(photo)["path"])
        try:
            return {"bytes": file.read_bytes(), "path": file.name}
        except OSError as error:
            self.counts.found -= 1
            self._miss(product_id, photo["path"], error.strerror or str(error))
            return None

    def _first_missing(self) -> str:
        where = ", ".join(map(str, self._folders.roots)) or "no folder"
        lines = [
            f"{photo!r} of product {name!r} ({reason} below {where})" for name, photo, reason in self.counts.examples
        ]
        if self._downloads is not None:
            lines += [f"{url}: {reason}" for url, reason in self._downloads.failed.items()]
        return "; ".join([*lines, *self.unreadable][:_SHOWN])
