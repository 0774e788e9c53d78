"""What the service logs and counts: a line of JSON for each request, and metrics for Prometheus."""

import json
import logging
import re
import time
import uuid
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)
access_log = logging.getLogger("mmfusion.access")

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServiceMetrics:
    """Counters and histograms of one service.

    Args:
        waiting: Gives the number of requests that wait.
        products: Gives the number of products that can be found.
    """

    def __init__(self, waiting: Callable[[], float], products: Callable[[], float]) -> None:
        # Not the library's global registry: a process may hold several services, as tests do.
        self.registry = to = CollectorRegistry()
        ProcessCollector(registry=to)
        self.requests = Counter("mmfusion_requests", "Requests answered", ["route", "status"], registry=to)
        self.seconds = Histogram("mmfusion_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, registry=to)
        self.batch = Histogram("mmfusion_batch_queries", "Queries computed together", buckets=_QUERIES, registry=to)
        self.swaps = Counter("mmfusion_index_swaps", "Index replaced", ["outcome"], registry=to)
        for outcome in ("done", "refused"):
            # From 0, as Prometheus sees no increase where a counter begins at 1.
            self.swaps.labels(outcome)
        Gauge("mmfusion_waiting_requests", "Requests that wait for a batch", registry=to).set_function(waiting)
        Gauge("mmfusion_products", "Products that can be found", registry=to).set_function(products)


class Observed:
    """Logs and counts the requests to an app, and gives each an `X-Request-ID`, the client's own if it sent one.

    Texts of queries are not logged: people type their names and addresses into search boxes. An exception that the app
    does not handle is logged and answered with 500, in JSON.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Status 0: the client left before there was an answer.
        started, status = time.perf_counter(), 0
        sent_id = Headers(scope=scope).get("x-request-id", "")
        request_id = sent_id if re.fullmatch("[ -~]{1,64}", sent_id) else uuid.uuid4().hex

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception:
            logger.exception("request %s failed", request_id)
            if not status:
                text = "the service failed at this request; its log says why."
                await JSONResponse({"error": text}, 500)(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("endpoint"), "__name__", "none")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            fields = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "request_id": request_id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 2),
                **scope.get("state", {}).get("logged", {}),
            }
            access_log.info(json.dumps(fields))
