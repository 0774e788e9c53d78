"""Photos as they are found in the wild: decoding one, a policy for those that cannot be decoded, crops for training."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmfusion.data.photo_headers import may_need_colours, without_profile
from mmfusion.model.missing import is_missing
from mmfusion.model.photos import (
    MAX_PIXELS,
    PhotoError,
    check_size,
    first_decoder,
    one_line_errors,
    quiet_pillow,
    upright_rgb,
)

logger = logging.getLogger(__name__)

# Vector and document formats are left out: Pillow hands some of them (EPS) to an external interpreter.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "MPO", "PPM", "ICO")


FETCH_PHOTOS = (
    "`mmfusion import … --photos download` makes a catalogue with the files; from Python, mmfusion.hub.PhotoFetcher "
    "fetches one."
)
"""The remedy where a photo is a URL."""


def decode_photo(
    photo: Mapping[str, Any] | bytes | bytearray | memoryview,
    *,
    max_pixels: int = MAX_PIXELS,
    min_size: tuple[int, int] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Decodes one photo to 8-bit RGB.

    The first frame of an animation is taken, an embedded colour profile and the EXIF orientation are applied, what is
    transparent becomes white and 16-bit channels are scaled to 8 bits (high byte). `upright_rgb` does all of it.

    Args:
        photo: The encoded file, or a mapping with ``bytes`` (the encoded file) or, where that is null, ``path``.
        max_pixels: Largest width x height that is decoded. Pillow's own limit (``2 * Image.MAX_IMAGE_PIXELS``) stays.
        min_size: (height, width) in pixels. A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that still
            is at least this large on both sides, which is several times faster and deterministic. None: full size.
        root: Folder that a relative ``path`` is resolved in and must not leave. None: only absolute paths.

    Returns:
        An image in mode RGB, at least 1x1, values 0 to 255, with empty ``info``.

    Raises:
        PhotoError: The photo is empty, truncated, corrupt, too large, of an unknown format or not an image.
    """
    data = photo_bytes(photo, root)
    with quiet_pillow(), one_line_errors():
        try:
            return _decode(data, max_pixels, min_size)
        except UnidentifiedImageError:
            raise PhotoError(_unidentified_reason(data)) from None
        except Image.DecompressionBombError as error:
            raise PhotoError(f"more than {max_pixels:,} pixels allowed, a decompression bomb") from error


def unreadable_photos(photos: Iterable[Any], root: str | os.PathLike[str] | None = None) -> list[str]:
    """Those of some photos that nothing can be seen in: where each is, and why.

    Args:
        photos, root: As for `decode_photo`; undecoded values of the column ``image``.
    """
    found = []
    for photo in photos:
        try:
            decode_photo(photo, min_size=(16, 16), root=root)
        except PhotoError as error:
            found.append(f"{photo.get('path') or 'a photo stored as bytes'!r}: {error}")
    return found


def decoder_of(data: bytes) -> int:
    """The version of the decoder since which a photo looks as it does now, from its header alone: 1 for most photos.

    What is kept of a photo (a vector, activations) under its bytes is kept under this version as well.

    Args:
        data: The encoded file, which may be none.

    Returns:
        1 to `DECODER` of `mmfusion.model.photos`.
    """
    if not may_need_colours(data):
        return 1
    with quiet_pillow():
        try:
            with _open_whole(data) as image:
                return first_decoder(image)
        except ImportError:
            raise
        except Exception:
            # No photo, in whichever version, unless it is one without its profile.
            return 1 if without_profile(data) is None else 2


def newest_decoder(image: Any, root: str | os.PathLike[str] | None) -> int:
    """The newest of the versions `decoder_of` gives for a product's photos: none, one or a list, as in a catalogue."""
    newest = 1
    for photo in image if is_photo_list(image) else [image]:
        # A photo that cannot be read is a missing one, in whichever version.
        with suppress(PhotoError):
            newest = max(newest, decoder_of(photo_bytes(photo, root)))
    return newest


def files_digest(image: Any, root: str | os.PathLike[str] | None) -> bytes:
    """Digests of the files that a product's photos are stored in; none for photos stored as bytes."""
    digests = []
    for photo in image if is_photo_list(image) else [image]:
        if isinstance(photo, Mapping) and is_missing(photo.get("bytes")):
            with suppress(PhotoError):
                digests.append(hashlib.blake2b(photo_bytes(photo, root), digest_size=16).digest())
    return b"".join(digests)


