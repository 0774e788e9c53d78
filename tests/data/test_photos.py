"""Photos: every kind that shops send decodes to upright 8-bit RGB, or is refused with a reason."""

import logging
import pickle
import struct
import threading
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmfusion.data.photos import PhotoError, PhotoReader, decode_photo


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 24, width: int = 16) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pixel(data: Any, x: int = 0, y: int = 0, **options: Any) -> tuple[int, ...]:
    image = decode_photo(data, **options)
    assert image.mode == "RGB"
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def test_plain_rgb_is_exact_from_bytes_and_from_a_mapping() -> None:
    image = noise()
    data = encode(image)
    for photo in (data, bytearray(data), memoryview(data), {"bytes": data, "path": "ignored.png"}, {"bytes": data}):
        assert (np.asarray(decode_photo(photo)) == np.asarray(image)).all()


def test_transparency_is_composited_on_white() -> None:
    assert pixel(encode(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))) == (255, 255, 255)
    assert pixel(encode(Image.new("RGBA", (2, 2), (255, 0, 0, 255)))) == (255, 0, 0)
    half = pixel(encode(Image.new("RGBA", (2, 2), (0, 0, 0, 128))))
    assert all(abs(value - 127) <= 1 for value in half)
    assert pixel(encode(Image.new("LA", (2, 2), (0, 0)))) == (255, 255, 255)
    assert pixel(encode(Image.new("RGBA", (2, 2), (9, 9, 9, 0)), "WEBP", lossless=True)) == (255, 255, 255)


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_palette_with_transparency(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 255, 255, 128, 0])
    image.putdata([0, 1])
    data = encode(image, transparency=transparency)
    assert pixel(data, 0) == (255, 255, 255)
    assert pixel(data, 1) == (255, 128, 0)


def test_palette_without_transparency_and_bilevel() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30])
    assert pixel(encode(image)) == (10, 20, 30)
    assert pixel(encode(Image.new("1", (3, 3), 1))) == (255, 255, 255)
    assert pixel(encode(Image.new("L", (3, 3), 77))) == (77, 77, 77)


def test_cmyk() -> None:
    red = pixel(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red[0] > 245 and red[1] < 10 and red[2] < 10


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (256, 1), (0x8000, 128), (40_000, 156), (65_535, 255)])
def test_sixteen_bits_are_scaled_and_not_clipped(value: int, expected: int) -> None:
    two = struct.pack(">H", value)
    grey = png(1, 1, depth=16, colour=0, rows=b"\x00" + two)
    rgb = png(1, 1, depth=16, colour=2, rows=b"\x00" + two * 3)
    grey_alpha = png(1, 1, depth=16, colour=4, rows=b"\x00" + two + b"\xff\xff")
    rgba = png(1, 1, depth=16, colour=6, rows=b"\x00" + two * 3 + b"\xff\xff")
    tiff = encode(Image.fromarray(np.array([[value]], dtype=np.uint16)), "TIFF")
    for data in (grey, rgb, grey_alpha, rgba, tiff):
        assert pixel(data) == (expected,) * 3


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_defined_white_are_refused(dtype: type) -> None:
    with pytest.raises(PhotoError, match="no defined white"):
        decode_photo(encode(Image.fromarray(np.array([[10**6]], dtype=dtype)), "TIFF"))


def test_one_pixel() -> None:
    assert decode_photo(encode(Image.new("RGB", (1, 1), (1, 2, 3)))).size == (1, 1)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    assert pixel(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), (255, 255, 255))
    upright.paste((255, 0, 0), (0, 0, 16, 8))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_photo(encode(stored, kind, exif=exif))
    assert decoded.size == (32, 16)
    red, white = decoded.getpixel((4, 3)), decoded.getpixel((28, 12))
    assert isinstance(red, tuple) and isinstance(white, tuple)
    assert red[0] > 240 and red[1] < 20 and min(white) > 240
    assert decoded.getexif().get(0x0112) is None and not decoded.info


