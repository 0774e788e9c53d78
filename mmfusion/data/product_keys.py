"""What distinguishes products of one training batch: their photo, their title, or the value of a column."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue import BaseCatalogue, CatalogueError
from mmfusion.files import whole_file

IntArray = npt.NDArray[np.int64]

KINDS = ("product", "photo", "title")
_ROWS = 1_000


def product_keys(catalogue: BaseCatalogue, kinds: Sequence[str]) -> IntArray:
    """Keys by which two products are alike: equal in one column, they are duplicates of that kind.

    Titles are compared without case and outer blanks. Of several photos the first one counts, by the bytes of its file:
    further ones, such as a size chart, are shared by products that are not alike. A photo that is stored as a path is
    identified by its path.

    Args:
        catalogue: Its products.
        kinds: Of `KINDS`, at least one.

    Returns:
        int64 (number of products, kinds other than product, which is a key by itself), at least 0; -1 where the product
        lacks a photo or a title.

    Raises:
        CatalogueError: A kind is unknown.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise CatalogueError(f"no_duplicates names {unknown[0]!r}", "", f"Use one or more of {', '.join(KINDS)}.")
    made = {"photo": _photo_keys, "title": _title_keys}
    columns = [make(catalogue) for kind, make in made.items() if kind in kinds]
    return np.array(columns, dtype=np.int64).reshape(len(columns), len(catalogue.products)).T


def group_keys(catalogue: BaseCatalogue, column: str) -> IntArray:
    """Number of each product's value of a column, int64 (number of products,); null (or NaN) is a value of its own, -1.

    Raises:
        CatalogueError: There is no such column, or its values are lists or structs.
    """
    table, problem = catalogue.products, None
    if column not in table.column_names:
        problem = f"group_by names the column {column!r}"
        remedy = f"Use one of {', '.join(name for name in table.column_names if name != 'image')}."
    elif pa.types.is_nested(table.data.column(column).type):
        problem = f"group_by names {column!r}, whose values are {table.data.column(column).type}"
        remedy = "Use a column with one text or number per product."
    if problem is not None:
        raise CatalogueError(problem, f"products of {catalogue.source}", remedy)
    return _numbered(table.data.column(column))


def _title_keys(catalogue: BaseCatalogue) -> IntArray:
    titles = pc.utf8_lower(pc.utf8_trim_whitespace(catalogue.products.data.column("title")))
    return _numbered(pc.if_else(pc.equal(titles, ""), pa.scalar(None, titles.type), titles))


def _numbered(values: Any) -> IntArray:
    values = values.combine_chunks()
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    codes = values.dictionary_encode().indices
    numbers: IntArray = pc.fill_null(codes.cast("int64"), -1).to_numpy(zero_copy_only=False)
    return numbers


def _photo_keys(catalogue: BaseCatalogue) -> IntArray:
    products = catalogue.products
    if "image" not in products.column_names:
        return np.full(len(products), -1, dtype=np.int64)
    # Beside the memory-mapped table, whose name changes with its content; nowhere for a table in memory.
    place = Path(f"{products.cache_files[0]['filename']}.photos.npy") if len(products.cache_files) == 1 else None
    if place is not None and place.exists():
        return np.asarray(np.load(place), dtype=np.int64)
    keys = _hash_photos(catalogue)
    if place is not None:
        with whole_file(place, concurrent=True) as file:
            np.save(file, keys)
    return keys


def _hash_photos(catalogue: BaseCatalogue) -> IntArray:
    batches = catalogue.products.select_columns(["image"]).data.table.to_batches(max_chunksize=_ROWS)
    return np.array([_hash(image) for batch in batches for image in batch.column(0).to_pylist()], dtype=np.int64)


def _hash(image: Any) -> int:
    for photo in image if isinstance(image, list) else [image]:
        told_by = None if photo is None else photo.get("bytes") or (photo.get("path") or "").encode()
        if told_by:
            # 63 bits: of a million photos two collide with a probability of 5e-8, and then a pair waits for a batch.
            return int.from_bytes(hashlib.blake2b(told_by, digest_size=8).digest(), "little") >> 1
    return -1
