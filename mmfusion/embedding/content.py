"""Digests of what a product shows to the model, which tell whether it has changed since it was embedded."""

import hashlib
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfusion.data.photos import PhotoError, decoder_of, photo_bytes
from mmfusion.data.tables import ProductTable, Rows
from mmfusion.progress import progress_bar

# 128 bits of blake2b as two numbers, so that millions are compared without an object for each.
Digests = npt.NDArray[np.uint64]
_BLOCK = 1024


def content_digests(table: ProductTable, rows: Rows, *, photos_beside_text: bool = True) -> Digests:
    """Digests (P, 2) of products: of the text that the template renders, and of the photos as they are stored.

    Photos are read and not decoded; one that a newer decoder shows otherwise has another digest since. A column that
    the template leaves out has no part in it, as vectors do not depend on it.

    Args:
        table: Where the rows point.
        rows: (P,) int64 product rows.
        photos_beside_text: False for a tower of texts, which looks at the photos of products without a text alone.
    """
    digests = np.zeros((len(rows), 2), dtype=np.uint64)
    with progress_bar(total=len(rows), desc="reading products", unit="product") as bar:
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            texts = table.texts(block)
            images = _images(table, block, [photos_beside_text or not text for text in texts])
            for place, (text, image) in enumerate(zip(texts, images, strict=True), start):
                digests[place] = np.frombuffer(_digest(text, image, table.catalogue.photo_root), dtype=np.uint64)
            bar.update(len(block))
    return digests


def _images(table: ProductTable, rows: Rows, wanted: list[bool]) -> list[Any]:
    """The photos of products, None for those that are not wanted."""
    if not table.photos or not any(wanted):
        return [None] * len(rows)
    found = iter(table.catalogue.products.select_columns(["image"])[rows[wanted].tolist()]["image"])
    return [next(found) if one else None for one in wanted]


def _digest(text: str, image: Any, root: str | os.PathLike[str] | None) -> bytes:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for photo in image if isinstance(image, list) else [image]:
        try:
            data = b"" if photo is None else photo_bytes(photo, root)
        except PhotoError as error:
            # Treated as missing when it is embedded; once it can be read, the product has changed.
            data = str(error).encode()
        digest.update(b"\0photo" + len(data).to_bytes(8, "little"))
        digest.update(data)
        if (decoder := decoder_of(data)) > 1:
            digest.update(b"\0decoder" + bytes([decoder]))
    return digest.digest()
