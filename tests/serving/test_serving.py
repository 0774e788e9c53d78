"""The search service: what it answers, what it refuses, and how it behaves when there is too much to do."""

import asyncio
import gc
import json
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pyarrow as pa
import pytest
from commands import command
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from served_index import ODD_IDS, drawn_index

from mmfusion.retrieval import ProductIndex, Searcher
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.query_tower import load_query_tower, write_query_tower
from mmfusion.retriever import Retriever
from mmfusion.serving import ServiceLimits, server, watch
from mmfusion.serving.app import SearchService, json_response
from mmfusion.serving.batches import MicroBatcher, QueueFullError
from mmfusion.serving.watch import IndexWatch, load_index
from mmfusion.training import load_base


@pytest.fixture
def searcher(encoder: Retriever) -> Searcher:
    return Searcher(encoder, drawn_index(encoder, 200))


class Gate:
    """Stands before the query tower: lets batches through when it is open, and notes them."""

    def __init__(self, encoder: Retriever) -> None:
        self.encoder = encoder
        self.fingerprint, self.dimension, self.views = encoder.fingerprint, encoder.dimension, encoder.views
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[str]] = []

    def encode_queries(self, texts: Any) -> Any:
        self.batches.append(list(texts))
        self.entered.set()
        assert self.open.wait(30)
        if any("broken" in text for text in texts):
            raise RuntimeError("the encoder fell over")
        return self.encoder.encode_queries(texts)


@asynccontextmanager
async def client_of(searcher: Searcher, **limits: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = SearchService(searcher, None, ServiceLimits(**limits), {"vision_encoder": False}).app()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


def asking(searcher: Searcher, ask: Callable[[httpx.AsyncClient], Awaitable[Any]], **limits: Any) -> Any:
    async def run() -> Any:
        async with client_of(searcher, **limits) as http:
            return await ask(http)

    return asyncio.run(run())


def ids_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["product_id"] for hit in answer.json()["hits"]]


def test_what_an_answer_says_of_dates_and_lists_can_be_asked_for(encoder: Retriever) -> None:
    times = [datetime(2026, 1, 31, 18, 30, 0, 500), datetime(2026, 2, 1)]
    metadata = pa.table(
        {
            "day": [time.date() for time in times],
            "added": pa.array(times, pa.timestamp("us", "UTC")),
            "sizes": [["S"], ["M", "L"]],
        }
    )
    index = ProductIndex.build(
        np.eye(2, encoder.dimension), ["a", "b"], model_fingerprint=encoder.fingerprint, metadata=metadata
    )

    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        products = [(await http.get(f"/products/{name}")).json()["metadata"] for name in "ab"]
        filters = [["day", "=", products[0]["day"]], ["added", ">", products[0]["added"]], ["added", "<", "2026-02-01"]]
        filters += [["sizes", "contains", products[1]["sizes"][1]], ["day", ">", "soon"]]
        return [await http.post("/search", json={"query": "x", "k": 2, "filter": [one]}) for one in filters]

    *answers, refused = asking(Searcher(encoder, index), ask)
    assert [ids_of(one) for one in answers] == [["a"], ["b"], ["a"], ["b"]]
    assert refused.status_code == 400 and "give an ISO 8601 date or time such as" in refused.json()["error"]


def test_a_search_finds_what_the_searcher_finds(searcher: Searcher) -> None:
    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        body = {"query": "rotes Kleid 👗", "k": 7, "filter": [["price", ">=", 50]]}
        return [
            await http.post("/search", json=body),
            await http.get("/search", params={**body, "filter": json.dumps(body["filter"])}),
            await http.get("/search", params={"query": "red dress"}),
        ]

    posted, got, plain = asking(searcher, ask)
    expected = searcher.search("rotes Kleid 👗", 7, filter=[("price", ">=", 50)])
    for answer in (posted, got):
        assert answer.headers["content-type"] == "application/json" and answer.json()["query"] == "rotes Kleid 👗"
        assert [hit["score"] for hit in answer.json()["hits"]] == pytest.approx([hit.score for hit in expected])
        assert [{**hit, "score": 0} for hit in answer.json()["hits"]] == [{**vars(hit), "score": 0} for hit in expected]
    assert ids_of(plain) == [hit.product_id for hit in searcher.search("red dress", 10)]


