"""A photo as the model sees it: its first frame, upright, opaque, in 8-bit sRGB, whichever way it was stored."""

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from io import BytesIO
from itertools import product
from typing import Any, cast

from PIL import Image, ImageChops, ImageCms

from .errors import MMFusionError

logger = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000
"""Photos with more pixels (width x height, from the header) are an error before they are decoded."""

DECODER = 2
"""Version of what this file makes of a photo. 1 is how all photos were read before colour profiles were applied.

It says nothing about most photos, whose pixels are the same in every version; see `first_decoder`.
"""


_EXIF_ORIENTATION = 0x0112
_TIFF_PROFILE = 0x8773
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Larger than that of any printing press; what is cached is bounded by it.
_MAX_PROFILE_BYTES = 4 * 2**20
_MAX_PROFILES = 16
# An sRGB profile as cameras and programs write it differs from another one by rounding. Within this tolerance (of 255)
# the pixels stay as they are, bit for bit.
_SAME = 2
_GREY_MODES = ("1", "L", "LA", "La")
# Colour spaces of profiles (ICC.1, table 19) and the modes of Pillow that hold their values.
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
# Input, display, output and colour space profiles; the other classes (links, abstract, named) describe no pixels.
_CLASSES = ("scnr", "mntr", "prtr", "spac")


class PhotoError(MMFusionError):
    """A photo cannot be used; the message is a short reason."""


