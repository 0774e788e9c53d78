"""Searching by photo over HTTP: forms, what is refused, and what else goes on meanwhile."""

import asyncio
import io
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from published_model import write_model_folder

from mmfusion.commands.serve import Config, _load_encoder
from mmfusion.retrieval import PhotoQueryError, Searcher
from mmfusion.retriever import Retriever
from mmfusion.serving import ServiceLimits, photo_queries
from mmfusion.serving.app import SearchService

Ask = Callable[[httpx.AsyncClient], Awaitable[Any]]


def encoded(colour: str, size: tuple[int, int] = (40, 48), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("photos") / "model")


@pytest.fixture(scope="module")
def searcher(folder: Path) -> Searcher:
    colours = ("red", "green", "blue", "white", "black")
    rows = [{"product_id": name, "title": "", "image": encoded(name), "price": n} for n, name in enumerate(colours)]
    return Retriever.from_pretrained(folder, device="cpu").index(rows)


def asking(searcher: Searcher, ask: Ask, cost: Any = (("parameters", 7), ("mib", 0.5)), **limits: Any) -> Any:
    async def run() -> Any:
        service = SearchService(
            searcher, None, ServiceLimits(**limits), photo_cost=None if cost is None else dict(cost)
        )
        app = service.app()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://t") as http,
        ):
            return await ask(http)

    return asyncio.run(run())


# As browsers send a form without a chosen file.
NO_FILE = (
    b'--x\r\nContent-Disposition: form-data; name="query"\r\n\r\nred\r\n--x\r\nContent-Disposition: form-data; '
    b'name="image"; filename=""\r\nContent-Type: application/octet-stream\r\n\r\n\r\n--x--\r\n'
)
CUT_OFF = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n12'


def test_a_form_finds_what_the_searcher_finds(searcher: Searcher) -> None:
    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        photo = {"image": ("photo.png", encoded("green"))}
        data = {"query": "in red", "k": "3", "filter": '[["price", ">", 0]]'}
        return [
            await http.post("/search", files=photo),
            await http.post("/search", files=photo, data=data),
            await http.post("/search", files={"image": ("", b"")}, data={"query": "red"}),
            await http.post("/search", content=NO_FILE, headers={"content-type": "multipart/form-data; boundary=x"}),
            await http.get("/health"),
        ]

    alone, both, words, no_file, health = asking(searcher, ask)
    expected = [
        searcher.search(image=encoded("green")),
        searcher.search("in red", 3, image=encoded("green"), filter=[("price", ">", 0)]),
        searcher.search("red"),
        searcher.search("red"),
    ]
    for answer, hits in zip((alone, both, words, no_file), expected, strict=True):
        assert answer.status_code == 200, answer.text
        assert [hit["product_id"] for hit in answer.json()["hits"]] == [hit.product_id for hit in hits]
        assert [hit["score"] for hit in answer.json()["hits"]] == pytest.approx([hit.score for hit in hits], abs=1e-5)
    assert alone.json()["hits"][0]["product_id"] == "green" and both.json()["query"] == "in red"
    assert health.json()["photo_queries"] == {"parameters": 7, "mib": 0.5}


LIMITS = {"max_photo_kib": 8, "max_body_kib": 4, "max_photo_pixels": 10_000, "max_query_chars": 20}