@pytest.mark.parametrize("product_id", [*ODD_IDS, "p199"])
def test_a_product_is_found_by_its_id_whatever_it_holds(searcher: Searcher, product_id: str) -> None:
    answer = asking(searcher, lambda http: http.get(f"/products/{quote(product_id, safe='')}?k=3"))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["product_id"] == product_id and found["metadata"]["title"] == f"Product {product_id}"
    assert found["modality_weights"] == {"text": 0.5, "image": 0.5}
    vector = searcher.index.product(product_id).vector
    expected = [hit.product_id for hit in searcher.index.search(vector[None], 4)[0] if hit.product_id != product_id]
    assert [hit["product_id"] for hit in found["neighbours"]] == expected
    assert [hit["rank"] for hit in found["neighbours"]] == [1, 2, 3]


@pytest.mark.parametrize(
    "body, status, text",
    [
        ({}, 400, "query: Field required"),
        ({"query": ""}, 400, "query: give a text to search for (given: '')"),
        ({"query": " \n"}, 400, "query: give a text to search for (given: ' \\n')"),
        ({"query": 7}, 400, "query: Input should be a valid string (given: 7)"),
        ({"query": "x" * 1001}, 400, "query: String should have at most 1000 characters (given: 'xxx"),
        ({"query": "x" * 100_000}, 413, "the body has more than 64 KiB"),
        ({"query": "x", "k": 0}, 400, "k: Input should be greater than or equal to 1 (given: 0)"),
        ({"query": "x", "k": -1}, 400, "k: Input should be greater than or equal to 1 (given: -1)"),
        ({"query": "x", "k": 1001}, 400, "k: Input should be less than or equal to 1000 (given: 1001)"),
        ({"query": "x", "k": 201}, 400, "k is 201, and the index has 200 products"),
        ({"query": "x", "k": 2.5}, 400, "k: Input should be a valid integer (given: 2.5)"),
        ({"query": "x", "k": True}, 400, "k: Input should be a valid integer (given: True)"),
        ({"query": "x", "k": "ten"}, 400, "k: Input should be a valid integer (given: 'ten')"),
        ({"query": "x", "filter": [["colour", "=", "red"]]}, 400, "the field 'colour'; this index has title, price"),
        ({"query": "x", "filter": [["price", "~", 1]]}, 400, "the operator '~'"),
        ({"query": "x", "filter": [["price", "<", "cheap"]]}, 400, "compares 'price', which is int64, with 'cheap'"),
        ({"query": "x", "filter": "price < 3"}, 400, "filter: expected value at line 1 column 1 (given: 'price < 3')"),
        ({"query": "x", "filter": {"price": 3}}, 400, "the filter is {'price': 3}"),
        ({"query": "x", "filters": []}, 400, "filters: Extra inputs are not permitted (given: [])"),
        ({"query": "x", "filter": [["price", "<", 3]] * 33}, 400, "filter: there are 33 conditions; give at most 32"),
        ({"query": "x", "filter": ["y" * 9_000]}, 400, "the filter holds 'yyy"),
        (["x"], 400, "the body: Input should be an object (given: ['x'])"),
    ],
)
def test_a_bad_search_is_refused_with_its_value(searcher: Searcher, body: Any, status: int, text: str) -> None:
    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        return [await http.post("/search", json=body), await http.get("/search?query=still+there")]

    refused, after = asking(searcher, ask)
    assert (refused.status_code, after.status_code) == (status, 200)
    assert text in refused.json()["error"] and "\n" not in refused.json()["error"] and len(refused.text) < 500