def test_damaged_exif_is_ignored() -> None:
    assert decode_photo(encode(noise(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x00garbage")).size == (16, 24)


def test_min_size_decodes_a_large_jpeg_smaller_but_never_too_small() -> None:
    data = encode(noise(1000, 800), "JPEG")
    small = decode_photo(data, min_size=(224, 224))
    assert small.size == (400, 500)
    assert small.tobytes() == decode_photo(data, min_size=(224, 224)).tobytes()
    assert decode_photo(data, min_size=(900, 10)).size == (800, 1000)
    assert decode_photo(encode(noise(1000, 800)), min_size=(10, 10)).size == (800, 1000)


def bomb(width: int, height: int) -> bytes:
    return png(width, height, depth=8, colour=2, rows=b"")


JPEG = encode(noise(64, 64), "JPEG")
PNG = encode(noise(64, 64))
BAD = {
    "empty": (b"", "empty"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated png": (PNG[: len(PNG) // 2], "truncated"),
    "header only": (JPEG[:20], ""),
    "corrupt png": (PNG[:60] + bytes(len(PNG) - 60), "corrupt"),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "html": (b"\n <!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "text": (b"no photo here", "known format"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "known format"),
    "bomb below Pillow's own warning": (bomb(9_000, 9_000), "9000x9000"),
    "bomb that Pillow warns of": (bomb(12_000, 12_000), "12000x12000"),
    "bomb that Pillow refuses": (bomb(60_000, 60_000), "bomb"),
    "null mapping": ({"bytes": None, "path": None}, "NoneType"),
    "number": (7, "int"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_photos_are_refused_with_a_reason_and_without_warnings(name: str) -> None:
    photo, part = BAD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PhotoError) as caught:
            decode_photo(photo)  # type: ignore[arg-type]
    assert part in str(caught.value)
    assert str(caught.value).strip()


def test_max_pixels_is_inclusive() -> None:
    assert decode_photo(PNG, max_pixels=64 * 64).size == (64, 64)
    with pytest.raises(PhotoError, match="64x64 is more than 4,095 pixels"):
        decode_photo(PNG, max_pixels=64 * 64 - 1)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200) | st.tuples(st.sampled_from([JPEG, PNG]), st.integers(0, 400), st.binary(max_size=8)))
def test_damage_anywhere_gives_an_image_or_a_photo_error(data: Any) -> None:
    if isinstance(data, tuple):
        original, at, patch = data
        data = original[:at] + patch + original[at + len(patch) :]
    try:
        assert decode_photo(data).mode == "RGB"
    except PhotoError as error:
        assert str(error)


def test_the_callers_warning_filters_survive_threads() -> None:
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [decode_photo(PNG) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_paths_are_found_in_the_root_and_do_not_leave_it(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    (root / "images").mkdir(parents=True)
    (root / "images" / "ok.png").write_bytes(PNG)
    (tmp_path / "outside.png").write_bytes(PNG)
    assert decode_photo({"bytes": None, "path": "images/ok.png"}, root=root).size == (64, 64)
    assert decode_photo({"path": str(root / "images" / "ok.png")}).size == (64, 64)
    assert decode_photo({"path": str(root / "images" / "ok.png")}, root=root).size == (64, 64)
    for path, root_folder, part in (
        ("../outside.png", root, "leaves the folder"),
        ("images/../../outside.png", root, "leaves the folder"),
        (str(tmp_path / "outside.png"), root, "leaves the folder"),
        ("images/absent.png", root, "no file at"),
        ("images", root, "no file at"),
        ("images/ok.png", None, "relative path"),
        ("https://shop.example/ok.png", root, "is a URL.*mmfusion import .* --photos download"),
    ):
        with pytest.raises(PhotoError, match=part):
            decode_photo({"bytes": None, "path": path}, root=root_folder)


def test_reader_counts_and_logs_a_bad_photo_once(caplog: pytest.LogCaptureFixture) -> None:
    reader = PhotoReader()
    with caplog.at_level(logging.WARNING, logger="mmfusion"):
        for _ in range(3):
            assert reader("p1", {"bytes": b"", "path": None}) == []
        assert len(reader("p2", {"bytes": PNG})) == 1
    assert reader.bad == {"p1": "empty, 0 bytes"}
    assert len(caplog.records) == 1
    assert caplog.records[0].name == "mmfusion.data.photos"
    assert "'p1'" in caplog.text and "empty, 0 bytes" in caplog.text


def test_reader_keeps_the_good_photos_of_a_list(caplog: pytest.LogCaptureFixture) -> None:
    reader = PhotoReader(max_photos=2)
    with caplog.at_level(logging.WARNING, logger="mmfusion"):
        photos = reader("p", [None, {"bytes": PNG[:90]}, {"bytes": PNG}, {"bytes": JPEG}, {"bytes": b"never read"}])
    assert [photo.size for photo in photos] == [(64, 64), (64, 64)]
    assert reader.bad["p"].startswith("photo 2 of 5: ")
    assert "never" not in reader.bad["p"]


@pytest.mark.parametrize("image", [None, [], [None], {"bytes": None, "path": None}, {"bytes": None, "path": ""}])
def test_a_null_photo_is_missing_and_not_bad(image: Any) -> None:
    reader = PhotoReader()
    assert reader("p", image) == []
    assert reader.bad == {}


def test_reader_travels_to_a_worker() -> None:
    reader = pickle.loads(pickle.dumps(PhotoReader(max_photos=1, min_size=(8, 8))))
    assert len(reader("p", [PNG, PNG])) == 1


def test_reader_reads_at_least_one_photo() -> None:
    with pytest.raises(ValueError, match="max_photos is 0; give at least 1"):
        PhotoReader(max_photos=0)


def test_nan_and_lists_of_pandas_are_no_bad_photos() -> None:
    read = PhotoReader()
    nan = float("nan")
    for image in (nan, [nan, None], {"bytes": nan, "path": None}, {"bytes": None, "path": nan}):
        assert read("p", image) == []
    assert read("p", np.array([None, nan], object)) == [] and read.bad == {}
