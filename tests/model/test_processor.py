"""The processor: templates, texts of every kind, truncation, photos of every size, and saving."""

from __future__ import annotations

import datetime
import io
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_encoders import bert, clip, dinov3, siglip, siglip2, tiny_model, vit
from tiny_encoders import tiny_processor as _processor
from tiny_encoders import tiny_tokenizer as _tokenizer
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from mmfusion import MMFusionProcessor
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.tables import ProductTable
from mmfusion.model.photos import upright_rgb

RED, GREEN = (200, 30, 40), (20, 180, 60)


def _photo(width: int, height: int, colour: tuple[int, int, int] = RED) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


# --- Templates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "",
        "no field",
        "{}",
        "{0}",
        "{title.__class__}",
        "{title[0]}",
        "{title:{title.__class__}}",
        "{title:>1000000000}",
        "{title!r}",
        "{title",
        "title}",
        "{title} {brand name}",
    ],
)
def test_template_that_is_more_than_plain_columns_is_an_error(template: str) -> None:
    with pytest.raises(ValueError, match="product_template") as caught:
        _processor(product_template=template)
    assert repr(template) in str(caught.value)


@pytest.mark.parametrize(
    ("template", "product", "text"),
    [
        ("{title}", {"title": "red dress"}, "red dress"),
        ("{title}", {"title": "  red\n\tdress\u00a0 "}, "red dress"),
        ("{title} {title}", {"title": "red"}, "red red"),
        ("{title} {brand}", {"title": "red", "brand": None}, "red"),
        ("{brand}: {title}", {"title": "red", "brand": "Acme"}, "Acme: red"),
        ("{brand}: {title}", {"title": " ", "brand": None}, ""),
        ("{title} by {brand}", {"title": "", "brand": ""}, ""),
        ("{title} {price}", {"title": "red", "price": 12}, "red 12"),
        ("{{{title}}}", {"title": "red"}, "{red}"),
        ("{title}", {"title": "{brand} {0} %s"}, "{brand} {0} %s"),
    ],
)
def test_template_renders_the_product(template: str, product: dict[str, Any], text: str) -> None:
    assert _processor(product_template=template).product_text(product) == text


def test_missing_column_names_the_product_and_its_columns() -> None:
    with pytest.raises(ValueError, match=r"'brand'.*'p7' lacks.*product_id, title"):
        _processor(product_template="{title} {brand}")(products=[{"product_id": "p7", "title": "red"}])


def test_template_columns_are_told_once_each() -> None:
    assert _processor(product_template="{title} {brand} {title}").template_columns == ["title", "brand"]


# --- Texts ---------------------------------------------------------------------------------------------------------

TEXTS = {
    "long": "red dress " * 10_000,
    "one long word": "x" * 100_000,
    "emoji": "👗🔴 👩🏽‍🦰",
    "right to left": "فستان أحمر",
    "hebrew": "שמלה אדומה",
    "chinese": "红色连衣裙",
    "combining": "re\u0301d dre\u0301ss",
    "zero width": "red\u200bdress",
    "null": "red\x00dress",
    "lone surrogate": "red \ud83d dress",
    "special token": "[PAD] [CLS] red [SEP]",
}


@pytest.mark.parametrize("name", TEXTS)
def test_any_text_becomes_tokens_within_the_limit(name: str) -> None:
    processor = _processor(max_query_length=6, max_product_length=9)
    queries = processor(queries=TEXTS[name])
    products = processor(products=[{"title": TEXTS[name]}, {"title": "red"}])
    assert queries["input_ids"].shape[1] <= 6 and products["input_ids"].shape[1] <= 9
    assert queries["attention_mask"].sum() >= 2
    assert products["attention_mask"].sum(1).min() >= 2
    assert queries["input_ids"].dtype == queries["attention_mask"].dtype == torch.int64


@pytest.mark.parametrize("query", ["", " ", "\n\t\u3000", None, 3])
def test_blank_query_is_an_error_that_names_its_place(query: Any) -> None:
    with pytest.raises(ValueError, match="Query 1 is") as caught:
        _processor()(queries=["red", query])
    assert repr(query) in str(caught.value)