@pytest.mark.parametrize(
    "method, url, content, status, text",
    [
        ("POST", "/search", b"{", 400, "the body: Invalid JSON"),
        ("POST", "/search", b'{"query": "x", "k": NaN}', 400, "k: Input should be a valid integer (given: nan)"),
        ("POST", "/search", b'{"query": "\\ud800"}', 400, "the body: Invalid JSON"),
        ("POST", "/search", b"\xff\xfe", 400, "the body: Invalid JSON"),
        ("POST", "/search", b"[" * 50_000, 400, "the body: Invalid JSON"),
        ("POST", "/search", b"[" * 1000 + b"]" * 1000, 400, "the body: Invalid JSON: recursion limit"),
        (
            "POST",
            "/search",
            b'{"query": "x", "filter": ' + b"[" * 990 + b"]" * 990 + b"}",
            400,
            "the body: Invalid JSON: recursion limit",
        ),
        ("POST", "/search?k=3", b'{"query": "x"}', 400, "'k' is in the address; a POST says everything in its body"),
        ("GET", "/search?query=x&query=y", b"", 400, "query: Input should be a valid string (given: ['x', 'y'])"),
        ("GET", "/search?query=x&filter=[", b"", 400, "filter: EOF while parsing a list"),
        ("GET", "/search?query=x&page=2", b"", 400, "page: Extra inputs are not permitted (given: '2')"),
        ("GET", f"/search?query={'x' * 60_000}", b"", 400, "query: String should have at most 1000 characters"),
        ("GET", "/products/nothing%0Athere", b"", 404, "there is no product 'nothing\\nthere' in the index"),
        ("GET", "/products/p5?k=0", b"", 400, "k: Input should be greater than or equal to 1 (given: '0')"),
        ("GET", "/products/p5?n=3", b"", 400, "n: Extra inputs are not permitted (given: '3')"),
        ("GET", "/products/p5?k=200", b"", 400, "k is 200, and the index has 199 other products"),
        ("GET", "/search/?query=x", b"", 404, "GET /search/: Not Found; there are /search"),
        ("GET", "/nowhere", b"", 404, "GET /nowhere: Not Found; there are /search"),
        ("DELETE", "/search", b"", 405, "DELETE /search: Method Not Allowed; there are /search"),
    ],
)
def test_a_bad_request_is_answered_in_json(
    searcher: Searcher, method: str, url: str, content: bytes, status: int, text: str
) -> None:
    answer = asking(searcher, lambda http: http.request(method, url, content=content))
    assert answer.status_code == status and text in answer.json()["error"]


def test_a_head_is_that_of_the_answer(searcher: Searcher) -> None:
    async def ask(http: httpx.AsyncClient) -> list[int]:
        urls = ("/search?query=x", "/search", "/products/p5", "/health")
        return [(await http.head(url)).status_code for url in urls]

    assert asking(searcher, ask) == [200, 400, 200, 200]


def test_who_does_not_say_how_many_gets_what_there_is(encoder: Retriever) -> None:
    async def ask(http: httpx.AsyncClient) -> tuple[int, int]:
        found, product = await http.get("/search?query=x"), await http.get("/products/p5")
        return len(ids_of(found)), len(product.json()["neighbours"])

    assert asking(Searcher(encoder, drawn_index(encoder, 6)), ask) == (6, 5)
    assert asking(Searcher(encoder, drawn_index(encoder, 50)), ask) == (10, 10)
    assert asking(Searcher(encoder, drawn_index(encoder, 50)), ask, max_k=4) == (4, 4)


def test_queries_that_come_together_are_computed_together(encoder: Retriever) -> None:
    gate = Gate(encoder)
    searcher = Searcher(gate, drawn_index(encoder, 200))
    queries = [f"query {'long ' * (number % 5)}{number}" for number in range(9)]

    async def ask(http: httpx.AsyncClient) -> tuple[list[httpx.Response], str]:
        first = asyncio.create_task(http.get("/search?query=first"))
        await asyncio.to_thread(gate.entered.wait, 30)
        asked = [
            asyncio.create_task(http.post("/search", json={"query": query, "k": 1 + number, **filtered(number)}))
            for number, query in enumerate(queries)
        ]
        while await waiting(http) < len(queries):
            await asyncio.sleep(0.01)
        gate.open.set()
        answers = [await one for one in [first, *asked]]
        return answers[1:], (await http.get("/metrics")).text

    answers, metrics = asking(searcher, ask, max_batch=6)
    assert [len(batch) for batch in gate.batches] == [1, 6, 3]
    for number, (query, answer) in enumerate(zip(queries, answers, strict=True)):
        alone = Searcher(encoder, searcher.index).search(query, 1 + number, **filtered(number))
        assert ids_of(answer) == [hit.product_id for hit in alone]
    samples = {one.name + str(one.labels): one.value for one in samples_of(metrics)}
    assert samples["mmfusion_batch_queries_count{}"] == 3 and samples["mmfusion_batch_queries_sum{}"] == 10
    assert samples["mmfusion_requests_total{'route': 'search', 'status': '200'}"] == 10
    assert samples["mmfusion_products{}"] == 200 and samples["mmfusion_waiting_requests{}"] == 0