class PhotoReader:
    """Reads the photos of products; a bad photo is counted, logged once per product and treated as missing.

    A product's ``image`` may be null, one photo or a list of photos. Nulls (also ``{"bytes": None, "path": None}``)
    are missing photos, not bad ones. Of a list, the first ``max_photos`` readable photos are returned, in order.

    Each process (a DataLoader worker, too) keeps its own account.

    Attributes:
        bad: Reason by product id, for products of which at least one photo was bad.
    """

    def __init__(
        self,
        *,
        max_photos: int = 4,
        min_size: tuple[int, int] | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        """Sets the policy.

        Args:
            max_photos: Most photos returned for one product, at least 1; the rest of a list is not read.
            min_size: See `decode_photo`.
            root: See `decode_photo`; a catalogue's ``photo_root``.

        Raises:
            ValueError: ``max_photos`` is below 1.
        """
        if max_photos < 1:
            raise ValueError(f"PhotoReader: max_photos is {max_photos}; give at least 1. To read none, pass no photos.")
        self.max_photos = max_photos
        self.min_size = min_size
        self.root = root
        self.bad: dict[str, str] = {}

    def __call__(self, product_id: str, image: Any) -> list[Image.Image]:
        """Reads the photos of one product.

        Args:
            product_id: Names the product in the log and in `bad`.
            image: None, a photo as `decode_photo` takes it, or a sequence of photos and nulls.

        Returns:
            0 to ``max_photos`` images in mode RGB.
        """
        entries = list(image) if is_photo_list(image) else [image]
        photos: list[Image.Image] = []
        reasons: list[str] = []
        for number, entry in enumerate(entries, start=1):
            if len(photos) == self.max_photos:
                break
            if is_null(entry):
                continue
            try:
                photos.append(decode_photo(entry, min_size=self.min_size, root=self.root))
            except PhotoError as error:
                reasons.append(f"photo {number} of {len(entries)}: {error}" if len(entries) > 1 else str(error))
        if reasons and product_id not in self.bad:
            self.bad[product_id] = "; ".join(reasons)
            logger.warning("product %r: bad photo treated as missing: %s", product_id, self.bad[product_id])
        return photos


def cropped_photo(photo: Image.Image, product_id: str, crop: int) -> Image.Image:
    """An augmented photo for training; the same arguments always give the same pixels.

    Colours are left alone: colour jitter and grayscale are what most contrastive recipes use, and they destroy what
    visual queries ask for.

    Args:
        photo: RGB image.
        product_id: Whose photo it is.
        crop: 0 is the photo as it is. Every other number is a crop of 72 to 95 % of each side, mirrored or not.
    """
    if crop == 0:
        return photo
    rng = np.random.default_rng([zlib.crc32(product_id.encode()), crop])
    share = rng.uniform(0.72, 0.95)
    width, height = (max(1, round(side * share)) for side in photo.size)
    left, top = (
        int(rng.integers(0, whole - part + 1)) for whole, part in zip(photo.size, (width, height), strict=True)
    )
    cropped = photo.crop((left, top, left + width, top + height))
    return ImageOps.mirror(cropped) if rng.random() < 0.5 else cropped


def is_url(path: str) -> bool:
    """Whether a photo is given as an address rather than as a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path, re.IGNORECASE) is not None


def is_photo_list(image: Any) -> bool:
    """Whether a product's photos are several: a sequence, or the array of objects of a list column of pandas."""
    if getattr(getattr(image, "dtype", None), "kind", "") == "O":
        return True
    return isinstance(image, Sequence) and not isinstance(image, (str, bytes, bytearray, memoryview))


def is_null(photo: Any) -> bool:
    if not isinstance(photo, Mapping):
        return is_missing(photo)
    path = photo.get("path")
    return is_missing(photo.get("bytes")) and (is_missing(path) or not path)


def photo_bytes(photo: Any, root: str | os.PathLike[str] | None) -> bytes:
    """The encoded file of a photo, as `decode_photo` takes it.

    Raises:
        PhotoError: It is empty, no file, or outside of `root`.
    """
    if isinstance(photo, Mapping):
        data, path = photo.get("bytes"), photo.get("path")
        if is_missing(data) and path:
            data = _read_file(os.fspath(path), root)
    else:
        data = photo
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise PhotoError(f"{type(data).__name__} where the bytes of an image file were expected")
    if len(data) == 0:
        raise PhotoError("empty, 0 bytes")
    return bytes(data)


def _read_file(path: str, root: str | os.PathLike[str] | None) -> bytes:
    if is_url(path):
        raise PhotoError(f"{path!r} is a URL, which is not fetched here. {FETCH_PHOTOS}")
    if root is None and not os.path.isabs(path):
        raise PhotoError(f"relative path {path!r} without a folder to find it in")
    if root is not None:
        folder = os.path.abspath(root)
        # Links inside the folder are its owner's choice (a Hub snapshot consists of links): only the name is checked.
        resolved = os.path.normpath(os.path.join(folder, path))
        if os.path.commonpath([folder, resolved]) != folder:
            raise PhotoError(f"path {path!r} leaves the folder {folder!r}")
        path = resolved
    if not os.path.isfile(path):
        raise PhotoError(f"no file at {path!r}")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise PhotoError(f"file {path!r} cannot be read: {error.strerror or error}") from error


def _decode(data: bytes, max_pixels: int, min_size: tuple[int, int] | None) -> Image.Image:
    with _open(data) as image:
        check_size(image, max_pixels)
        if min_size is not None:
            # The orientation is not known yet, so both sides must be large enough for the longer one.
            image.draft(None, (max(min_size), max(min_size)))
        return upright_rgb(image, max_pixels=max_pixels)


def _open(data: bytes) -> Image.Image:
    try:
        return _open_whole(data)
    except Exception:
        # Pillow rejects the whole photo where a PNG's profile is longer than its limit, or is none at all.
        without = without_profile(data)
        if without is None:
            raise
        return _open_whole(without)


def _open_whole(data: bytes) -> Image.Image:
    Image.init()
    return Image.open(BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])


def _unidentified_reason(data: bytes) -> str:
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<"):
        kind = "SVG" if b"<svg" in start else "HTML or XML"
        return f"{kind} text instead of a raster image"
    return f"not an image in a known format, it starts with {bytes(data[:12])!r}"