@pytest.mark.parametrize("arguments", [{}, {"queries": []}, {"products": []}, {"queries": ["red"], "products": []}])
def test_nothing_to_process_is_an_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"queries|products"):
        _processor()(**arguments)


@pytest.mark.parametrize("title", ["", None, "  \n", "\u3000"])
def test_blank_title_is_a_missing_text_even_with_a_prompt(title: str | None) -> None:
    batch = _processor(product_prompt="passage: ")(products=[{"title": title}, {"title": "red"}])
    assert batch["attention_mask"].any(1).tolist() == [False, True]
    assert batch["input_ids"].shape == batch["attention_mask"].shape


def test_truncation_keeps_the_end_token_and_respects_the_tokenizer() -> None:
    words = {"title": "red " * 500}
    assert _processor(max_product_length=10)(products=[words])["input_ids"].shape == (1, 10)
    assert _processor(max_product_length=10)(products=[words])["input_ids"][0, -1] == 3
    assert _processor(max_product_length=4000)(products=[words])["input_ids"].shape == (1, 48)
    assert _processor(max_query_length=5)(queries="red " * 500)["input_ids"].shape == (1, 5)


@pytest.mark.parametrize("field", ["max_query_length", "max_product_length", "max_photos"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True])
def test_a_limit_below_one_is_an_error(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is"):
        _processor(**{field: value})


def test_prompts_go_before_their_texts() -> None:
    processor = _processor(query_prompt="query: ", product_prompt="passage: ")
    assert processor.tokenizer.decode(processor(queries="red")["input_ids"][0]) == "[CLS] query : red [SEP]"
    products = processor(products=[{"title": "red"}])
    assert processor.tokenizer.decode(products["input_ids"][0]) == "[CLS] passage : red [SEP]"


def test_padding_is_to_the_longest_or_to_full_length() -> None:
    longest, full = _processor(), _processor(pad_to_max_length=True, max_query_length=12)
    assert longest(queries=["red", "red red red"])["input_ids"].shape == (2, 5)
    padded = full(queries=["red", "red red red"])
    assert padded["input_ids"].shape == (2, 12)
    assert padded["attention_mask"].sum(1).tolist() == [3, 5]


# --- Photos --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 50), (50, 1), (3, 50), (50, 3), (4, 4), (31, 33), (640, 7)])
def test_photo_of_any_size_keeps_its_colour(size: tuple[int, int]) -> None:
    pixels = _processor().pixel_values([_photo(*size)])
    assert pixels.shape == (1, 3, 32, 32) and pixels.dtype == torch.float32
    expected = (torch.tensor(RED) / 255 - 0.5) / 0.5
    assert torch.allclose(pixels[0].mean((1, 2)), expected, atol=1e-2)


def test_photos_are_masked_and_cut_to_the_limit() -> None:
    products = [
        {"title": "a", "image": [_photo(8, 8, RED), _photo(9, 9, GREEN), _photo(8, 8)]},
        {"title": "b", "image": None},
        {"title": "c"},
        {"title": "d", "image": []},
        {"title": "e", "image": _photo(20, 30, GREEN)},
    ]
    batch = _processor(max_photos=2)(products=products)
    assert batch["pixel_values"].shape == (5, 2, 3, 32, 32)
    assert batch["photo_mask"].dtype == torch.bool
    assert batch["photo_mask"].tolist() == [[True, True], [False] * 2, [False] * 2, [False] * 2, [True, False]]
    assert not batch["pixel_values"][~batch["photo_mask"]].any()
    assert torch.allclose(batch["pixel_values"][0, 1], batch["pixel_values"][4, 0])
    assert batch["pixel_values"][0, 0, 0].mean() > batch["pixel_values"][0, 1, 0].mean()


def test_without_any_photo_there_are_no_pixels() -> None:
    batch = _processor()(products=[{"title": "a", "image": None}, {"title": "b"}])
    assert set(batch) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("photo", "said"),
    [
        ("photo.jpg", "the text 'photo.jpg'; the processor opens and fetches nothing"),
        (Path("photo.jpg"), r"Path; give a PIL image, e\.g\. Image\.open\(path\)"),
        (b"\xff\xd8", r"bytes; give a PIL image, e\.g\. Image\.open\(io\.BytesIO\(photo\)\)"),
        ({"bytes": b"", "path": None}, r"dict; .*BytesIO\(photo\['bytes'\]\)"),
        (np.zeros((3, 8, 9), np.uint8), r"ndarray; .*uint8 array \(height, width, 3\), where this has \(3, 8, 9\)"),
        (torch.zeros(3, 8, 9), r"Tensor; .*Image\.fromarray.*\(3, 8, 9\)"),
        (3, "int; give a PIL image"),
    ],
)
def test_what_is_no_photo_is_an_error(photo: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"photo of product 1 is .*{said}") as caught:
        _processor()(products=[{"title": "a"}, {"title": "b", "image": [None, photo]}])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="Photo 0 is "):
        _processor().pixel_values([photo])