def filtered(number: int) -> dict[str, Any]:
    return {"filter": [["price", "<", 100]]} if number % 3 == 0 else {}


def samples_of(text: str) -> list[Any]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


async def waiting(http: httpx.AsyncClient) -> int:
    found: int = (await http.get("/health")).json()["waiting"]
    return found


def test_a_full_queue_answers_503_and_recovers(encoder: Retriever) -> None:
    gate = Gate(encoder)

    async def ask(http: httpx.AsyncClient) -> tuple[list[httpx.Response], list[httpx.Response], httpx.Response]:
        first = asyncio.create_task(http.get("/search?query=first"))
        await asyncio.to_thread(gate.entered.wait, 30)
        held = [asyncio.create_task(http.get(f"/search?query=q{number}")) for number in range(4)]
        while await waiting(http) < 4:
            await asyncio.sleep(0.01)
        refused = [await http.get("/search?query=late"), await http.get("/products/p9")]
        gate.open.set()
        return [await one for one in [first, *held]], refused, await http.get("/search?query=after")

    held, refused, after = asking(Searcher(gate, drawn_index(encoder, 50)), ask, max_waiting=4)
    assert [one.status_code for one in held] == [200] * 5 and after.status_code == 200
    for one in refused:
        assert one.status_code == 503 and one.headers["retry-after"] == "1"
        assert (
            one.json()["error"] == "4 requests wait already, as many as can be answered in time; try again in a second."
        )


def test_a_request_whose_time_is_up_is_not_computed(encoder: Retriever) -> None:
    gate = Gate(encoder)

    async def ask(http: httpx.AsyncClient) -> tuple[list[httpx.Response], httpx.Response]:
        first = asyncio.create_task(http.get("/search?query=first"))
        await asyncio.to_thread(gate.entered.wait, 30)
        late = [asyncio.create_task(http.get(f"/search?query=late{number}")) for number in range(2)]
        answers = [await one for one in [first, *late]]
        gate.open.set()
        return answers, await http.get("/search?query=after")

    late, after = asking(Searcher(gate, drawn_index(encoder, 50)), ask, timeout_s=0.3)
    assert [one.status_code for one in late] == [504] * 3 and after.status_code == 200
    assert late[0].json()["error"] == "there was no answer within 0.3 s; try again."
    assert gate.batches == [["first"], ["after"]]


def test_a_failure_is_of_one_batch(encoder: Retriever, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(encoder)
    gate.open.set()

    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        return [await http.get("/search?query=broken"), await http.get("/search?query=fine")]

    broken, fine = asking(Searcher(gate, drawn_index(encoder, 50)), ask)
    assert (broken.status_code, fine.status_code) == (500, 200)
    assert broken.json()["error"] == "the service failed at this request; its log says why."
    assert "the encoder fell over" not in broken.text and "the encoder fell over" in caplog.text


def test_a_failure_is_of_one_request_of_its_batch(encoder: Retriever) -> None:
    gate = Gate(encoder)

    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        asked = [asyncio.create_task(http.get("/search?query=first"))]
        await asyncio.to_thread(gate.entered.wait, 30)
        urls = ("/search?query=fine", "/search?query=broken", "/products/p9")
        asked += [asyncio.create_task(http.get(url)) for url in urls]
        while await waiting(http) < 3:
            await asyncio.sleep(0.01)
        gate.open.set()
        return [await one for one in asked]

    _, fine, broken, product = asking(Searcher(gate, drawn_index(encoder, 50)), ask)
    assert gate.batches[:2] == [["first"], ["fine", "broken"]]
    assert (broken.status_code, product.status_code) == (500, 200)
    assert ids_of(fine) == [hit.product_id for hit in Searcher(encoder, drawn_index(encoder, 50)).search("fine")]


def test_nothing_is_computed_for_a_client_that_has_left(encoder: Retriever) -> None:
    gate = Gate(encoder)
    app = SearchService(Searcher(gate, drawn_index(encoder, 50)), None, ServiceLimits(max_waiting=1)).app()

    async def run() -> list[int]:
        transport = httpx.ASGITransport(app)
        leave, statuses = asyncio.Event(), []
        scope = {"type": "http", "method": "GET", "path": "/search", "query_string": b"query=left", "headers": []}

        async def receive() -> dict[str, Any]:
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as http,
        ):
            first = asyncio.create_task(http.get("/search?query=first"))
            await asyncio.to_thread(gate.entered.wait, 30)
            left = asyncio.create_task(app(scope, receive, send))
            while await waiting(http) < 1:
                await asyncio.sleep(0.01)
            leave.set()
            await asyncio.wait_for(left, 30)
            # The place that it had is free while the batch before still runs.
            after = asyncio.create_task(http.get("/search?query=after"))
            while await waiting(http) < 1:
                await asyncio.sleep(0.01)
            gate.open.set()
            return [*statuses, (await first).status_code, (await after).status_code]

    assert asyncio.run(run()) == [499, 200, 200]
    assert gate.batches == [["first"], ["after"]]


