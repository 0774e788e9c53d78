"""Colour profiles: what they do to pixels, what a bad one does, and who learns that a photo looks otherwise now."""

import io
import logging
import multiprocessing
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colour_profiles import (
    ADOBE_GAMMA,
    ADOBE_RGB,
    DISPLAY_P3,
    SRGB,
    cmyk_profile,
    grey_profile,
    in_srgb,
    lab8,
    lab_in_srgb,
    light_to_srgb,
    rgb_profile,
    srgb_to_light,
)
from PIL import Image, ImageCms
from tiny_encoders import tiny_model, tiny_processor

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.feature_cache import FeatureCacheError, build_feature_cache
from mmfusion.data.photo_headers import may_need_colours
from mmfusion.data.photos import decode_photo, decoder_of
from mmfusion.data.tables import ProductTable
from mmfusion.embedding.content import content_digests
from mmfusion.model import photos
from mmfusion.model.photos import upright_rgb

P3 = rgb_profile()
NAMED = {"red": (230, 20, 30), "green": (20, 160, 40), "orange": (250, 130, 10), "white": (255, 255, 255)}


@pytest.fixture(autouse=True)
def _fresh_caches() -> None:
    for cached in (photos._from_profile, photos._ignored):
        cached.cache_clear()


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (32, 24)) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def floats(image: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(image).astype(np.float64)


def off(image: Image.Image, expected: Any) -> float:
    return float(np.abs(floats(image) - expected).max())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_display_p3_photo_has_the_colours_of_its_srgb_twin(kind: str) -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(P3))
    to_p3 = ImageCms.buildTransform(*profiles, "RGB", "RGB")
    options: dict[str, Any] = {"quality": 100} if kind in ("JPEG", "WEBP", "AVIF") else {}
    for colour in NAMED.values():
        photo = Image.new("RGB", (16, 16), colour)
        stored = ImageCms.applyTransform(photo, to_p3)
        assert stored is not None
        stored.info.clear()
        if colour != (255, 255, 255):
            assert off(stored, floats(photo)) > 10, "a photo of which nothing would be seen if its profile were ignored"
        decoded = decode_photo(file_of(stored, kind, icc_profile=P3, **options))
        # What AVIF loses of a colour is more than the tolerance.
        assert kind == "AVIF" or off(decoded, floats(photo)) <= 3
        assert off(decoded, in_srgb(decode_photo(file_of(stored, kind, **options)), DISPLAY_P3)) <= 1


@pytest.mark.parametrize(
    ("profile", "colorants", "to_light"),
    [
        (P3, DISPLAY_P3, srgb_to_light),
        (rgb_profile(points=1024), DISPLAY_P3, srgb_to_light),
        (rgb_profile(ADOBE_RGB, ADOBE_GAMMA), ADOBE_RGB, lambda values: values**ADOBE_GAMMA),
        (rgb_profile(SRGB, 1.8), SRGB, lambda values: values**1.8),
    ],
)
def test_rgb_profiles_do_what_their_formulas_say(
    profile: bytes, colorants: npt.NDArray[np.float64], to_light: Callable[..., Any]
) -> None:
    photo = noise()
    assert off(decode_photo(file_of(photo, icc_profile=profile)), in_srgb(photo, colorants, to_light)) <= 1


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
def test_grey_profiles_are_exact_at_all_levels(gamma: float) -> None:
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    expected = np.repeat(light_to_srgb((np.arange(256) / 255) ** gamma)[None, :, None] * 255, 3, axis=2)
    profile = grey_profile(gamma)
    assert off(decode_photo(file_of(ramp, icc_profile=profile)), expected) <= 0.51
    deep = Image.fromarray((np.arange(256, dtype=np.uint16) * 257)[None])
    assert off(decode_photo(file_of(deep, "TIFF", icc_profile=profile)), expected) <= 0.51


def test_a_press_profile_is_applied_to_cmyk() -> None:
    inks = {(0, 0, 0, 0): (100.0, 0.0, 0.0), (0, 1, 1, 0): (50.0, 60.0, 40.0), (1, 0, 0, 0): (60.0, -30.0, -30.0)}
    profile = cmyk_profile(lambda mix: inks.get(mix, (0.0, 0.0, 0.0)))
    for mix, lab in inks.items():
        photo, expected = Image.new("CMYK", (16, 16), tuple(255 * ink for ink in mix)), lab_in_srgb(lab)
        assert off(decode_photo(file_of(photo, "TIFF", icc_profile=profile)), expected) <= 2
        assert off(decode_photo(file_of(photo, "JPEG", quality=100, icc_profile=profile)), expected) <= 3
        assert (off(decode_photo(file_of(photo, "TIFF")), expected) > 30) == any(mix)