def upright_rgb(photo: Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The photo in 8-bit sRGB, the same for an image that Pillow opened as for its file.

    Of several frames or pages the first one is taken, whichever is current. An embedded ICC profile is applied, the
    EXIF orientation too. What is transparent becomes white. 16-bit grey is scaled to 8 bits by its high byte.

    What the image says about itself is believed, so whoever turns it or removes its transparency must take the EXIF
    orientation out as well (as `ImageOps.exif_transpose` does) and choose the colour behind it.

    Args:
        photo: An image of any mode but F; it keeps its frame, and is loaded if it was not.
        max_pixels: Largest width x height.

    Returns:
        An image in mode RGB, at least 1x1, values 0 to 255, with empty `info`: `photo` itself if it is one already.

    Raises:
        PhotoError: The photo is truncated, corrupt or too large, its file is closed, or its pixels have no defined
            white (mode F, or I beyond 16 bits).
    """
    if type(photo) is Image.Image and photo.mode == "RGB" and not photo.info and not photo.getexif():
        check_size(photo, max_pixels)
        return photo
    with quiet_pillow(), one_line_errors(), _first_frame(photo):
        check_size(photo, max_pixels)
        _load(photo)
        rgb = _to_rgb(_turned(photo))
    # A result that still carried its EXIF would be turned a second time by whoever honours it.
    rgb.info.clear()
    return rgb


def first_decoder(photo: Image.Image) -> int:
    """The version of `DECODER` since which a photo has the pixels that it has now; its pixels are not decoded.

    Args:
        photo: An image as `Image.open` gives it.
    """
    keyed = photo.info.get("transparency")
    wide_key = photo.mode.startswith("I;16") and keyed is not None
    return 2 if photo.mode == "LAB" or wide_key or _is_wide(keyed) or _conversion(photo) is not None else 1


def check_size(photo: Image.Image, max_pixels: int) -> None:
    """Raises a PhotoError if a photo has no pixels, or more than `max_pixels`."""
    width, height = photo.size
    if width * height > max_pixels:
        raise PhotoError(f"{width}x{height} is more than {max_pixels:,} pixels, a decompression bomb")
    if width < 1 or height < 1:
        raise PhotoError(f"{width}x{height} has no pixels")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns any error that Pillow raises over a photo into a PhotoError."""
    try:
        yield
    except (PhotoError, ImportError):
        raise
    except Exception as error:
        # Pillow's plugins raise a dozen kinds on corrupt input: OSError, SyntaxError, struct.error, IndexError ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PhotoError(f"corrupt or truncated: {reason}") from error


def _load(photo: Image.Image) -> None:
    file = getattr(photo, "fp", None)
    if getattr(photo, "tile", None) and (file is None or getattr(file, "closed", False)):
        raise PhotoError("its file is closed and it was not loaded; call load() while the file is open")
    photo.load()


@contextmanager
def _first_frame(photo: Image.Image) -> Iterator[None]:
    frame = photo.tell()
    if frame:
        photo.seek(0)
    try:
        yield
    finally:
        if frame:
            photo.seek(frame)


def _turned(photo: Image.Image) -> Image.Image:
    if hasattr(photo, "applist") and not {"exif", "xmp"} & photo.info.keys():
        # Pillow would still tell the orientation of another frame of an MPO that was looked at before.
        return photo
    try:
        orientation = photo.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        # A damaged EXIF block says nothing about the pixels: the photo is used as stored.
        return photo
    method = _TRANSPOSE.get(orientation)
    return photo if method is None else photo.transpose(method)


def _to_rgb(photo: Image.Image) -> Image.Image:
    photo = _eight_bits(photo)
    conversion = _conversion(photo)
    if not photo.has_transparency_data:
        # A photo already in RGB is copied: the file's own object holds on to its buffer.
        return photo.convert("RGB") if conversion is None else conversion(photo)
    layer = photo.convert("RGBA")
    if conversion is not None:
        # Before the white is put behind it, as that is white in sRGB, whatever the profile takes for white.
        colours = conversion(layer)
        colours.putalpha(layer.getchannel("A"))
        layer = colours
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _eight_bits(photo: Image.Image) -> Image.Image:
    """The photo in a mode of 8 bits that Pillow converts to RGB or, where it is transparent, to RGBA."""
    if photo.mode == "F":
        raise PhotoError("floating-point pixels, which have no defined white")
    if photo.mode == "I" or photo.mode.startswith("I;16"):
        return _grey16(photo)
    if photo.mode == "La":
        return photo.convert("LA")
    keyed: Any = photo.info.get("transparency")
    if photo.mode == "RGB" and _is_wide(keyed):
        # Of 16-bit RGB, Pillow keeps the high bytes of the pixels and both of the transparent colour.
        photo = photo.copy()
        photo.info["transparency"] = tuple(value >> 8 for value in keyed)
    return photo


def _is_wide(keyed: Any) -> bool:
    """Whether a transparent colour is one of 16 bits."""
    return isinstance(keyed, tuple) and max(keyed) > 255


def _grey16(photo: Image.Image) -> Image.Image:
    """The high byte, which is what Pillow takes of 16-bit RGB; its own conversion clips at 255 instead."""
    wide = photo.convert("I")
    low, high = cast("tuple[float, float]", wide.getextrema())
    if low < 0 or high > 65535:
        raise PhotoError("32-bit grey pixels, which have no defined white")
    values = wide.convert("I;16").tobytes("raw", "I;16")
    grey = Image.frombytes("L", photo.size, values[1::2])
    keyed = photo.info.get("transparency")
    if isinstance(keyed, int):
        lower = Image.frombytes("L", photo.size, values[0::2])
        halves = (grey, keyed >> 8), (lower, keyed & 255)
        same = [half.point([255 * (level == value) for level in range(256)]) for half, value in halves]
        grey.putalpha(ImageChops.invert(ImageChops.darker(*same)))
    grey.info["icc_profile"] = photo.info.get("icc_profile")
    return grey


Conversion = Callable[[Image.Image], Image.Image]


def _by_transform(mode: str, transform: ImageCms.ImageCmsTransform, photo: Image.Image) -> Image.Image:
    # Several threads may use a transform of LittleCMS at once.
    converted = ImageCms.applyTransform(photo.convert(mode), transform)
    assert converted is not None
    return converted


def _by_levels(levels: list[int], photo: Image.Image) -> Image.Image:
    """Grey pixels to sRGB by the value that each of 256 becomes."""
    return photo.convert("L").point(levels).convert("RGB")


def _conversion(photo: Image.Image) -> Conversion | None:
    """How the colours of a photo become sRGB; None where they are, or where nothing usable says what they are.

    Colours are converted as they come from the decoder, a JPEG's at the size to which it was decoded.
    """
    if photo.mode == "LAB":
        return _from_lab()
    profile = photo.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile or _of_another_frame(photo):
        return None
    if len(profile) > _MAX_PROFILE_BYTES:
        return _ignored(len(profile), f"it has more than {_MAX_PROFILE_BYTES:,} bytes")
    grey = photo.mode in _GREY_MODES or photo.mode.startswith("I")
    return _from_profile(profile, "L" if grey else "CMYK" if photo.mode == "CMYK" else "RGB")


def _of_another_frame(photo: Image.Image) -> bool:
    """Whether the profile is that of a frame that was looked at before, which Pillow leaves there for TIFF and MPO."""
    tags, segments = getattr(photo, "tag_v2", None), getattr(photo, "applist", None)
    if tags is not None:
        return _TIFF_PROFILE not in tags
    return segments is not None and not any(data.startswith(b"ICC_PROFILE\0") for _, data in segments)


@lru_cache(maxsize=_MAX_PROFILES)
def _from_profile(profile: bytes, kind: str) -> Conversion | None:
    """The conversion of photos of a kind (L, RGB or CMYK) with a profile; None if they need none.

    The intent is relative colorimetric with black point compensation: white stays white, what sRGB can show is exact,
    and what it cannot is clipped.
    """
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space, device = source.profile.xcolor_space.strip(), source.profile.device_class
        mode = _MODE_OF_SPACE.get(space) if device in _CLASSES else None
        # Grey pixels with the profile of an RGB space are equal shares of its red, green and blue.
        if mode is None or (mode != kind and (mode, kind) != ("RGB", "L")):
            return _ignored(len(profile), f"it is of class {device!r} for {space} while the pixels are {kind}")
        conversion = _greys(source, mode) if kind == "L" else partial(_by_transform, mode, _transform(source, mode))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return _ignored(len(profile), str(error))
    whitest = Image.new("CMYK", (1, 1)) if kind == "CMYK" else Image.new(kind, (1, 1), "white")
    white = conversion(whitest).tobytes()
    if min(white) < 128:
        return _ignored(len(profile), f"it makes white {tuple(white)}")
    return conversion if kind == "CMYK" or _changes(conversion, kind) else None


def _changes(conversion: Conversion, kind: str) -> bool:
    """Whether a conversion changes any colour, of a grid, by more than rounding."""
    levels = range(256) if kind == "L" else [min(16 * step, 255) for step in range(17)]
    values = bytes(value for colour in product(levels, repeat=len(kind)) for value in colour)
    before = Image.frombytes(kind, (len(values) // len(kind), 1), values)
    difference = ImageChops.difference(conversion(before), before.convert("RGB"))
    return max(difference.tobytes()) > _SAME


def _greys(source: Any, mode: str) -> Conversion:
    # LittleCMS would interpolate the curve between a few points; all that there are can be looked up as well.
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    exact = _by_transform(mode, _transform(source, mode, ImageCms.Flags.NOOPTIMIZE), ramp)
    return partial(_by_levels, list(exact.getchannel("G").tobytes()))


@lru_cache(maxsize=1)
def _from_lab() -> Conversion:
    # Exact, as what LittleCMS would interpolate instead is off by 16 of 255 at the edge of sRGB.
    exact = _transform(ImageCms.createProfile("LAB"), "LAB", ImageCms.Flags.NOOPTIMIZE)
    return partial(_by_transform, "LAB", exact)


def _transform(source: Any, mode: str, flags: int = 0) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION | flags,
    )


@lru_cache(maxsize=256)
def _ignored(size: int, reason: str) -> None:
    # Logged once for each kind of fault, as a shop's photos mostly share a few profiles.
    logger.warning("a photo's colour profile (%s bytes) is ignored, its colours are taken for sRGB: %s", size, reason)


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_filters: Any = None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignores warnings that Pillow itself raises; what they warn of is either an error or handled here.

    `warnings.catch_warnings` restores the filters that it found, so that overlapping uses in several threads would
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
    """A thread that held the lock does not exist in the child, which would wait for it forever."""
    global _quiet_lock, _quiet_depth
    _quiet_lock = threading.Lock()
    _quiet_depth = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