@pytest.mark.parametrize(
    ("files", "data", "status", "said"),
    [
        ({"image": ("photo.jpg", b"just some words")}, {}, 400, "not an image in a known format"),
        ({"image": ("photo.jpg", b"<html>")}, {}, 400, "HTML or XML text instead of a raster image"),
        ({"image": ("photo.jpg", b"")}, {}, 400, "empty, 0 bytes"),
        ({"image": ("photo.jpg", encoded("red", (90, 90), "JPEG")[:-300])}, {}, 400, "the photo cannot be used"),
        ({"image": ("photo.png", encoded("red", (200, 200)))}, {}, 400, "200x200 is more than 10,000 pixels"),
        ({"image": ("photo.png", encoded("red") + bytes(9 * 1024))}, {}, 413, "at most 8 KiB are taken"),
        ({"image": ("photo.png", encoded("red") + bytes(99 * 1024))}, {}, 413, "the body has more than 12 KiB"),
        ({"image": ("", b"")}, {"query": " "}, 400, "neither a photo (image) nor words (query)"),
        ({"image": ("a.png", encoded("red"))}, {"k": "many"}, 400, "k: Input should be a valid integer"),
        ({"image": ("a.png", encoded("red"))}, {"k": "6"}, 400, "k is 6, and the index has 5 products"),
        ({"image": ("a.png", encoded("red"))}, {"size": "1"}, 400, "size: Extra inputs are not permitted"),
        ({"image": ("a.png", encoded("red"))}, {"query": "x" * 21}, 400, "at most 20 characters"),
        ({"image": ("a.png", encoded("red"))}, {"query": ["a", "b"]}, 400, "query: Input should be a valid string"),
        ({"image": ("a.png", encoded("red"))}, {"mode": "words"}, 400, "go with a photo only as 'vectors'"),
        ({"image": ("a.png", encoded("red"))}, {"min_score": "calibrated"}, 400, "go with a photo only"),
        ({"image": ("a.png", encoded("red"))}, {"filter": '[["size", "=", 1]]'}, 400, "size"),
        ({"photo": ("a.png", encoded("red"))}, {}, 400, "has the files 'photo'; give one photo, as 'image'"),
        ([("image", ("a.png", encoded("red")))] * 2, {}, 400, "has the files 'image', 'image'"),
        ({"other": ("", b"")}, {"image": "https://shop.example/1.jpg"}, 400, "image is a text; send the photo"),
    ],
)
def test_what_cannot_be_searched_for_is_explained(
    searcher: Searcher, files: Any, data: Any, status: int, said: str
) -> None:
    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        wrong = await http.post("/search", files=files, data=data)
        return [wrong, await http.post("/search", files={"image": ("a.png", encoded("red"))}, data={"k": "1"})]

    wrong, after = asking(searcher, ask, **LIMITS)
    assert wrong.status_code == status and said in wrong.json()["error"], wrong.text
    assert after.json()["hits"][0]["product_id"] == "red"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b"no form at all"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n12',
        ),
        ("multipart/form-data; boundary=x", b"--x\r\ncontent-disposition: form-data\r\n\r\n12\r\n--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 300, b""),
    ],
)
def test_broken_forms_are_refused(searcher: Searcher, kind: str, body: bytes) -> None:
    answer = asking(searcher, lambda http: http.post("/search", content=body, headers={"content-type": kind}))
    assert answer.status_code == 400 and "form" in answer.json()["error"], answer.text


def test_a_service_without_photo_queries_says_so(searcher: Searcher) -> None:
    form: Any = {"image": ("a.png", encoded("red"))}

    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        return [await http.post("/search", files=form), await http.get("/health"), await http.get("/search?query=red")]

    refused, health, found = asking(searcher, ask, cost=None)
    assert refused.status_code == 415 and "--photo_queries true" in refused.json()["error"]
    assert health.json()["photo_queries"] is None and found.status_code == 200


def test_words_are_answered_while_a_photo_is_decoded(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on, decode = threading.Event(), threading.Event(), photo_queries.decode_photo

    def slow(*arguments: Any, **options: Any) -> Any:
        entered.set()
        assert go_on.wait(30)
        return decode(*arguments, **options)

    monkeypatch.setattr(photo_queries, "decode_photo", slow)
    form: Any = {"image": ("a.png", encoded("red"))}

    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        first = asyncio.create_task(http.post("/search", files=form))
        await asyncio.to_thread(entered.wait, 30)
        words, second = await http.get("/search?query=red"), await http.post("/search", files=form)
        go_on.set()
        return [words, second, await first]

    words, second, first = asking(searcher, ask, max_photos_waiting=1)
    assert (words.status_code, first.status_code) == (200, 200)
    assert second.status_code == 503 and second.headers["retry-after"] == "1" and "1 photos are read" in second.text


def test_photos_are_logged_as_such_and_their_words_are_not(
    searcher: Searcher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmfusion.access")
    form: Any = {"image": ("Jane Doe.png", encoded("red"))}
    asking(searcher, lambda http: http.post("/search", files=form, data={"query": "secret"}))
    (line,) = (record.getMessage() for record in caplog.records if record.name == "mmfusion.access")
    assert '"photo": true' in line and "secret" not in line and "Jane" not in line


def test_serve_loads_the_whole_model_only_for_photos(folder: Path, tmp_path: Path) -> None:
    words, tower, nothing = _load_encoder(Config(), str(folder))
    whole, same_tower, cost = _load_encoder(Config(photo_queries=True), str(folder))
    assert isinstance(words, Retriever) and words.model.vision_model is None and nothing is None
    assert isinstance(whole, Retriever) and whole.model.vision_model is not None
    assert tower == same_tower and cost is not None and cost["parameters"] > 0 and cost["mib"] > 0
    assert tower["parameters"] + cost["parameters"] == whole.model.num_parameters()
    with pytest.raises(ValueError, match="--onnx x reads words alone"):
        _load_encoder(Config(photo_queries=True, onnx="x"), str(folder))
    texts = write_model_folder(tmp_path / "texts", fusion="text_only")
    with pytest.raises(PhotoQueryError, match="does not look at photos"):
        _load_encoder(Config(photo_queries=True), str(texts))
