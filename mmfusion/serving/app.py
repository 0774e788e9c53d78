"""The HTTP service: routes, and what each answers."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mmfusion.model import MMFusionModel
from mmfusion.onnx import OnnxDescription
from mmfusion.retrieval import FilterError, MilvusError, ProductIndex, Searcher, SearchIndex
from mmfusion.retrieval.facets import Facet, facets_of
from mmfusion.serving import ServiceLimits
from mmfusion.serving.batches import Answer, Asked, MicroBatcher, QueueFullError, Searches
from mmfusion.serving.observe import Observed, ServiceMetrics
from mmfusion.serving.page import SearchPage
from mmfusion.serving.photo_queries import PhotoQueries, is_form
from mmfusion.serving.requests import SearchRequest, limited_models, read, reason, short
from mmfusion.serving.watch import IndexWatch

logger = logging.getLogger(__name__)

_DEFAULT_K = 10


class _ProductId(PathConvertor):
    # Ids may hold line breaks, which Starlette's own `path` stops at.
    regex = r"[\s\S]+"


register_url_convertor("product_id", _ProductId())


class SearchService:
    """The routes of the service over one query tower and one index at a time.

    Args:
        searcher: Query tower and index.
        watch: Watch of the index's folder, made before the index was read from it; None: the index is not replaced.
        limits: What is accepted.
        tower: What `/health` says of the query tower.
        facets: Columns of the metadata that `/facets` describes; None: those that sort products into kinds.
        page: The search page; None: there is none.
        photo_cost: What `/health` says of the parts that only photos need; None: searches are by words alone.

    Raises:
        FilterError: The index lacks a column for a facet, or one that the page is to show.
    """

    def __init__(
        self,
        searcher: Searcher,
        watch: IndexWatch | None,
        limits: ServiceLimits,
        tower: Mapping[str, Any] | None = None,
        facets: Sequence[str] | None = None,
        page: SearchPage | None = None,
        photo_cost: Mapping[str, Any] | None = None,
    ) -> None:
        self.limits = limits
        self._tower = dict(tower or {})
        self.searches = Searches(searcher, lambda size: self.metrics.batch.observe(size), min(_DEFAULT_K, limits.max_k))
        self.batcher: MicroBatcher[Asked, Answer] = MicroBatcher(
            self.searches.answer, max_batch=limits.max_batch, max_waiting=limits.max_waiting
        )
        self.metrics = ServiceMetrics(self._waiting, self._count_products)
        self._search_model, self._product_model = limited_models(limits)
        self.photo_queries: PhotoQueries | None = None
        if photo_cost is not None:
            self.photo_queries = PhotoQueries(self.searches, self._search_model, limits, photo_cost)
        self._watch = watch
        self.page = page
        self._facet_columns = facets
        self.facets: list[Facet] = facets_of(searcher.index, facets)
        if page is not None:
            page.check(searcher.index)
        self._started = time.monotonic()

    @property
    def index(self) -> SearchIndex:
        """The index that is served now."""
        return self.searches.searcher.index

    def app(self) -> Starlette:
        """The ASGI application."""
        app = Starlette(
            routes=[
                *self.search_routes(),
                Route("/facets", self.list_facets, methods=["GET"]),
                Route("/health", self.health, methods=["GET"]),
                Route("/metrics", self.metrics_text, methods=["GET"]),
                *([] if self.page is None else [Route("/page.json", self.page_settings), *self.page.routes()]),
            ],
            middleware=[Middleware(Observed, metrics=self.metrics)],
            exception_handlers=dict.fromkeys(
                (HTTPException, ValidationError, ClientDisconnect, MilvusError, QueueFullError, TimeoutError),
                self._explain,
            ),
            lifespan=lambda app: self.running(),
        )
        # A redirect would name the host of the request, which a proxy in front may know by another name.
        app.router.redirect_slashes = False
        return app

    def search_routes(self) -> list[BaseRoute]:
        """The routes that look into the index."""
        return [
            Route("/search", self.search, methods=["GET", "POST"]),
            Route("/products/{product_id:product_id}", self.products, methods=["GET"]),
        ]

    async def search(self, request: Request) -> Response:
        """The k best products of a query."""
        asked = await self._read_search(request)
        request.state.logged = {"k": asked.k, "query_chars": len(asked.query), "filtered": asked.filter is not None}
        if asked.photo is not None:
            request.state.logged["photo"] = True
        hits = await self._answer(request, asked)
        request.state.logged["hits"] = len(hits)
        return json_response({"query": asked.query, "hits": hits})

    async def _read_search(self, request: Request) -> SearchRequest:
        if not is_form(request):
            return await read(request, self._search_model, self.limits.max_body_kib)
        if self.photo_queries is None:
            raise HTTPException(415, "forms bring photos, and this service was started without --photo_queries true.")
        return await self.photo_queries.read(request)

    async def products(self, request: Request) -> Response:
        """A stored product, and the k products whose vectors are most like its own."""
        asked = await read(request, self._product_model, self.limits.max_body_kib)
        return json_response(await self._answer(request, asked))

    async def list_facets(self, request: Request) -> Response:
        """What products can be filtered by: the most frequent values of columns, and the bounds of numbers."""
        return json_response({"facets": [asdict(facet) for facet in self.facets]})

    async def page_settings(self, request: Request) -> Response:
        """What the search page shows and offers."""
        assert self.page is not None
        limits = {name: getattr(self.limits, name) for name in ("max_k", "max_query_chars", "max_photo_kib")}
        limits["photo_queries"] = self.photo_queries is not None
        facets = [asdict(facet) for facet in self.facets]
        return json_response({**await asyncio.to_thread(self.page.settings, self.index), **limits, "facets": facets})

    async def health(self, request: Request) -> Response:
        """Whether the service answers, with which model and index, and how much memory it takes."""
        return json_response(
            {
                "status": "ok",
                "uptime_s": round(time.monotonic() - self._started, 1),
                "model": self.searches.searcher.encoder.fingerprint,
                # In a thread, as a server of vectors has to be asked.
                "products": await asyncio.to_thread(len, self.index),
                "index": self.index.facts(),
                "resident_mib": resident_mib(),
                "query_tower": self._tower,
                "photo_queries": None if self.photo_queries is None else self.photo_queries.cost,
                "waiting": self._waiting(),
            }
        )

    async def metrics_text(self, request: Request) -> Response:
        """Counters and histograms for Prometheus."""
        text = await asyncio.to_thread(generate_latest, self.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def _answer(self, request: Request, asked: Asked) -> Answer:
        """What the batcher gives. If the client leaves before, nothing is computed for it any more."""
        of_photos = self.photo_queries is not None and isinstance(asked, SearchRequest) and asked.photo is not None
        batcher = self.photo_queries.batcher if self.photo_queries is not None and of_photos else self.batcher
        answer = asyncio.create_task(batcher.submit(asked, self.limits.timeout_s))
        leaving = asyncio.create_task(_left(request))
        try:
            await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
            leaving.cancel()
        raise ClientDisconnect

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers requests and follows the index until the end of the block."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.batcher.running())
            if self.page is not None:
                await stack.enter_async_context(self.page.running())
            if self.photo_queries is not None:
                await stack.enter_async_context(self.photo_queries.running())
            following = asyncio.create_task(self._follow(), name="index-watch")
            try:
                yield
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def _follow(self) -> None:
        while self._watch is not None and self.limits.reload_s:
            await asyncio.sleep(self.limits.reload_s)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Serves the index that is in the folder now, if it has been replaced and can be used."""
        outcome = self._watch.look(self._swap) if self._watch is not None else None
        if outcome is not None:
            self.metrics.swaps.labels(outcome).inc()

    def _swap(self, index: ProductIndex) -> None:
        searcher = Searcher(self.searches.searcher.encoder, index)
        try:
            facets = facets_of(index, self._facet_columns)
            if self.page is not None:
                self.page.check(index)
        except FilterError as error:
            # An old index with all columns would be worse than a new one without some.
            logger.warning("the new index is served without what needs one of its columns: %s", error)
            facets = facets_of(index)
        self.searches.searcher, self.facets = searcher, facets
        if self.page is not None and self.page.photos is not None:
            self.page.photos.look_again()

    def _waiting(self) -> int:
        return self.batcher.waiting + (0 if self.photo_queries is None else self.photo_queries.batcher.waiting)

    def _count_products(self) -> float:
        try:
            return len(self.index)
        except MilvusError:
            return float("nan")

    async def _explain(self, request: Request, error: Exception) -> Response:
        headers: Mapping[str, str] | None = None
        match error:
            case HTTPException():
                status, text, headers = error.status_code, error.detail, error.headers
                if text == HTTPStatus(status).phrase:
                    routes = "there are /search, /products/{id}, /facets, /health and /metrics"
                    text = f"{request.method} {short(request.scope['path'])}: {text}; {routes}."
            case ValidationError():
                status, text = 400, reason(error)
            case ClientDisconnect():
                status, text = 499, "the client left before there was an answer."
            case TimeoutError():
                status, text = 504, f"there was no answer within {self.limits.timeout_s:g} s; try again."
            case QueueFullError():
                waiting = f"{self._waiting()} requests wait already, as many as can be answered in time"
                status, text, headers = 503, f"{waiting}; try again in a second.", {"retry-after": "1"}
            case _:
                status, text, headers = 503, str(error), {"retry-after": "1"}
        return json_response({"error": text}, status, headers)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """NaN and infinite numbers become null, dates ISO 8601, bytes base64 (its URL-safe alphabet), decimals text."""
    text = to_json(content, inf_nan_mode="null", bytes_mode="base64", fallback=str)
    return Response(text, status, headers, "application/json")


def resident_mib() -> float | None:
    """MiB of this process in RAM, with the pages of memory-mapped files that were read; None where this is unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def facts_of_tower(model: MMFusionModel) -> dict[str, Any]:
    """Parameters and MiB of a query tower, and whether a vision encoder came with it."""
    return {
        "parameters": model.num_parameters(),
        "mib": round(model.get_memory_footprint() / 2**20, 1),
        "vision_encoder": model.vision_model is not None,
    }


def facts_of_onnx(folder: Path, description: OnnxDescription) -> dict[str, Any]:
    """The same of an exported query tower, whose weights are files of the folder."""
    size = sum((folder / name).stat().st_size for name in description.sha256)
    return {"parameters": description.parameters, "mib": round(size / 2**20, 1), "vision_encoder": False}
