"""What the service counts, in the format that Prometheus reads."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServiceMetrics:
    """Counters and histograms of one service.

    Args:
        waiting: Tells how many requests wait.
        products: Tells how many products can be found.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, waiting: Callable[[], float], products: Callable[[], float]) -> None:
        # Not the library's global one: a process may hold several services, as tests do.
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("mmfusion_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "mmfusion_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            "mmfusion_batch_queries", "Queries computed together", buckets=_QUERIES, registry=self.registry
        )
        self.swaps = Counter("mmfusion_index_swaps", "Index replaced", ["outcome"], registry=self.registry)
        for outcome in ("done", "refused"):
            # From 0, as Prometheus sees no increase where a counter begins at 1.
            self.swaps.labels(outcome)
        self._gauge("mmfusion_waiting_requests", "Requests that wait for a batch", waiting)
        self._gauge("mmfusion_products", "Products that can be found", products)

    def text(self) -> bytes:
        """Everything as Prometheus reads it."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        Gauge(name, what, registry=self.registry).set_function(value)