def test_broken_photo_is_an_error_that_names_the_product() -> None:
    file = io.BytesIO()
    _photo(64, 64).save(file, "PNG")
    cut = Image.open(io.BytesIO(file.getvalue()[:-40]))
    for photo, reason in (
        (cut, r"\(RGB, 64x64\) cannot be used: corrupt or truncated: "),
        (Image.new("F", (8, 8)), r"\(F, 8x8\) cannot be used: floating-point pixels"),
        (Image.new("1", (9_000, 9_000)), r"9000x9000 is more than 64,000,000 pixels"),
    ):
        with pytest.raises(ValueError, match=f"^A photo of product 2 .*{reason}"):
            _processor()(
                products=[{"title": "a"}, {"title": "b", "image": _photo(8, 8)}, {"title": "c", "image": photo}]
            )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16"])
def test_an_image_of_any_mode_gives_the_pixels_of_its_upright_photo(mode: str) -> None:
    photo = Image.new(mode, (8, 6), 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.info["exif"] = exif.tobytes()
    seen = _processor()(products=[{"title": "a", "image": [photo, None]}, {"title": "b", "image": (photo,)}])
    expected = _processor().pixel_values([upright_rgb(photo)])[0]
    assert seen["photo_mask"].tolist() == [[True], [True]] and upright_rgb(photo).size == (6, 8)
    assert torch.equal(seen["pixel_values"][0, 0], expected) and torch.equal(seen["pixel_values"][1, 0], expected)


def test_a_loaded_photo_is_normalised_like_any_other() -> None:
    cut_out = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    loaded = _processor()(products=[{"title": "a", "image": "there"}], photo_loader=lambda name: cut_out)
    assert torch.equal(loaded["pixel_values"][0], _processor().pixel_values([_photo(8, 8, (255, 255, 255))]))


def test_processor_that_gives_several_sizes_is_an_error() -> None:
    keeps_shape = CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False)
    processor = MMFusionProcessor(keeps_shape, _tokenizer())
    assert processor.pixel_values([_photo(32, 32), _photo(32, 32)]).shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="image_size"):
        processor.pixel_values([_photo(32, 32), _photo(64, 32)])


def test_patches_instead_of_photos_are_an_error() -> None:
    processor = MMFusionProcessor(Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16), _tokenizer())
    with pytest.raises(ValueError, match="image_size"):
        processor.pixel_values([_photo(32, 32)])


# --- Both at once, and the model -----------------------------------------------------------------------------------


def test_queries_and_products_together_are_the_arguments_of_forward() -> None:
    model = tiny_model()
    products = [{"title": "red dress", "image": _photo(9, 7)}, {"title": ""}, {"title": None, "image": _photo(40, 2)}]
    with torch.no_grad():
        batch = _processor()(queries=["red", "dress"], products=products)
        output = model(**batch)
        queries = model.get_query_features(**_processor()(queries=["red", "dress"]))
        features = model.get_product_features(**_processor()(products=products))
    assert output.query_embeds.shape[0] == 2 and output.product_embeds.shape[0] == 3
    assert output.modality_present.tolist() == [[True, True], [True, False], [False, True]]
    assert torch.equal(output.query_embeds, queries) and torch.equal(output.product_embeds, features)


def test_a_product_with_neither_does_not_depend_on_its_batch() -> None:
    model, processor = tiny_model(), _processor(product_prompt="passage: ")
    with torch.no_grad():
        alone = model.get_product_features(**processor(products=[{"title": ""}]))
        longer = model.get_product_features(**processor(products=[{"title": ""}, {"title": "red " * 9}]))
    assert torch.allclose(alone[0], longer[0], atol=1e-5)