def test_each_request_is_a_line_of_json_without_the_query(searcher: Searcher, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mmfusion.access")

    async def ask(http: httpx.AsyncClient) -> httpx.Response:
        await http.get("/search?query=secret+address&k=0")
        return await http.get("/search?query=secret+address", headers={"X-Request-ID": "mine-1"})

    answer = asking(searcher, ask)
    refused, found = (json.loads(record.message) for record in caplog.records if record.name == "mmfusion.access")
    assert answer.headers["x-request-id"] == found["request_id"] == "mine-1"
    assert found["status"] == 200 and found["hits"] == 10 and found["query_chars"] == 14 and found["ms"] > 0
    assert refused["status"] == 400 and len(refused["request_id"]) == 32
    assert "secret" not in caplog.text


@pytest.mark.parametrize("name", ["x" * 65, "a\tb", "é"])
def test_a_strange_request_id_is_not_repeated(searcher: Searcher, name: str) -> None:
    headers = [(b"x-request-id", name.encode("latin-1"))]
    answer = asking(searcher, lambda http: http.get("/health", headers=headers))
    assert len(answer.headers["x-request-id"]) == 32 and answer.headers["x-request-id"].isalnum()


def test_what_would_be_late_is_refused_at_once_and_nothing_else_is_late() -> None:
    def compute(items: list[int]) -> list[int | Exception]:
        time.sleep(0.2)
        return [*items]

    async def run() -> list[Any]:
        batcher: MicroBatcher[int, int] = MicroBatcher(compute, max_batch=2, max_waiting=100)
        async with batcher.running():
            # Learns how long a batch takes.
            for item in range(10):
                await batcher.submit(item, 5)
            found = await asyncio.gather(*(batcher.submit(item, 2.5) for item in range(60)), return_exceptions=True)
            return [*found, await batcher.submit(99, 2.5)]

    *found, again = asyncio.run(run())
    refused = [item for item, one in enumerate(found) if isinstance(one, QueueFullError)]
    assert again == 99 and 15 < len(refused) < 55
    assert [one for item, one in enumerate(found) if item not in refused] == list(range(60 - len(refused)))


def test_a_batcher_that_stops_leaves_nobody_waiting() -> None:
    async def run() -> list[Any]:
        begun, release = threading.Event(), threading.Event()

        def compute(items: list[int]) -> list[int | Exception]:
            begun.set()
            release.wait(30)
            return [item + 1 for item in items]

        batcher: MicroBatcher[int, int] = MicroBatcher(compute, max_batch=1, max_waiting=2)
        async with batcher.running():
            asked = [asyncio.create_task(batcher.submit(1, 30))]
            await asyncio.to_thread(begun.wait, 30)
            asked += [asyncio.create_task(batcher.submit(item, 30)) for item in (2, 3)]
            await asyncio.sleep(0.05)
            with pytest.raises(QueueFullError):
                await batcher.submit(4, 30)
            asyncio.get_running_loop().call_later(0.1, release.set)
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)

    assert all(isinstance(one, asyncio.CancelledError) for one in asyncio.run(run())[1:])


