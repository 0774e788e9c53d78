"""Small JPEGs of product photos as data URIs."""

import base64
import io
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.photos import PhotoReader

SIZE = (132, 176)
"""Largest width and height in pixels, enough for a sharp picture on a dense screen."""
_QUALITY = 78


@dataclass(frozen=True)
class Thumbnail:
    """A product's first readable photo, made small.

    Attributes:
        uri: `data:image/jpeg;base64,…`; None where there is no photo to show.
        width: Pixels, 0 without a photo.
        height: Pixels, 0 without a photo.
        missing: Why there is none, as the placeholder says it; empty with a photo.
        others: Further photos of the product.
    """

    uri: str | None
    width: int = 0
    height: int = 0
    missing: str = ""
    others: int = 0


class Thumbnails:
    """Makes the thumbnail of a product row; the same row twice is read once."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._read = PhotoReader(max_photos=1, min_size=(SIZE[1], SIZE[0]), root=catalogue.photo_root)
        self.of = lru_cache(maxsize=4096)(self._make)

    def _make(self, row: int) -> Thumbnail:
        product = self._catalogue.product(row)
        image = product.get("image")
        stored = len(image) if isinstance(image, list) else int(image is not None)
        photos = self._read(product["product_id"], image)
        if not photos:
            return Thumbnail(None, missing="photo unreadable" if stored else "no photo")
        small = photos[0].copy()
        small.thumbnail(SIZE, Image.Resampling.LANCZOS)
        return Thumbnail(_data_uri(small), small.width, small.height, others=stored - 1)


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
