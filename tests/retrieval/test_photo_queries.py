"""Search by photo, alone and with words."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from published_model import write_model_folder

from mmfusion import Retriever
from mmfusion.model import MMFusionError
from mmfusion.retrieval import PhotoQueryEncoder, PhotoQueryError, Searcher
from mmfusion.retrieval.ranking import RankingError


def photo(colour: str) -> Image.Image:
    return Image.new("RGB", (40, 48), colour)


def png(colour: str) -> bytes:
    file = io.BytesIO()
    photo(colour).save(file, "PNG")
    return file.getvalue()


def products() -> list[dict[str, Any]]:
    seen = {name: {"image": photo(name)} for name in ("red", "green", "blue")}
    return [{"product_id": name, "title": "", **image} for name, image in seen.items()] + [
        {"product_id": "mug", "title": "A mug"}
    ]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    folder = tmp_path_factory.mktemp("photo_queries") / "model"
    return Retriever.from_pretrained(write_model_folder(folder, matryoshka_dims=[16]), device="cpu")


@pytest.fixture(scope="module")
def searcher(retriever: Retriever) -> Searcher:
    return retriever.index([{**one, "price": place} for place, one in enumerate(products())])


@pytest.mark.parametrize(("routed", "truncate_dim"), [(False, 16), (True, None)])
def test_a_photo_finds_itself(tmp_path: Path, routed: bool, truncate_dim: int | None) -> None:
    folder = write_model_folder(tmp_path / "model", query_router=routed, matryoshka_dims=[16])
    retriever = Retriever.from_pretrained(folder, device="cpu")
    searcher = retriever.index(products(), truncate_dim=truncate_dim)
    for colour in ("red", "green", "blue"):
        hits = searcher.search(image=png(colour), k=2)
        assert hits[0].product_id == colour
        if retriever.views == 1:
            assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert retriever.search(image=png("red"), k=1) == searcher.search(image=photo("red"), k=1)
    assert isinstance(retriever, PhotoQueryEncoder)


def test_words_and_photo_are_weighed(retriever: Retriever) -> None:
    photos = [photo("red"), photo("green")]
    alone, said = retriever.encode_photo_queries(photos), retriever.encode_queries(["in blue"])
    said = said / np.linalg.norm(said, axis=1, keepdims=True)
    for weight in (0.0, 0.3, 1.0):
        mixed = retriever.encode_photo_queries(photos, ["in blue", None], photo_weight=weight)
        expected = weight * alone[0] + (1 - weight) * said[0]
        np.testing.assert_allclose(mixed[0], expected / np.linalg.norm(expected), atol=1e-5)
        np.testing.assert_allclose(mixed[1], alone[1], atol=1e-6)
    np.testing.assert_array_equal(retriever.encode_photo_queries(photos, ["", "  "]), alone)


def test_filters_apply_to_photos_too(searcher: Searcher) -> None:
    hits = searcher.search("a mug", image=photo("red"), filter=[("price", ">", 1)])
    assert {hit.product_id for hit in hits} == {"blue", "mug"}


@pytest.mark.parametrize(
    ("ranking", "said"), [({"mode": "words"}, "a photo has none"), ({"min_score": "calibrated"}, "for words alone")]
)
def test_rankings_of_words_alone_are_refused(searcher: Searcher, ranking: Any, said: str) -> None:
    with pytest.raises(RankingError, match=said):
        searcher.search("mug", image=photo("red"), **ranking)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "nothing to search for"),
        ({"queries": ["a", "b"], "image": photo("red")}, "2 texts and one photo"),
        ({"image": b""}, "cannot be read: empty, 0 bytes"),
        ({"image": b"just words"}, "not an image in a known format"),
        ({"image": "no/such.png"}, "no file at"),
        ({"image": "https://shop.example/1.png"}, "is a URL, which is not fetched"),
        ({"image": [photo("red")]}, "is a list; give a path"),
        ({"image": np.zeros((4, 4, 3))}, "is a ndarray; give a path"),
        ({"image": float("nan")}, "is a float; give a path"),
        ({"image": ""}, "query 0 has no photo"),
    ],
)
def test_what_is_no_photo_is_an_error_that_says_so(searcher: Searcher, arguments: Any, said: str) -> None:
    with pytest.raises(PhotoQueryError, match=said):
        searcher.search(**arguments)


def test_a_text_that_is_called_a_photo_is_an_error(searcher: Searcher, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("not a photo")
    with pytest.raises(PhotoQueryError, match="not an image in a known format, it starts with b'not a photo'"):
        searcher.search(image=tmp_path / "photo.jpg")


def test_numbers_of_photos_and_words_must_agree(retriever: Retriever) -> None:
    with pytest.raises(PhotoQueryError, match="1 photos, 2 texts"):
        retriever.encode_photo_queries([photo("red")], ["a", "b"])
    with pytest.raises(PhotoQueryError, match=r"photo_weight 1\.5"):
        retriever.encode_photo_queries([photo("red")], photo_weight=1.5)


def test_towers_that_see_nothing_say_so(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    index = Retriever.from_pretrained(folder, device="cpu").index(products()).index
    tower = Retriever.from_pretrained(folder, device="cpu", subfolder="query")
    with pytest.raises(PhotoQueryError, match="a query tower alone, which reads words"):
        Searcher(tower, index).search(image=photo("red"))
    of_texts = Retriever.from_pretrained(write_model_folder(tmp_path / "texts", fusion="text_only"), device="cpu")
    with pytest.raises(MMFusionError, match="fusion is 'text_only', which does not look at photos"):
        of_texts.index(products()).search("red", image=photo("red"))

    class Words:
        fingerprint, dimension, views = index.description.model_fingerprint, index.description.dimension, 1

        def encode_queries(self, queries: Any) -> Any:
            return tower.encode_queries(queries)

    with pytest.raises(PhotoQueryError, match="a Words reads words alone"):
        Searcher(Words(), index).search(image=photo("red"))