# --- Saving and assembling -----------------------------------------------------------------------------------------


def test_saved_processor_keeps_every_field(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        **{"product_template": "{brand}: {title}", "query_prompt": "query: ", "product_prompt": "passage: "},
        **{"max_query_length": 7, "max_product_length": 11, "max_photos": 3, "pad_to_max_length": True},
    }
    processor = _processor(**fields)
    processor.save_pretrained(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    products = [{"title": "red dress", "brand": "acme", "image": _photo(13, 21)}]
    for loaded in (MMFusionProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is MMFusionProcessor
        assert {name: getattr(loaded, name) for name in fields} == fields
        assert loaded.template_columns == ["brand", "title"]
        assert "Pil" in type(loaded.image_processor).__name__
        expected, actual = processor(queries="red", products=products), loaded(queries="red", products=products)
        assert expected.keys() == actual.keys()
        for name in expected:
            assert torch.equal(expected[name], actual[name]), name
    assert str(tmp_path) not in (tmp_path / "processor_config.json").read_text()


def test_misspelled_field_of_a_processor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="max_lenght"):
        _processor(max_lenght=3)
    _processor().save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "product_tempalte": "{brand}"}))
    with pytest.raises((TypeError, ValueError), match="product_tempalte"):
        MMFusionProcessor.from_pretrained(tmp_path)


def _folders(tmp_path: Path, encoder: Callable[[], Any], image_processor: Any) -> tuple[str, str]:
    bert().save_pretrained(tmp_path / "text")
    _tokenizer().save_pretrained(tmp_path / "text")
    encoder().save_pretrained(tmp_path / "vision")
    image_processor.save_pretrained(tmp_path / "vision")
    return str(tmp_path / "text"), str(tmp_path / "vision")


@pytest.mark.parametrize(
    ("encoder", "image_processor"),
    [
        (vit, ViTImageProcessorPil(size={"height": 32, "width": 32})),
        (clip, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})),
        (siglip, SiglipImageProcessorPil(size={"height": 32, "width": 32})),
        (siglip2, Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)),
    ],
)
@pytest.mark.parametrize("image_size", [None, (48, 40)])
def test_assembled_processor_fits_its_encoder(
    encoder: Callable[[], Any], image_processor: Any, image_size: tuple[int, int] | None, tmp_path: Path
) -> None:
    text, vision = _folders(tmp_path, encoder, image_processor)
    processor = MMFusionProcessor.from_backbones(text, vision, image_size=image_size, max_photos=2)
    processor.save_pretrained(tmp_path / "out")
    for used in (processor, MMFusionProcessor.from_pretrained(tmp_path / "out")):
        pixels = used.pixel_values([_photo(60, 30), _photo(30, 60), _photo(1, 1)])
        assert pixels.shape == (3, 3, *(image_size or (32, 32)))
        assert used.max_photos == 2
        assert "Pil" in type(used.image_processor).__name__


def test_image_size_keeps_the_whole_photo(tmp_path: Path) -> None:
    text, vision = _folders(
        tmp_path, clip, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    )
    photo = Image.fromarray(
        np.concatenate([np.zeros((32, 64, 3), np.uint8), np.full((32, 64, 3), 255, np.uint8)], axis=1)
    )
    cropped = MMFusionProcessor.from_backbones(text, vision).pixel_values([photo])[0, 0]
    whole = MMFusionProcessor.from_backbones(text, vision, image_size=(32, 32)).pixel_values([photo])[0, 0]
    assert whole[:, :14].std() < 1e-3 and whole[:, 18:].std() < 1e-3 and (whole[:, 18:] > whole[:, :14]).all()
    assert cropped.shape == whole.shape