def test_cielab_needs_no_profile() -> None:
    for lab in ((50.0, 60.0, 40.0), (60.0, -30.0, -30.0), (100.0, 0.0, 0.0), (0.0, 0.0, 0.0)):
        pixel = bytes(round(value) for value in lab8(lab))
        data = file_of(Image.frombytes("LAB", (1, 1), bytes([pixel[0], pixel[1] ^ 128, pixel[2] ^ 128])), "TIFF")
        assert off(decode_photo(data), lab_in_srgb(lab)) <= 2
        assert decoder_of(data) == 2


@pytest.mark.parametrize("profile", [rgb_profile(SRGB), rgb_profile(SRGB, points=1024), rgb_profile(SRGB, points=26)])
def test_any_srgb_profile_leaves_all_pixels_alone(profile: bytes) -> None:
    everyones = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 90}), ("WEBP", {}), ("TIFF", {})):
        plain = decode_photo(file_of(noise(), kind, **options))
        for embedded in (profile, everyones):
            data = file_of(noise(), kind, icc_profile=embedded, **options)
            assert decode_photo(data).tobytes() == plain.tobytes()
            assert may_need_colours(data) and decoder_of(data) == 1


def test_greys_with_the_profile_of_an_rgb_space_follow_its_curve() -> None:
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    assert decode_photo(file_of(ramp, icc_profile=P3)).tobytes() == ramp.convert("RGB").tobytes()
    bright = light_to_srgb((np.arange(256) / 255) ** 1.8)[None, :, None] * 255
    assert off(decode_photo(file_of(ramp, icc_profile=rgb_profile(DISPLAY_P3, 1.8))), bright) <= 1


def test_the_profile_comes_before_white_is_put_behind_the_photo() -> None:
    """Half of a colour over white: white is sRGB's, the colour was the profile's."""
    for profile, in_profile in ((P3, in_srgb((200, 40, 60), DISPLAY_P3)), (None, np.array((200, 40, 60)))):
        options = {} if profile is None else {"icc_profile": profile}
        for kind in ("PNG", "TIFF"):
            decoded = decode_photo(file_of(Image.new("RGBA", (4, 4), (200, 40, 60, 128)), kind, **options))
            assert off(decoded, in_profile * 128 / 255 + 255 * 127 / 255) <= 2
            clear = decode_photo(file_of(Image.new("RGBA", (4, 4), (200, 40, 60, 0)), kind, **options))
            assert off(clear, 255) == 0
    grey = decode_photo(file_of(Image.new("LA", (4, 4), (100, 255)), icc_profile=grey_profile(1.8)))
    assert off(grey, light_to_srgb(np.array((100 / 255) ** 1.8)) * 255) <= 0.51


def test_a_palette_has_a_profile_too() -> None:
    photo = Image.new("P", (2, 1))
    photo.putpalette([200, 40, 60, 9, 9, 9])
    photo.putdata([0, 1])
    decoded = decode_photo(file_of(photo, icc_profile=P3, transparency=1))
    assert off(decoded.crop((0, 0, 1, 1)), in_srgb((200, 40, 60), DISPLAY_P3)) <= 1
    assert decoded.getpixel((1, 0)) == (255, 255, 255)


def test_the_profile_is_applied_at_the_size_of_the_decoder() -> None:
    data = file_of(Image.new("RGB", (800, 1000), (200, 40, 60)), "JPEG", quality=100, icc_profile=P3)
    small = decode_photo(data, min_size=(200, 200))
    assert small.size == (200, 250) and off(small, in_srgb((200, 40, 60), DISPLAY_P3)) <= 3


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(data: bytes, name: bytes, content: bytes) -> bytes:
    """A PNG with a further chunk behind its header."""
    return data[:33] + chunk(name, content) + data[33:]


PRESS = cmyk_profile(lambda mix: (0.0 if any(mix) else 100.0, 0.0, 0.0))
BAD_PROFILES = {
    "no profile": b"no profile",
    "zeros": bytes(600),
    "cut off": P3[:300],
    "no red": P3.replace(b"rTRC", b"xTRC"),
    "black": rgb_profile(DISPLAY_P3 * 0),
    "of another space": grey_profile(1.8),
    "of a press": PRESS,
    "a link of two devices": P3.replace(b"mntr", b"link"),
    "huge": P3 + bytes(4 * 2**20),
}