def followed(encoder: Retriever, folder: Path) -> SearchService:
    """A service of an index of 50 products, which is written into the folder that it follows."""
    drawn_index(encoder, 50).save(folder)
    return SearchService(Searcher(encoder, load_index(folder)), IndexWatch(folder), ServiceLimits())


def test_an_index_of_another_model_or_a_broken_one_is_not_swapped_in(
    encoder: Retriever, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "index"
    service = followed(encoder, folder)
    service.look()
    assert len(service.index) == 50

    drawn_index(encoder, 60, fingerprint="other").save(folder, overwrite=True)
    service.look()
    assert len(service.index) == 50 and "built with model 'other'" in caplog.text
    drawn_index(encoder, 70).save(folder, overwrite=True)
    (folder / "products.arrow").write_bytes(b"ARROW1")
    service.look()
    assert len(service.index) == 50 and "products.arrow is damaged" in caplog.text
    (folder / "index.json").unlink()
    service.look()
    drawn_index(encoder, 80).save(folder, overwrite=True)
    service.look()
    service.look()
    assert len(service.index) == 80
    outcomes = ("refused", "done")
    counted = [
        service.metrics.registry.get_sample_value("mmfusion_index_swaps_total", {"outcome": one}) for one in outcomes
    ]
    assert counted == [2, 1]


def test_an_index_that_is_copied_file_by_file_is_served_when_all_are_there(
    encoder: Retriever, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, new = tmp_path / "index", tmp_path / "new"
    service = followed(encoder, folder)
    drawn_index(encoder, 60).save(new)
    for name in ("index.faiss", "index.json"):
        (new / name).replace(folder / name)
    service.look()
    assert len(service.index) == 50 and "products.arrow is damaged or of another index" in caplog.text
    (new / "products.arrow").replace(folder / "products.arrow")
    service.look()
    assert len(service.index) == 60


def test_an_index_that_is_replaced_while_it_is_read_is_read_again(
    encoder: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "index"
    service = followed(encoder, folder)
    drawn_index(encoder, 60).save(folder, overwrite=True)

    def slowly(folder: Path, verify: bool) -> ProductIndex:
        found = load_index(folder, verify)
        drawn_index(encoder, 70).save(folder, overwrite=True)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(watch, "load_index", slowly)
        service.look()
    assert len(service.index) == 50
    service.look()
    assert len(service.index) == 70


def test_whatever_is_wrong_with_an_index_the_watch_goes_on(
    encoder: Retriever, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "index"
    service = followed(encoder, folder)
    described = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**described, "rows": ["many"]}))
    service.look()
    service.look()
    assert caplog.text.count("cannot be used, the one before stays") == 1
    drawn_index(encoder, 60).save(folder, overwrite=True)
    service.look()
    assert len(service.index) == 60


def test_an_index_that_is_no_longer_served_is_let_go(
    place: Path, encoder: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Any] = []

    def run(app: Any, bound: socket.socket, limits: ServiceLimits) -> None:
        bound.close()
        service = app.routes[0].endpoint.__self__
        served = weakref.ref(service.index)
        assert served() is not None
        service._swap(drawn_index(encoder, 60))
        gc.collect()
        left.append(served())

    monkeypatch.setattr(server, "run_server", run)
    monkeypatch.setattr(server, "log_as_json", lambda: None)
    command("serve")(str(place / "run"), base=str(place / "toy_base"), port=0)
    assert left == [None]


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_head() -> None:
    async def run() -> int:
        accepted: asyncio.Queue[int] = asyncio.Queue()

        class Accepting(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                its = transport.get_extra_info("socket")
                accepted.put_nowait(its.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        listening = await asyncio.get_running_loop().create_server(Accepting, sock=server.bind("127.0.0.1", 0))
        async with listening:
            _, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
            writer.close()
            return await asyncio.wait_for(accepted.get(), 30)

    assert asyncio.run(run())


def test_an_address_must_be_one() -> None:
    with pytest.raises(ValueError, match=r"host is empty; give 127\.0\.0\.1"):
        server.bind("", 0)
    with pytest.raises(ValueError, match=r"cannot listen on nowhere\.invalid:0 "):
        server.bind("nowhere.invalid", 0)


def test_counters_begin_at_zero(searcher: Searcher) -> None:
    samples = samples_of(asking(searcher, lambda http: http.get("/metrics")).text)
    assert {one.labels["outcome"]: one.value for one in samples if "swaps_total" in one.name} == {
        "done": 0,
        "refused": 0,
    }


def test_a_collection_of_milvus_is_served_and_its_absence_is_said(encoder: Retriever, tmp_path: Path) -> None:
    faiss = drawn_index(encoder, 60)
    index = faiss.to("milvus", uri=tmp_path / "products.db")
    body = {"query": "red dress", "k": 7, "filter": [["price", ">", 20]]}
    odd = quote(ODD_IDS[1], safe="")

    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        found = [await http.post("/search", json=body), await http.get(f"/products/{odd}?k=3")]
        found += [await http.get("/health"), await http.post("/search", json={"query": "x", "k": 61})]
        index.close()
        return [*found, await http.post("/search", json=body), await http.get("/health"), await http.get("/metrics")]

    with index:
        found, product, health, beyond, *lost = asking(Searcher(encoder, index), ask)
    expected = Searcher(encoder, faiss).search(body["query"], 7, filter=body["filter"])
    assert ids_of(found) == [hit.product_id for hit in expected]
    assert product.json()["metadata"] == faiss.product(ODD_IDS[1]).metadata and len(product.json()["neighbours"]) == 3
    assert health.json()["index"]["engine"] == "milvus" and health.json()["products"] == 60
    assert beyond.status_code == 400 and "k is 61, and the index has 60 products" in beyond.text
    assert [one.status_code for one in lost] == [503, 503, 200]
    assert "the connection to collection 'products'" in lost[0].json()["error"]


@pytest.mark.parametrize("kind", ["whole", "shards", "published", "tower"])
def test_the_query_tower_is_loaded_without_the_vision_encoder(place: Path, encoder: Retriever, kind: str) -> None:
    model, processor = load_base(str(place / "toy_base"))
    folder = place / kind
    if kind in ("whole", "shards", "published"):
        model.save_pretrained(folder, max_shard_size="100KB" if kind == "shards" else "5GB")
        processor.save_pretrained(folder)
    if kind == "published":
        write_query_tower(model, processor, folder / "query")
        (folder / "model.safetensors").unlink()
    if kind == "tower":
        write_query_tower(model, processor, folder)
    assert (
        len(list(folder.glob("*.safetensors"))) == {"whole": 1, "published": 0, "tower": 1}.get(kind, 0)
        or kind == "shards"
    )

    tower, its_processor = load_query_tower(folder)
    assert tower.vision_model is None and tower.fusion is None and not tower.training
    assert model_fingerprint(tower, its_processor) == model_fingerprint(model, processor) == encoder.fingerprint
    texts = ["red dress", "a much longer query about nothing in particular"]
    assert np.array_equal(Retriever(tower, its_processor).encode_queries(texts), encoder.encode_queries(texts))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing"):
        load_query_tower(tmp_path / "nothing")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.decimals(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_metadata_becomes_json(value: Any) -> None:
    json.loads(json_response(value).body, parse_constant=lambda name: pytest.fail(name))


def test_metadata_that_json_lacks() -> None:
    value = {"day": date(2024, 2, 29), "price": Decimal("9.90"), "score": float("nan"), "raw": b"\0\1", "sizes": (1, 2)}
    assert json.loads(json_response(value).body) == {
        "day": "2024-02-29", "price": "9.90", "score": None, "raw": "AAE=", "sizes": [1, 2],
    }  # fmt: skip


@pytest.mark.parametrize(
    "values, text",
    [({"max_batch": 0}, "limits.max_batch is 0; give more than 0"), ({"timeout_s": 0.0}, "limits.timeout_s is 0.0"),
     ({"reload_s": -1.0}, "limits.reload_s is -1.0"), ({"timeout_s": float("nan")}, "limits.timeout_s is nan")],
)  # fmt: skip
def test_limits_out_of_range_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ServiceLimits(**values)
