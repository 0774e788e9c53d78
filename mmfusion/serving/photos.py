"""Photos of products as small pictures, made from the catalogue when they are first asked for, and kept on disk."""

import asyncio
import hashlib
import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.photos import decode_photo, is_photo_list, photo_bytes
from mmfusion.files import whole_file
from mmfusion.model.photos import DECODER, PhotoError
from mmfusion.retrieval.products import IdLookup
from mmfusion.serving.requests import short
from mmfusion.training.catalogue_cache import load_shared

logger = logging.getLogger(__name__)

SIZE = 480
"""Largest width and height of a picture in pixels: what a card of the page takes on a dense screen."""

_QUALITY = 80
_MAX_FILE_BYTES = 64 * 2**20
# Seconds that a browser shows a picture without asking again.
_MAX_AGE = 3600


@dataclass(frozen=True)
class Thumbnail:
    """A small picture: WebP, and the name by which a browser knows whether it has changed."""

    data: bytes
    etag: str


class Thumbnails:
    """Small pictures of the products of a catalogue, which never looks at a file that the catalogue does not name.

    Args:
        source: Folder, URL or Hub id of the catalogue.
        folder: Where pictures are kept in `thumbnails`, and the catalogue in the form that is mapped into memory.

    Raises:
        CatalogueError, OSError: The catalogue cannot be loaded.
    """

    def __init__(self, source: str, folder: Path) -> None:
        self.source, self.folder = source, folder
        self._catalogue = load_shared(Catalogue.load_products, source, folder)
        self._ids = IdLookup(self._catalogue.products.data.table)
        self._ids.row_of("")
        self._bad: set[str] = set()
        self._writable = True

    @property
    def are_there(self) -> bool:
        """Whether the catalogue has photos at all."""
        return "image" in self._catalogue.products.column_names

    def __call__(self, product_id: str) -> Thumbnail | None:
        """The first photo of a product that can be read; None if there is none.

        Raises:
            KeyError: There is no such product.
        """
        row = self._ids.row_of(product_id)
        if row is None:
            raise KeyError(product_id)
        image: Any = self._catalogue.product(row).get("image")
        reason = ""
        for photo in image if is_photo_list(image) else [] if image is None else [image]:
            try:
                return self._of(photo_bytes(photo, self._catalogue.photo_root))
            except PhotoError as error:
                reason = str(error)
        if reason and product_id not in self._bad:
            self._bad.add(product_id)
            logger.warning("product %r is shown without a photo: %s", product_id, reason)
        return None

    def _of(self, data: bytes) -> Thumbnail:
        if len(data) > _MAX_FILE_BYTES:
            raise PhotoError(f"{len(data):,} bytes; at most {_MAX_FILE_BYTES:,} are read for a small picture")
        # By what it shows: a photo that is replaced has another name, and what several products share is kept once.
        name = hashlib.sha256(f"{SIZE} {_QUALITY} {DECODER} ".encode() + data).hexdigest()[:40]
        path = self.folder / "thumbnails" / name[:2] / f"{name}.webp"
        try:
            return Thumbnail(path.read_bytes(), name)
        except OSError:
            small, file = decode_photo(data, min_size=(SIZE, SIZE)), io.BytesIO()
        small.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
        small.save(file, "WEBP", quality=_QUALITY)
        try:
            if self._writable:
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(path, concurrent=True) as kept:
                    kept.write(file.getvalue())
        except OSError as error:
            self._writable = False
            text = "pictures cannot be kept in %s (%s), so each is made again when it is asked for; give --photo_cache"
            logger.warning(text, path.parent.parent, error.strerror or error)
        return Thumbnail(file.getvalue(), name)


class Photos:
    """Answers requests for photos, a few at a time and apart from searches.

    Args:
        thumbnails: Where they come from; replaced when there is a new index.
        max_waiting: Photos that wait at most; further ones are answered with 503.
    """

    def __init__(self, thumbnails: Thumbnails, max_waiting: int) -> None:
        self.thumbnails = thumbnails
        self._max_waiting = max_waiting
        self._waiting = 0
        self._pool = ThreadPoolExecutor(max(1, min(4, (os.cpu_count() or 1) // 2)), thread_name_prefix="photos")

    async def photos(self, request: Request) -> Response:
        """A product's photo as WebP; 204 if the product has none, 404 if there is no such product."""
        product_id = request.path_params["product_id"]
        if self._waiting >= self._max_waiting:
            waiting = f"{self._waiting} photos wait already; try again in a second."
            raise HTTPException(503, waiting, {"retry-after": "1"})
        self._waiting += 1
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._pool, self.thumbnails, product_id)
        except KeyError:
            missing = f"there is no product {short(repr(product_id))} in the catalogue."
            raise HTTPException(404, missing) from None
        finally:
            self._waiting -= 1
        headers = {"cache-control": f"max-age={_MAX_AGE}", "x-content-type-options": "nosniff"}
        if found is None:
            return Response(status_code=204, headers=headers)
        headers["etag"] = etag = f'"{found.etag}"'
        known = request.headers.get("if-none-match", "")
        if known == "*" or etag in known:
            return Response(status_code=304, headers=headers)
        return Response(found.data, media_type="image/webp", headers=headers)

    def close(self) -> None:
        """Forgets what waits."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def look_again(self) -> None:
        """Reads the catalogue again, as a new index may be of a new one; the old one stays if that fails."""
        try:
            self.thumbnails = Thumbnails(self.thumbnails.source, self.thumbnails.folder)
        except (OSError, ValueError) as error:
            logger.warning("photos stay those of the catalogue before: %s", error)
