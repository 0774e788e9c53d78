"""Photos as they are found in the wild: decoding one, and a policy for those that cannot be decoded."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmfusion.model.processing_mmfusion import is_missing

MAX_PIXELS = 64_000_000
"""Photos with more pixels (width x height, from the header) are refused before they are decoded."""

logger = logging.getLogger("mmfusion")

# Vector and document formats are left out: Pillow hands some of them (EPS) to an external interpreter.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "MPO", "PPM", "ICO")

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PhotoError(ValueError):
    """A photo cannot be decoded; the message is a short reason."""


def decode_photo(
    photo: Mapping[str, Any] | bytes | bytearray | memoryview,
    *,
    max_pixels: int = MAX_PIXELS,
    min_size: tuple[int, int] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Decodes one photo to 8-bit RGB.

    The first frame of an animation is taken, the EXIF orientation is applied, transparency is composited on white and
    16-bit channels are scaled to 8 bits (high byte). Embedded colour profiles are not applied.

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
    with _quiet_pillow():
        try:
            return _decode(data, max_pixels, min_size)
        except PhotoError:
            raise
        except UnidentifiedImageError:
            raise PhotoError(_unidentified_reason(data)) from None
        except Image.DecompressionBombError as error:
            raise PhotoError(f"more than {max_pixels:,} pixels allowed, a decompression bomb") from error
        except Exception as error:
            # Pillow's plugins raise a dozen kinds on corrupt input: OSError, SyntaxError, struct.error, IndexError ...
            raise PhotoError(f"corrupt or truncated: {error or type(error).__name__}") from error


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
        max_pixels: int = MAX_PIXELS,
        min_size: tuple[int, int] | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        """Sets the policy.

        Args:
            max_photos: Most photos returned for one product, at least 1; the rest of a list is not read.
            max_pixels: See `decode_photo`.
            min_size: See `decode_photo`.
            root: See `decode_photo`; a catalogue's ``photo_root``.

        Raises:
            ValueError: ``max_photos`` or ``max_pixels`` is below 1.
        """
        for name, value in (("max_photos", max_photos), ("max_pixels", max_pixels)):
            if value < 1:
                raise ValueError(
                    f"PhotoReader: {name} is {value}; it must be at least 1. To read none, pass no photos."
                )
        self.max_photos = max_photos
        self.max_pixels = max_pixels
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
        entries = list(image) if _is_list(image) else [image]
        photos: list[Image.Image] = []
        reasons: list[str] = []
        for number, entry in enumerate(entries, start=1):
            if len(photos) == self.max_photos:
                break
            if _is_null(entry):
                continue
            try:
                photos.append(decode_photo(entry, max_pixels=self.max_pixels, min_size=self.min_size, root=self.root))
            except PhotoError as error:
                reasons.append(f"photo {number} of {len(entries)}: {error}" if len(entries) > 1 else str(error))
        if reasons:
            self._note(product_id, "; ".join(reasons))
        return photos

    def _note(self, product_id: str, reason: str) -> None:
        if product_id not in self.bad:
            self.bad[product_id] = reason
            logger.warning("product %r: bad photo treated as missing: %s", product_id, reason)


def _is_list(image: Any) -> bool:
    return isinstance(image, Sequence) and not isinstance(image, (str, bytes, bytearray, memoryview))


def _is_null(photo: Any) -> bool:
    return is_missing(photo) or (isinstance(photo, Mapping) and photo.get("bytes") is None and not photo.get("path"))


def photo_bytes(photo: Any, root: str | os.PathLike[str] | None) -> bytes:
    """The encoded file of a photo, as `decode_photo` takes it.

    Raises:
        PhotoError: It is empty, no file, or outside of `root`.
    """
    if isinstance(photo, Mapping):
        data, path = photo.get("bytes"), photo.get("path")
        if data is None and path:
            data = _read_file(os.fspath(path), root)
    else:
        data = photo
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise PhotoError(f"{type(data).__name__} where the bytes of an image file were expected")
    if len(data) == 0:
        raise PhotoError("empty, 0 bytes")
    return bytes(data)


def _read_file(path: str, root: str | os.PathLike[str] | None) -> bytes:
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
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    with Image.open(BytesIO(data), formats=formats) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise PhotoError(f"{width}x{height} is more than {max_pixels:,} pixels, a decompression bomb")
        if width < 1 or height < 1:
            raise PhotoError(f"{width}x{height} has no pixels")
        if min_size is not None:
            # The orientation is not known yet, so both sides must be large enough for the longer one.
            image.draft(None, (max(min_size), max(min_size)))
        image.load()
        upright = _apply_orientation(image)
        rgb = _to_rgb(upright)
    # A result that still carried its EXIF would be turned a second time by whoever honours it.
    rgb.info.clear()
    return rgb


def _apply_orientation(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        # A damaged EXIF block says nothing about the pixels: the photo is used as stored.
        return image
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey16_to_rgb(image)
    if image.mode == "F":
        raise PhotoError("floating-point pixels, which have no defined white")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    # A photo already in RGB is copied: the file's own object holds on to its buffer.
    return image.convert("RGB")


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    """The high byte, which is what Pillow takes of 16-bit RGB; its own conversion clips at 255 instead."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise PhotoError("32-bit grey pixels, which have no defined white")
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _unidentified_reason(data: bytes) -> str:
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<"):
        kind = "SVG" if b"<svg" in start else "HTML or XML"
        return f"{kind} text instead of a raster image"
    return f"not an image in a known format, it starts with {bytes(data[:12])!r}"


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_filters: Any = None


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Ignores warnings that Pillow itself raises; what they warn of is either refused or handled here.

    ``warnings.catch_warnings`` restores the filters that it found, so that overlapping uses in several threads would
    leave the wrong ones behind: the first thread in enters, the last one out leaves.
    """
    global _quiet_depth, _quiet_filters
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_filters.__exit__(None, None, None)


def _reset_after_fork() -> None:
    """A thread that held the lock does not exist in the child, which would wait for it for ever."""
    global _quiet_lock, _quiet_depth
    _quiet_lock = threading.Lock()
    _quiet_depth = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