def test_siglip2_photo_equals_that_of_its_own_processor(tmp_path: Path) -> None:
    own = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    text, vision = _folders(tmp_path, siglip2, own)
    generator = np.random.default_rng(0)
    photo = Image.fromarray(generator.integers(0, 256, (50, 50, 3), dtype=np.uint8))
    pixels = MMFusionProcessor.from_backbones(text, vision).pixel_values([photo])
    patches = torch.as_tensor(np.asarray(own(images=photo)["pixel_values"]))[0]
    ours = pixels[0].unflatten(2, (4, 8)).unflatten(1, (4, 8)).permute(1, 3, 2, 4, 0).reshape(16, -1)
    assert torch.allclose(ours, patches, atol=1e-5)


def test_encoder_whose_processor_needs_torchvision_gets_a_substitute(tmp_path: Path) -> None:
    text, vision = _folders(
        tmp_path, dinov3, ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.4] * 3)
    )
    path = tmp_path / "vision" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_processor_type": "DINOv3ViTImageProcessor"}))
    processor = MMFusionProcessor.from_backbones(text, vision)
    pixels = processor.pixel_values([_photo(20, 30, (102, 102, 102))])
    assert pixels.shape == (1, 3, 32, 32) and pixels.abs().max() < 1e-6


def test_siglip_texts_are_padded_to_full_length(tmp_path: Path) -> None:
    # SigLIP reads padding, so that the length of a batch would change its embeddings.
    siglip().save_pretrained(tmp_path)
    _tokenizer().save_pretrained(tmp_path)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    processor = MMFusionProcessor.from_backbones(str(tmp_path), str(tmp_path))
    assert processor.pad_to_max_length
    assert processor.max_query_length == processor.max_product_length == 40
    kept = MMFusionProcessor.from_backbones(str(tmp_path), str(tmp_path), pad_to_max_length=False, max_query_length=9)
    assert not kept.pad_to_max_length and kept.max_query_length == 9


# --- Missing values and lists ----------------------------------------------------------------------------------------


class _NotAvailable:
    """As pandas.NA: whether it equals anything cannot be told."""

    def __ne__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    def __repr__(self) -> str:
        return "<NA>"


MISSING = [None, math.nan, np.float32("nan"), Decimal("NaN"), Decimal("sNaN"), np.datetime64("NaT"), np.ma.masked]
MISSING += [np.datetime64("NaT", "ns"), _NotAvailable(), [], [None, math.nan], np.array([np.nan]), pa.scalar(None)]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
def test_missing_values_are_no_text_and_no_photo(missing: Any) -> None:
    processor = _processor(product_template="{title} {brand}")
    assert processor.product_text({"title": missing, "brand": missing}) == ""
    assert processor.product_text({"title": "Dress", "brand": missing}) == "Dress"
    features = processor(products=[{"title": missing, "brand": None}, {"title": None, "brand": ""}])
    assert features["attention_mask"].sum() == 0
    if not isinstance(missing, (pa.Scalar, np.ndarray)):
        photos = processor(products=[{"title": "a", "brand": "", "image": missing}, {"title": "a", "brand": ""}])
        assert "pixel_values" not in photos


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["red", " light  blue", None, "", math.nan], "red, light blue"),
        ([["S", "M"], [], ["L", None]], "S, M, L"),
        (("red", 3), "red, 3"),
        (np.array(["red", None, math.nan], object), "red"),
        (np.array([1.5, np.nan]), "1.5"),
        (np.ma.array([1, 2], mask=[False, True]), "1"),
        (pa.array(["red", None]), "red"),
        (pa.chunked_array([["red"], ["blue"]], pa.large_string()), "red, blue"),
        (pa.array(["red"]).dictionary_encode()[0], "red"),
        (pa.scalar(Decimal("9.90")), "9.90"),
        (torch.tensor([1, 2]), "1, 2"),
        (3, "3"),
        (3.0, "3.0"),
        (np.int64(3), "3"),
        (np.float64(0.1), "0.1"),
        (np.str_("red"), "red"),
        (np.array("red"), "red"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02 03:04:00"),
        (np.datetime64("2026-01-02T03:04", "ns"), "2026-01-02 03:04:00"),
        ("nan", "nan"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_become_text_alike_from_every_library(value: Any, text: str) -> None:
    assert _processor(product_template="{tags}").product_text({"tags": value}) == text


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"name": "red"}, r"a struct, \{'name': 'red'\}; put the fields that are text into columns of their own"),
        ([{"name": "red"}], "a struct"),
        (pa.scalar({"name": "red"}), "a struct"),
        (np.array([("red",)], dtype=[("name", "U3")])[0], "a struct"),
        (b"red", "bytes, b'red'; decode them to text"),
        (object(), "a object, <object.*convert it to text"),
        ({"red"}, "a set, .*convert it to text"),
    ],
)
def test_values_that_are_no_text_name_product_column_and_remedy(value: Any, what: str) -> None:
    with pytest.raises(ValueError, match=rf"names the column 'tags', which for product 'p7' holds {what}"):
        _processor(product_template="{tags}").product_text({"product_id": "p7", "tags": value})


