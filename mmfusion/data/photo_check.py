"""Whether the photos that products name can be read at all, before a model is trained or measured without them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mmfusion.data.catalogue import BaseCatalogue
from mmfusion.data.catalogue_checks import photo_paths
from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.data.photos import is_photo_list, unreadable_photos
from mmfusion.data.streamed_catalogue import StreamedCatalogue, groups_of
from mmfusion.data.tables import Rows, photo_counts

# Products whose paths are looked up: a stat takes microseconds on a disk, and up to a millisecond over a network.
_MOST_PATHS = 10_000
# Photos that are decoded, as a file of the right name may be an error page.
_MOST_DECODED = 64
# Row groups of a stream that are read, and products in each.
_GROUPS, _IN_GROUP = 8, 64
_SHOWN = 3


def check_photos(catalogue: BaseCatalogue, rows: Rows | None = None, *, allow_missing: bool = False) -> None:
    """Raises an error if fewer than half of the photos that products name can be read.

    Products that name no photo do not count. Of large catalogues, a sample over all rows is looked at: up to 10,000
    products for the files of paths, and 64 photos decoded; of a stream, parts of eight row groups.

    Args:
        catalogue: Products.
        rows: Rows that are going to be read, int64 (n,), ascending; None: all.
        allow_missing: Whether to continue anyway, without looking.

    Raises:
        CatalogueError: Names the first photos that cannot be read, with the paths that were tried.
    """
    if allow_missing or "image" not in catalogue.product_schema.names:
        return
    rows = np.arange(len(catalogue.products)) if rows is None else rows
    failures: list[str] = []
    parts = _streamed(catalogue, rows) if isinstance(catalogue, StreamedCatalogue) else _looked_up(catalogue, rows)
    named = readable = 0.0
    for weight, images in parts:
        share = readable_share(images, catalogue.photo_root, failures)
        if share is not None:
            named, readable = named + weight, readable + weight * share
    if readable < named / 2:
        where = "" if catalogue.photo_root is None else f" are relative to {catalogue.photo_root!r} and"
        raise CatalogueError(
            f"only {readable / named:.0%} of the photos that products name can be read; among the others: "
            + "; ".join(failures),
            f"catalogue {catalogue.source!r}, column 'image'",
            f"Check the photos (paths{where} must be those of image files), or give --allow_missing_photos true to "
            "continue with texts alone where photos are missing.",
        )


def readable_share(images: Iterable[Any], root: str | None, failures: list[str]) -> float | None:
    """Share of photos that can be read, among those that are named; None where none is.

    Args:
        images: Values of the column ``image``, undecoded.
        root: Folder that relative paths are in.
        failures: Gets the reasons of the first photos that cannot be read.
    """
    photos = [photo for image in images for photo in (image if is_photo_list(image) else [image]) if _is_named(photo)]
    if not photos:
        return None
    there = []
    for photo in photos:
        path = photo["path"] if photo.get("bytes") is None else None
        if path is None or os.path.isfile(os.path.join(root or "", path)):
            there.append(photo)
        elif len(failures) < _SHOWN:
            failures.append(f"no file at {os.path.join(root or '', path)!r}")
    tried = there[:: -(-len(there) // _MOST_DECODED) or 1]
    bad = unreadable_photos(tried, root)
    failures += bad[: max(0, _SHOWN - len(failures))]
    return len(there) / len(photos) * (1 - len(bad) / len(tried) if tried else 0)


def _is_named(photo: Any) -> bool:
    return photo is not None and (photo.get("bytes") is not None or bool(photo.get("path")))


def _looked_up(catalogue: BaseCatalogue, rows: Rows) -> list[tuple[float, list[Any]]]:
    """(number of products, sample of their photos) for products with paths, and for those with bytes."""
    by_path = np.zeros(len(catalogue.products), dtype=bool)
    start = 0
    for chunk in catalogue.products.data.column("image").chunks:
        named, paths = photo_paths(chunk)
        by_path[start + named.filter(pc.not_equal(paths, "")).to_numpy()] = True
        start += len(chunk)
    by_bytes = (photo_counts(catalogue, 1) > 0) & ~by_path
    images = catalogue.products.select_columns(["image"])
    parts = []
    for kind, most in ((by_path, _MOST_PATHS), (by_bytes, _MOST_DECODED)):
        found = rows[kind[rows]]
        parts.append((float(len(found)), images[_spread(found, most).tolist()]["image"] if len(found) else []))
    return parts


def _streamed(catalogue: StreamedCatalogue, rows: Rows) -> list[tuple[float, list[Any]]]:
    groups = groups_of(catalogue.shards.starts, rows)
    images = []
    for group in _spread(np.unique(groups), _GROUPS).tolist():
        records = catalogue.shards.read(group, _spread(rows[groups == group], _IN_GROUP), ["image"])
        images += [record["image"] for record in records]
    return [(1.0, images)]


def _spread(values: Rows, most: int) -> Rows:
    """At most so many of the values, evenly over all of them."""
    return values if len(values) <= most else values[np.linspace(0, len(values) - 1, most).astype(np.int64)]
