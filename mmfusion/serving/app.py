"""The HTTP service: routes, and what each answers."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mmfusion.retrieval import Hit, MilvusError, ProductIndex, Searcher, SearchIndex
from mmfusion.serving.access import AccessLog
from mmfusion.serving.batcher import MicroBatcher, QueueFullError
from mmfusion.serving.jsonable import to_json
from mmfusion.serving.memory import resident_mib
from mmfusion.serving.metrics import ServiceMetrics
from mmfusion.serving.requests import RequestError, limited, parameters, read_k, read_search
from mmfusion.serving.searches import DEFAULT_K, Answer, Asked, Neighbours, ProductRequest, Searches
from mmfusion.serving.settings import ServiceLimits
from mmfusion.serving.watch import IndexWatch, Version

log = logging.getLogger("mmfusion")


class _ProductId(Convertor[str]):
    # Ids may hold slashes and line breaks, which Starlette's own `path` stops at.
    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("product_id", _ProductId())


class SearchService:
    """The routes of the service over one query tower and one index at a time.

    Args:
        searcher: Query tower and index.
        folder: Of the index, which is followed; None: there is none, or it is not to be.
        limits: What is refused.
        tower: What `/health` says of the query tower.
        version: `version_of` the folder before the index was read from it; None: as it is now.
        verify: Compares all bytes of an index that takes the place of this one with their checksums.
    """

    def __init__(
        self,
        searcher: Searcher,
        folder: Path | None,
        limits: ServiceLimits,
        tower: Mapping[str, Any] | None = None,
        version: Version | None = None,
        *,
        verify: bool = False,
    ) -> None:
        self.limits = limits
        self._tower = dict(tower or {})
        self.searches = Searches(searcher, lambda size: self.metrics.batch.observe(size), min(DEFAULT_K, limits.max_k))
        self.batcher: MicroBatcher[Asked, Answer] = MicroBatcher(
            self.searches.answer, max_batch=limits.max_batch, max_waiting=limits.max_waiting
        )
        self.metrics = ServiceMetrics(lambda: self.batcher.waiting, self._count_products)
        self._watch: IndexWatch | None = None
        if folder is not None:
            self._watch = IndexWatch(folder, self._swap, self._count_swap, version, verify)
        self._started = time.monotonic()

    @property
    def index(self) -> SearchIndex:
        """The index that is served now."""
        return self.searches.searcher.index

    def app(self) -> Starlette:
        """The ASGI application."""
        app = Starlette(
            routes=[
                Route("/search", self.search, methods=["GET", "POST"]),
                Route("/products/{product_id:product_id}", self.products, methods=["GET"]),
                Route("/health", self.health, methods=["GET"]),
                Route("/metrics", self.metrics_text, methods=["GET"]),
            ],
            middleware=[Middleware(AccessLog, observe=self._observe)],
            exception_handlers={
                RequestError: _refused,
                HTTPException: _http_error,
                QueueFullError: self._full,
                TimeoutError: self._late,
                MilvusError: _unreachable,
            },
            lifespan=self._lifespan,
        )
        # To the address in the request's own Host, which a proxy in front may have another name for.
        app.router.redirect_slashes = False
        return app

    async def search(self, request: Request) -> Response:
        """The k best products of a query."""
        asked = await read_search(request, self.limits)
        request.state.logged = {"k": asked.k, "query_chars": len(asked.query), "filtered": asked.filter is not None}
        hits = await self._answer(request, asked)
        assert isinstance(hits, list)
        request.state.logged["hits"] = len(hits)
        return _json({"query": asked.query, "hits": [_hit(one) for one in hits]})

    async def products(self, request: Request) -> Response:
        """A stored product, and the k products whose vectors are most like its own."""
        k = read_k(parameters(request, ("k",)), self.limits)
        asked = ProductRequest(request.path_params["product_id"], k)
        found = await self._answer(request, asked)
        assert isinstance(found, Neighbours)
        product = found.product
        return _json(
            {
                "product_id": product.product_id,
                "modality_weights": product.modality_weights,
                "metadata": product.metadata,
                "neighbours": [_hit(one) for one in found.hits],
            }
        )

    async def health(self, request: Request) -> Response:
        """Whether the service answers, of what model and index, and what it holds in memory."""
        return _json(
            {
                "status": "ok",
                "uptime_s": round(time.monotonic() - self._started, 1),
                "model": self.searches.searcher.encoder.fingerprint,
                # A server of vectors has to be asked.
                "products": await asyncio.to_thread(len, self.index),
                "index": self.index.facts(),
                "resident_mib": resident_mib(),
                "query_tower": self._tower,
                "waiting": self.batcher.waiting,
            }
        )

    async def metrics_text(self, request: Request) -> Response:
        """Counters and histograms for Prometheus."""
        text = await asyncio.to_thread(self.metrics.text)
        return Response(text, media_type=self.metrics.content_type)

    async def _answer(self, request: Request, asked: Asked) -> Answer:
        """What the batcher gives, unless the client leaves before: then nothing is computed for it any more."""
        answer = asyncio.create_task(self.batcher.submit(asked, self.limits.timeout_s))
        leaving = asyncio.create_task(_left(request))
        try:
            await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
            leaving.cancel()
        raise RequestError(499, "the client left before there was an answer.")

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.batcher.start()
        watching = None
        if self._watch is not None and self.limits.reload_s:
            watching = asyncio.create_task(self._watch.run(self.limits.reload_s), name="index-watch")
        try:
            yield
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            await self.batcher.stop()

    def _swap(self, index: ProductIndex) -> None:
        self.searches.searcher = Searcher(self.searches.searcher.encoder, index)

    def _count_products(self) -> float:
        try:
            return len(self.index)
        except MilvusError:
            return float("nan")

    def _count_swap(self, outcome: str) -> None:
        self.metrics.swaps.labels(outcome).inc()

    def _observe(self, route: str, status: int, seconds: float) -> None:
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)

    async def _full(self, request: Request, error: Exception) -> Response:
        text = (
            f"{self.batcher.waiting} requests wait already, as many as can be answered in time; try again in a second."
        )
        return _json({"error": text}, 503, {"retry-after": "1"})

    async def _late(self, request: Request, error: Exception) -> Response:
        return _json({"error": f"there was no answer within {self.limits.timeout_s:g} s; try again."}, 504)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _hit(hit: Hit) -> dict[str, Any]:
    return {name: getattr(hit, name) for name in ("product_id", "score", "rank", "modality_weights", "metadata")}


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(content), status, headers, "application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _json({"error": str(error)}, error.status)


async def _unreachable(request: Request, error: Exception) -> Response:
    return _json({"error": str(error)}, 503, {"retry-after": "1"})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    routes = "there are /search, /products/{id}, /health and /metrics"
    path = limited(request.scope["path"])
    text = {404: f"{path} is not there; {routes}.", 405: f"{request.method} is not for {path}."}
    return _json({"error": text.get(error.status_code, error.detail)}, error.status_code, dict(error.headers or {}))