@pytest.mark.parametrize("missing", [None, math.nan, _NotAvailable(), 3, ["red"]], ids=repr)
def test_a_query_that_is_no_text_is_named_by_its_position(missing: Any) -> None:
    with pytest.raises(ValueError, match=rf"Query 1 is {re.escape(repr(missing))}; a query is a text"):
        _processor()(queries=["red", missing])


def test_queries_that_are_missing_altogether_are_an_error() -> None:
    with pytest.raises(ValueError, match="queries is nan; give one query or several"):
        _processor()(queries=math.nan)  # type: ignore[arg-type]
    assert len(_processor()(queries=np.array(["red", "blue"]))["input_ids"]) == 2


def test_records_of_pandas_read_as_rows_of_arrow() -> None:
    pandas = pytest.importorskip("pandas")
    rows = pa.table(
        {
            "title": ["Dress", None, "Mug"],
            "rating": [4.5, None, 3.0],
            "tags": [["red", None], None, []],
            "added": pa.array([datetime.datetime(2026, 1, 2), None, None], pa.timestamp("ns")),
            "stock": pa.array([3, None, 4], pa.int64()),
        }
    )
    processor = _processor(product_template="{title} {rating} {tags} {added} {stock}")
    texts = [processor.product_text(row) for row in rows.to_pylist()]
    assert texts == ["Dress 4.5 red 2026-01-02 00:00:00 3", "", "Mug 3.0 4"]
    frame = rows.to_pandas().astype({"stock": "Int64"})
    assert [processor.product_text(row) for row in frame.to_dict("records")] == texts
    assert [processor.product_text(row) for _, row in frame.astype(object).iterrows()] == texts
    assert (
        processor.product_text({"title": pandas.NA, "rating": pandas.NaT, "tags": "", "added": None, "stock": ""}) == ""
    )


def test_columns_of_a_catalogue_become_the_texts_of_its_rows(tmp_path: Path) -> None:
    columns = {
        "title": pa.array(["Dress", None, "Mug"], pa.large_string()),
        "rating": [math.nan, 4.5, None],
        "tags": [["red", None], [], None],
        "brand": pa.array(["Acme", None, "Acme"]).dictionary_encode(),
        "price": pa.array([Decimal("9.90"), None, None], pa.decimal128(10, 2)),
        "added": pa.array([None, datetime.date(2026, 1, 2), None]),
    }
    pq.write_table(pa.table({"product_id": ["a", "b", "c"], **columns}), tmp_path / "products.parquet")
    products = Catalogue.load_products(tmp_path, cache_dir=tmp_path / "cache")
    processor = _processor(product_template="{title} {rating} {tags} {brand} {price} {added}")
    texts = ["Dress red Acme 9.90", "4.5 2026-01-02", "Mug Acme"]
    assert ProductTable(products, processor).texts(np.arange(3)) == texts
    assert [processor.product_text(products.product(row)) for row in range(3)] == texts


@pytest.mark.parametrize(
    "values",
    [pa.array([{"en": "red"}]), pa.array([b"red"]), pa.array([[{"en": "red"}]])],
    ids=lambda values: str(values.type),
)
def test_a_template_column_of_structs_or_bytes_is_an_error_at_once(tmp_path: Path, values: pa.Array) -> None:
    pq.write_table(pa.table({"product_id": ["a"], "title": ["x"], "name": values}), tmp_path / "products.parquet")
    products = Catalogue.load_products(tmp_path, cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"names the column 'name', which is .*columns of their own, or decode bytes"):
        ProductTable(products, _processor(product_template="{title} {name}"))
