"""An image that Pillow opened gives the pixels that its file gives, whatever happened to it in between."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from colour_profiles import cmyk_profile, grey_profile, rgb_profile
from packaging.version import Version
from PIL import Image, ImageOps, TiffImagePlugin

from mmfusion.data.photos import PhotoError, decode_photo
from mmfusion.model.photos import upright_rgb

P3 = rgb_profile()
PRESS = cmyk_profile(lambda mix: (0.0, 0.0, 0.0) if any(mix) else (100.0, 0.0, 0.0))
ORIENTATION = 0x0112


def exif(orientation: int) -> bytes:
    made = Image.Exif()
    made[ORIENTATION] = orientation
    # An Exif itself would lose its orientation when a TIFF is saved with it.
    return made.tobytes()


def noise(mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (24, 16, channels), dtype=np.uint8)
    photo = Image.frombytes(mode, (16, 24), values.tobytes())
    if mode in ("P", "PA"):
        photo.putpalette(list(range(256)) * 3)
    return photo


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def frames(kind: str, first: dict[str, Any], second: dict[str, Any], **options: Any) -> bytes:
    """A file of two frames, each with its own orientation and profile."""
    one, two = noise(seed=1), noise(seed=2)
    two.encoderinfo = second
    return file_of(one, kind, save_all=True, append_images=[two], **first, **options)


def pages(*made: dict[str, Any]) -> bytes:
    """A TIFF of pages that were saved one by one."""
    buffer = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer, new=True) as file:
        for seed, options in enumerate(made):
            noise(seed=seed).save(file, "TIFF", tiffinfo={ORIENTATION: 6 if "exif" in options else 1}, **options)
            file.newFrame()
    return buffer.getvalue()


TURNED: dict[str, Any] = {"exif": exif(6), "icc_profile": P3}
grey16 = Image.fromarray(np.random.default_rng(0).integers(0, 65_536, (24, 16)).astype(np.uint16))
# Before Pillow 13, it cannot read the TIFF that it writes of this mode.
YCBCR = ["YCbCr"] if Version(PIL.__version__) >= Version("13") else []
FILES: dict[str, bytes] = {
    **{f"turned by {turn}": file_of(noise(), "JPEG", exif=exif(turn)) for turn in range(1, 9)},
    **{f"turned {kind}": file_of(noise(), kind, **TURNED) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")},
    **{f"PNG {mode}": file_of(noise(mode), "PNG") for mode in ("L", "LA", "P", "RGB", "RGBA")},
    **{f"TIFF {mode}": file_of(noise(mode), "TIFF") for mode in ("CMYK", *YCBCR, "LAB", "RGBA", "LA")},
    **{f"WEBP {mode}": file_of(noise(mode), "WEBP", lossless=True) for mode in ("RGB", "RGBA")},
    "bilevel": file_of(noise("L").convert("1"), "PNG"),
    "bilevel, white is clear": file_of(noise("L").convert("1"), "PNG", transparency=255),
    "grey, one level is clear": file_of(noise("L"), "PNG", transparency=7),
    "RGB, one colour is clear": file_of(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    "palette, one index is clear": file_of(noise("P"), "PNG", transparency=7),
    "palette with alpha": file_of(noise("P"), "PNG", transparency=bytes(range(256))),
    "GIF": file_of(noise("P"), "GIF", transparency=7),
    "16-bit grey": file_of(grey16, "PNG"),
    "16-bit grey TIFF": file_of(grey16, "TIFF"),
    "32-bit grey of 16 bits": file_of(grey16.convert("I"), "TIFF"),
    "16-bit grey, one level is clear": file_of(grey16, "PNG", transparency=int(np.asarray(grey16)[0, 0])),
    "grey with profile": file_of(noise("L"), "JPEG", icc_profile=grey_profile(1.8)),
    "16-bit grey with profile": file_of(grey16, "TIFF", icc_profile=grey_profile(1.8)),
    "cut out, with profile": file_of(noise("RGBA"), "PNG", exif=exif(8), icc_profile=P3),
    "palette with profile": file_of(noise("P"), "PNG", transparency=7, icc_profile=P3),
    "press": file_of(noise("CMYK"), "JPEG", icc_profile=PRESS),
    "press without profile": file_of(noise("CMYK"), "JPEG"),
    "bad profile": file_of(noise(), "JPEG", icc_profile=b"none"),
    **{f"second frame turned, {kind}": frames(kind, {}, TURNED) for kind in ("PNG", "WEBP", "TIFF", "MPO")},
    **{f"first frame turned, {kind}": frames(kind, TURNED, {}) for kind in ("PNG", "WEBP", "TIFF", "MPO")},
    "first page turned": pages(TURNED, {}),
    "second page turned": pages({}, TURNED),
    "second page of another profile": pages({"icc_profile": rgb_profile(gamma=1.8)}, TURNED),
    "GIF of two": file_of(noise("P"), "GIF", save_all=True, append_images=[noise("P", 3)], transparency=7),
}


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def seeked(data: bytes) -> Image.Image:
    photo = opened(data)
    if getattr(photo, "n_frames", 1) > 1:
        photo.seek(1)
    return photo


def seeked_and_loaded(data: bytes) -> Image.Image:
    photo = seeked(data)
    photo.getexif()
    photo.load()
    return photo


def back_again(data: bytes) -> Image.Image:
    photo = seeked_and_loaded(data)
    photo.seek(0)
    return photo


def loaded(data: bytes) -> Image.Image:
    photo = opened(data)
    photo.getexif()
    photo.load()
    return photo


WAYS: dict[str, Callable[[bytes], Image.Image]] = {
    "opened": opened,
    "loaded": loaded,
    "copied": lambda data: opened(data).copy(),
    "seeked": seeked,
    "seeked and loaded": seeked_and_loaded,
    "back at the first frame": back_again,
    "turned by Pillow": lambda data: ImageOps.exif_transpose(opened(data)),
    "made upright before": lambda data: upright_rgb(opened(data)),
    "decoded before": decode_photo,
}


@pytest.mark.parametrize("name", FILES)
def test_the_image_gives_the_pixels_of_its_file(name: str) -> None:
    expected = decode_photo(FILES[name])
    assert expected.mode == "RGB"
    for way, of in WAYS.items():
        photo = of(FILES[name])
        for _ in range(2):
            upright = upright_rgb(photo)
            assert (upright.mode, upright.size) == ("RGB", expected.size), way
            assert upright.tobytes() == expected.tobytes(), way
            assert not upright.info and not upright.getexif(), way


def test_the_files_are_what_they_are_called() -> None:
    """Else the test above would compare the same thing many times."""
    assert all(decode_photo(FILES[f"turned by {turn}"]).size == (24, 16) for turn in (5, 6, 7, 8))
    assert len({decode_photo(data).tobytes() for data in FILES.values()}) >= 35
    for name in ("second frame turned, MPO", "second page turned"):
        photo = opened(FILES[name])
        photo.seek(1)
        assert photo.getexif()[ORIENTATION] == 6 and photo.info["icc_profile"] == P3
    assert {opened(data).mode for data in FILES.values()} >= {
        "1",
        "L",
        "LA",
        "P",
        "RGB",
        "RGBA",
        "CMYK",
        *YCBCR,
        "LAB",
    }
    assert {opened(data).mode for data in FILES.values()} >= {"I", "I;16"}


def test_the_image_is_left_as_it_was() -> None:
    photo = seeked_and_loaded(FILES["first page turned"])
    before = photo.tell(), photo.mode, dict(photo.info), photo.tobytes()
    upright_rgb(photo)
    assert (photo.tell(), photo.mode, dict(photo.info), photo.tobytes()) == before
    cut_out = opened(FILES["cut out, with profile"])
    upright_rgb(cut_out)
    assert cut_out.mode == "RGBA" and cut_out.getexif()[ORIENTATION] == 8 and cut_out.info["icc_profile"] == P3


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16"]
)
def test_every_mode_of_pillow_has_its_rgb(mode: str) -> None:
    white = {"La": (255, 255), "LA": (255, 0), "RGBa": (0, 0, 0, 0), "RGBA": (9, 9, 9, 0), "CMYK": (0, 0, 0, 0)}
    values = {
        "YCbCr": (255, 128, 128),
        "LAB": (255, 128, 128),
        "PA": (0, 0),
        "HSV": (0, 0, 255),
        "I": 65_535,
        "I;16": 65_535,
        **white,
    }
    photo = Image.new(mode, (2, 3), values.get(mode, "white"))
    assert upright_rgb(photo).tobytes() == b"\xff" * 18
    assert upright_rgb(Image.merge("RGB", [Image.new("L", (2, 3), 200)] * 3)).getpixel((1, 2)) == (200, 200, 200)


def test_broken_images_are_errors_of_one_line(tmp_path: Path) -> None:
    data = FILES["turned PNG"]
    (tmp_path / "photo.png").write_bytes(data)
    with Image.open(tmp_path / "photo.png") as closed:
        pass
    for photo, reason in (
        (opened(data[:-60]), "corrupt or truncated"),
        (opened(file_of(noise(), "JPEG", quality=95)[:-200]), "corrupt or truncated: image file is truncated"),
        (closed, "its file is closed"),
        (Image.new("F", (2, 2)), "floating-point"),
        (Image.new("I", (2, 2), -1), "32-bit grey"),
        (Image.new("I", (2, 2), 65_536), "32-bit grey"),
        (Image.new("RGB", (0, 3)), "0x3 has no pixels"),
        (Image.new("1", (8_001, 8_000)), "8001x8000 is more than 64,000,000 pixels"),
        (Image.new("RGB", (8_001, 8_000)), "8001x8000 is more than 64,000,000 pixels"),
    ):
        with pytest.raises(PhotoError, match=reason) as caught:
            upright_rgb(photo)
        assert "\n" not in str(caught.value)
    assert upright_rgb(Image.new("RGB", (30, 20)), max_pixels=600).size == (30, 20)
    with pytest.raises(PhotoError, match="600"):
        upright_rgb(Image.new("RGB", (30, 21)), max_pixels=600)