@pytest.mark.parametrize("name", BAD_PROFILES)
def test_a_bad_profile_leaves_the_photo_as_it_is_and_is_logged_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = file_of(noise(), "TIFF", icc_profile=BAD_PROFILES[name])
    with caplog.at_level(logging.WARNING, logger="mmfusion"):
        for _ in range(3):
            assert decode_photo(data).tobytes() == noise().tobytes()
    assert ["colour profile" in record.getMessage() for record in caplog.records] == [True]
    assert decoder_of(data) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"icc\0\0" + zlib.compress(bytes(2**21)),
        b"icc\0\1" + zlib.compress(P3),
        b"icc\0\0" + zlib.compress(P3)[:50],
        b"icc\0\0no zlib",
        b"icc",
        b"",
    ],
)
def test_a_png_whose_profile_pillow_does_not_read_is_a_photo_all_the_same(content: bytes) -> None:
    assert decode_photo(with_chunk(file_of(noise()), b"iCCP", content)).tobytes() == noise().tobytes()


def test_a_jpeg_whose_profile_lacks_a_part_is_a_photo_all_the_same() -> None:
    data = file_of(noise(), "JPEG", icc_profile=P3)
    at = data.index(b"ICC_PROFILE\0")
    plain = decode_photo(file_of(noise(), "JPEG"))
    for part in (b"\1\2", b"\0\0"):
        assert decode_photo(data[: at + 12] + part + data[at + 14 :]).tobytes() == plain.tobytes()
    stub = data[:2] + b"\xff\xe2\0\x0eICC_PROFILE\0" + file_of(noise(), "JPEG")[2:]
    assert decode_photo(stub).tobytes() == plain.tobytes()


def test_chunks_of_png_other_than_a_profile_change_nothing() -> None:
    """cICP, gAMA, cHRM and sRGB: the photo is taken for sRGB, as docs/photos.md says."""
    for name, content in ((b"cICP", b"\x0c\x0d\0\1"), (b"gAMA", struct.pack(">I", 100_000)), (b"sRGB", b"\0")):
        data = with_chunk(file_of(noise()), name, content)
        assert decode_photo(data).tobytes() == noise().tobytes() and decoder_of(data) == 1


def test_a_profile_is_looked_at_once_and_few_are_kept() -> None:
    for _ in range(3):
        decode_photo(file_of(noise(), icc_profile=P3))
    assert photos._from_profile.cache_info().misses == 1
    for step in range(40):
        decode_photo(file_of(noise(), icc_profile=rgb_profile(DISPLAY_P3, 1.5 + step / 100)))
    assert photos._from_profile.cache_info().currsize <= 16


def test_threads_share_the_conversion_of_a_profile() -> None:
    files = [file_of(noise(), icc_profile=rgb_profile(DISPLAY_P3, gamma)) for gamma in (1.8, 2.2, 2.4)]
    expected = [decode_photo(data).tobytes() for data in files]
    photos._from_profile.cache_clear()
    wrong: list[int] = []

    def work() -> None:
        for turn in range(30):
            if decode_photo(files[turn % 3]).tobytes() != expected[turn % 3]:
                wrong.append(turn)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork")
def test_a_forked_worker_has_the_conversion_of_its_parent() -> None:
    data = file_of(noise(), icc_profile=P3)
    expected = decode_photo(data).tobytes()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_decoded, (data,)) == expected


def _decoded(data: bytes) -> bytes:
    return decode_photo(data).tobytes()


# --- Who learns that a photo looks otherwise now -------------------------------------------------------------------


def wide_key(colour: int) -> bytes:
    """A PNG of 16 bits per channel, one pixel, whose transparent colour is its own."""
    pixels = struct.pack(">3H", colour, colour, colour)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)) + chunk(b"tRNS", pixels)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" + pixels)) + chunk(b"IEND", b"")


def test_the_transparent_colour_of_16_bits_is_white() -> None:
    assert decode_photo(wide_key(0x1234)).getpixel((0, 0)) == (255, 255, 255)
    assert decoder_of(wide_key(0x1234)) == 2
    grey = Image.fromarray(np.array([[0x1234, 0x1235, 0x3434]], dtype=np.uint16))
    data = file_of(grey, transparency=0x1234)
    assert [decode_photo(data).getpixel((x, 0)) for x in range(3)] == [(255,) * 3, (0x12,) * 3, (0x34,) * 3]
    assert decoder_of(data) == 2


def test_only_photos_that_look_otherwise_have_a_newer_decoder() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "MPO"):
        assert decoder_of(file_of(noise(), kind, exif=exif)) == 1
        assert decoder_of(file_of(noise(), kind, exif=exif, icc_profile=P3)) == 2
    for mode in ("L", "LA", "RGBA", "P"):
        assert decoder_of(file_of(noise(mode))) == 1
    for mode in ("L", "P"):
        assert decoder_of(file_of(noise(mode), transparency=3)) == 1
    assert decoder_of(file_of(Image.new("1", (4, 4)))) == 1
    assert decoder_of(file_of(noise("CMYK"), "JPEG")) == 1
    assert decoder_of(file_of(noise("CMYK"), "JPEG", icc_profile=PRESS)) == 2
    unread_before = with_chunk(file_of(noise()), b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**21)))
    assert decoder_of(unread_before) == 2
    for nothing in (
        b"",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe2",
        b"\x89PNG\r\n\x1a\n",
        b"text, acsp",
        b"II*\0",
        bytes(99),
    ):
        assert decoder_of(nothing) == 1


