"""What the search page is made of: its files and settings, photos from the catalogue, facets, and the other model."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from served_index import MARKUP, ODD_IDS, drawn_index, write_shop

from mmfusion.commands.serve import Config, _check_flags, _check_same_products, _load_photos
from mmfusion.retrieval import FilterError, ProductIndex, Searcher
from mmfusion.retrieval.facets import MAX_VALUES, facets_of
from mmfusion.retriever import Retriever
from mmfusion.serving import ServiceLimits
from mmfusion.serving.app import SearchService
from mmfusion.serving.page import SearchPage
from mmfusion.serving.photos import SIZE, Photos, Thumbnails


@pytest.fixture(scope="module")
def shop(place: Path, encoder: Retriever) -> ProductIndex:
    return write_shop(place, encoder)


@pytest.fixture
def thumbnails(shop: ProductIndex, place: Path, tmp_path: Path) -> Thumbnails:
    return Thumbnails(str(place / "catalogue"), tmp_path / "cache")


def asking(
    encoder: Retriever, index: ProductIndex, ask: Callable[[httpx.AsyncClient], Awaitable[Any]], **page: Any
) -> Any:
    service = SearchService(Searcher(encoder, index), None, ServiceLimits(), page=SearchPage(**page))

    async def run() -> Any:
        app = service.app()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://t") as http,
        ):
            return await ask(http)

    return asyncio.run(run())


def of_columns(encoder: Retriever, **columns: Any) -> ProductIndex:
    """An index with this metadata."""
    table = pa.table(columns)
    vectors = np.random.default_rng(0).normal(size=(len(table), encoder.dimension)).astype(np.float32)
    ids = [str(row) for row in range(len(table))]
    return ProductIndex.build(vectors, ids, model_fingerprint=encoder.fingerprint, metadata=table)


def test_facets_count_values_and_bound_numbers_of_the_products_that_are_there(shop: ProductIndex) -> None:
    found = {facet.column: facet for facet in facets_of(shop)}
    assert set(found) == {"price", "brand", "tags", "in_stock"}
    assert (found["price"].kind, found["price"].low, found["price"].high) == ("range", 0.5, 59.5)
    assert found["brand"].values == [{"value": name, "count": 20} for name in ("<i>Odd</i>", "Acme", "Belmora")]
    assert found["tags"].kind == "lists" and found["tags"].values[1] == {"value": "sale", "count": 30}
    assert found["in_stock"].values == [{"value": True, "count": 45}, {"value": False, "count": 15}]


def test_facets_follow_what_is_deleted_and_added(encoder: Retriever) -> None:
    index = of_columns(encoder, colour=["red", "red", "blue", "blue"], price=[1.0, 2.0, float("nan"), float("inf")])
    index.delete(["0"])
    more = {"model_fingerprint": encoder.fingerprint, "metadata": pa.table({"colour": [" "], "price": [-5.0]})}
    index.update(np.ones((1, encoder.dimension)), ["new"], **more)
    colour, price = facets_of(index, ["colour", "price"])
    assert colour.values == [{"value": "blue", "count": 2}, {"value": "red", "count": 1}]
    assert (price.low, price.high) == (-5.0, 2.0)


def test_texts_that_sort_nothing_are_no_facet_unless_named_and_then_bounded(encoder: Retriever) -> None:
    note = [f"note {row}" for row in range(300)]
    index = of_columns(encoder, note=note, sku_id=[1] * 300, same=["a"] * 300, day=pa.array([0] * 300, pa.date32()))
    assert facets_of(index) == []
    (named,) = facets_of(index, ["note", "note"])
    assert len(named.values) == MAX_VALUES and named.distinct == 300
    with pytest.raises(FilterError, match="no column 'colour' for a facet; this index has note, sku_id, same, day"):
        facets_of(index, ["colour"])
    with pytest.raises(FilterError, match="'day' is date32"):
        facets_of(index, ["day"])


def test_the_page_comes_with_a_strict_policy_and_is_not_sent_again(encoder: Retriever, shop: ProductIndex) -> None:
    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        first = [await http.get(name) for name in ("/", "/page.js", "/view.js", "/page.css", "/icon.svg", "/page.json")]
        return [*first, await http.get("/", headers={"if-none-match": first[0].headers["etag"]})]

    html, *files, settings, again = asking(encoder, shop, ask, models=["ours"])
    assert [one.status_code for one in (html, *files, again)] == [200] * 5 + [304] and not again.content
    policy = html.headers["content-security-policy"]
    assert policy.startswith(
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'"
    )
    assert "unsafe" not in policy and "http" not in policy
    assert "<style" not in html.text and "style=" not in html.text and html.text.count("<script") == 1
    assert settings.json()["columns"] == ["brand"] and settings.json()["photos"] is False
    assert {facet["column"] for facet in settings.json()["facets"]} == {"price", "brand", "tags", "in_stock"}


def test_remote_photos_open_the_policy_for_the_hosts_of_the_index_alone(encoder: Retriever) -> None:
    addresses = ["https://a.example/1", "https://a.example/2", "http://B.example:8080/x", "javascript:alert(1)", None]
    addresses += ["https://user@c.example/", "https://d.example;script-src *", "https://bücher.example/x"]
    index = of_columns(encoder, image_url=addresses)

    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        return [await http.get("/"), await http.get("/page.json")]

    html, settings = asking(encoder, index, ask, remote_photos=True)
    (images,) = (part for part in html.headers["content-security-policy"].split("; ") if part.startswith("img-src"))
    hosts = "https://a.example http://b.example:8080 https://c.example https://xn--bcher-kva.example"
    assert (
        sorted(images.split()) == sorted(f"img-src 'self' blob: {hosts}".split())
        and settings.json()["remote_photos"] == "image_url"
    )
    with pytest.raises(FilterError, match="no column 'image_url' to show on the page; this index has colour"):
        SearchPage(remote_photos=True).check(of_columns(encoder, colour=["red"]))
    with pytest.raises(FilterError, match="no column 'size' to show"):
        SearchPage(columns=["size"]).check(of_columns(encoder, colour=["red"]))


def test_photos_are_small_pictures_that_browsers_keep(
    encoder: Retriever, shop: ProductIndex, thumbnails: Thumbnails, caplog: pytest.LogCaptureFixture
) -> None:
    names = [*ODD_IDS, "p10", "p9", "p7", "p8", "../../etc/passwd", "p999"]

    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        found = [await http.get(f"/photos/{quote(name, safe='')}") for name in names]
        return [*found, await http.get("/photos/p10", headers={"if-none-match": found[5].headers["etag"]})]

    *found, again = asking(encoder, shop, ask, photos=Photos(thumbnails, 8))
    *there, none, bad, outside, unknown = found
    assert [one.status_code for one in there] == [200] * 7 and {one.headers["content-type"] for one in there} == {
        "image/webp"
    }
    assert Image.open(io.BytesIO(there[5].content)).size == (SIZE, SIZE // 2)
    assert there[6].content == there[0].content, "p9 has the photo of the first product in a file"
    assert none.status_code == bad.status_code == 204 and "max-age" in bad.headers["cache-control"]
    assert outside.status_code == unknown.status_code == 404 and "no product 'p999'" in unknown.json()["error"]
    assert again.status_code == 304 and not again.content
    assert "'p8' is shown without a photo: not an image" in caplog.text


def test_a_photo_is_decoded_once_and_needs_no_place_to_be_kept(
    thumbnails: Thumbnails, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = thumbnails("p10")
    (kept,) = thumbnails.folder.glob("thumbnails/*/*.webp")
    assert first is not None and kept.read_bytes() == first.data
    monkeypatch.setattr("mmfusion.serving.photos.decode_photo", None)
    assert thumbnails("p10") == first
    monkeypatch.undo()
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.parent.rmdir()
    kept.parent.parent.write_text("a file where the folder should be")
    assert thumbnails("p10") == thumbnails("p10") == first
    assert caplog.text.count("cannot be kept in") == 1


def test_photos_that_wait_beyond_the_limit_are_told_to_come_again(
    encoder: Retriever, shop: ProductIndex, thumbnails: Thumbnails
) -> None:
    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(http.get(f"/photos/p{number}") for number in range(10, 20)))

    answers = asking(encoder, shop, ask, photos=Photos(thumbnails, 3))
    assert [one.status_code for one in answers].count(200) == 3
    assert {one.headers.get("retry-after") for one in answers if one.status_code == 503} == {"1"}


def test_products_like_one_can_be_filtered(encoder: Retriever, shop: ProductIndex) -> None:
    address = '/products/p20?k=5&filter=[["brand","in",["Acme"]]]'
    found, bad = asking(
        encoder, shop, lambda http: asyncio.gather(http.get(address), http.get('/products/p20?filter=[["size","=",1]]'))
    )
    assert {hit["metadata"]["brand"] for hit in found.json()["neighbours"]} == {"Acme"}
    assert bad.status_code == 400 and "names the field 'size'" in bad.json()["error"]


def test_the_other_model_answers_below_compare(encoder: Retriever, shop: ProductIndex) -> None:
    other = SearchService(Searcher(encoder, drawn_index(encoder, 60, seed=1)), None, ServiceLimits(), facets=[])
    addresses = ("/search?query=x&k=5", "/compare/search?query=x&k=5", "/compare/products/p20?k=2")
    ours, theirs, like = asking(encoder, shop, lambda http: asyncio.gather(*map(http.get, addresses)), compared=other)
    assert ours.status_code == theirs.status_code == like.status_code == 200
    assert ours.json()["hits"][0]["metadata"]["title"] in {MARKUP, *(f"Product {name}" for name in shop.product_ids)}
    assert [hit["product_id"] for hit in ours.json()["hits"]] != [hit["product_id"] for hit in theirs.json()["hits"]]


def test_an_index_of_other_products_is_not_compared(encoder: Retriever, shop: ProductIndex) -> None:
    theirs = of_columns(encoder, title=["a", "b"])
    compared = SearchService(Searcher(encoder, theirs), None, ServiceLimits(), facets=[])
    service = SearchService(Searcher(encoder, shop), None, ServiceLimits(), page=SearchPage(compared=compared))
    with pytest.raises(ValueError, match=r"none of 2 products of it, such as '[01]', is in outputs/index; give an"):
        _check_same_products(Config(compare="other"), service)


def test_what_is_missing_is_said_where_the_service_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _load_photos(Config(index=str(tmp_path)), {"arguments": {}}) is None
    assert _load_photos(Config(index=str(tmp_path)), {"catalogue": str(tmp_path / "gone")}) is None
    assert "give --catalogue" in caplog.records[0].message and "gone" in caplog.records[1].message
    (tmp_path / "bare").mkdir()
    pq.write_table(pa.table({"product_id": ["a"], "title": ["A"]}), tmp_path / "bare" / "products.parquet")
    assert _load_photos(Config(index=str(tmp_path), catalogue=str(tmp_path / "bare")), {}) is None
    assert "has no column 'image'" in caplog.records[-1].message
    with pytest.raises(ValueError, match="gone"):
        _load_photos(Config(index=str(tmp_path), catalogue=str(tmp_path / "gone")), {})
    with pytest.raises(ValueError, match="compare 'x' is for the search page; leave it out, or leave out --page false"):
        _check_flags(Config(page=False, compare="x"))