def test_a_profile_behind_many_segments_is_found() -> None:
    data = file_of(noise(), "JPEG", icc_profile=P3)
    padding = b"\xff\xff\xfe" + struct.pack(">H", 60_002) + bytes(60_000)
    assert decoder_of(data[:2] + padding * 9 + data[2:]) == 2
    # A profile in several segments.
    press = struct.pack(">I", len(PRESS) + 200_000) + PRESS[4:] + bytes(200_000)
    assert decoder_of(file_of(noise("CMYK"), "JPEG", icc_profile=press)) == 2


@pytest.fixture
def shop(tmp_path: Path) -> Callable[..., Catalogue]:
    made: list[Path] = []

    def make(*photos: bytes) -> Catalogue:
        folder = tmp_path / f"shop{len(made)}"
        made.append(folder)
        folder.mkdir()
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {
            "product_id": pa.array([str(row) for row in range(len(photos))]),
            "title": pa.array(["red dress"] * len(photos)),
            "description": pa.array([""] * len(photos)),
            "image": pa.array([{"bytes": photo, "path": None} for photo in photos], image),
        }
        pq.write_table(pa.table(columns), folder / "products.parquet")
        return Catalogue.load_products(folder, cache_dir=tmp_path / "cache")

    return make


def test_content_digests_change_with_the_decoder_for_the_photos_concerned_alone(
    shop: Callable[..., Catalogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = (file_of(noise(), **options) for options in ({"icc_profile": P3}, {}, {"icc_profile": rgb_profile(SRGB)}))
    table, rows = ProductTable(shop(*photos), tiny_processor()), np.arange(3)
    now = content_digests(table, rows)
    monkeypatch.setattr("mmfusion.embedding.content.decoder_of", lambda data: 1)
    assert (content_digests(table, rows) == now).all(axis=1).tolist() == [False, True, True]


def test_a_feature_cache_of_the_older_decoder_is_stale(
    shop: Callable[..., Catalogue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny_model(), tiny_processor()
    model.freeze_vision(1)
    for name, catalogue, stale in (
        ("profile", shop(file_of(noise(), icc_profile=P3)), True),
        ("plain", shop(file_of(noise()), file_of(noise(), icc_profile=rgb_profile(SRGB))), False),
    ):
        table, rows = ProductTable(catalogue, processor), catalogue.product_rows(None)
        with monkeypatch.context() as before:
            before.setattr("mmfusion.data.photos.decoder_of", lambda data: 1)
            build_feature_cache(tmp_path / name, model, table, rows)
        if stale:
            with pytest.raises(FeatureCacheError, match="set of photos"):
                build_feature_cache(tmp_path / name, model, table, rows)
        else:
            build_feature_cache(tmp_path / name, model, table, rows)


def test_a_feature_cache_of_a_photo_that_was_replaced_is_stale(tmp_path: Path) -> None:
    model, processor = tiny_model(), tiny_processor()
    model.freeze_vision(1)
    folder = tmp_path / "catalogue"
    folder.mkdir()
    image = pa.array([{"bytes": None, "path": "a.png"}])
    pq.write_table(pa.table({"product_id": ["a"], "title": ["mug"], "image": image}), folder / "products.parquet")
    (folder / "a.png").write_bytes(file_of(noise()))
    catalogue = Catalogue.load_products(folder, cache_dir=tmp_path / "cache")
    table, rows = ProductTable(catalogue, processor), catalogue.product_rows(None)
    for _ in range(2):
        build_feature_cache(tmp_path / "features", model, table, rows)
        os.utime(folder / "a.png", ns=(1, 1))
    (folder / "a.png").write_bytes(file_of(noise(), icc_profile=rgb_profile(SRGB)))
    with pytest.raises(FeatureCacheError, match="set of photos"):
        build_feature_cache(tmp_path / "features", model, table, rows)


def test_an_image_that_says_it_has_a_profile_is_converted_once() -> None:
    photo = Image.open(io.BytesIO(file_of(noise(), icc_profile=P3)))
    once = upright_rgb(photo)
    assert once.tobytes() == decode_photo(file_of(noise(), icc_profile=P3)).tobytes()
    assert upright_rgb(once) is once and not once.info
    assert photo.info["icc_profile"] == P3, "the caller's image is left as it is"
