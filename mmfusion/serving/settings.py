"""Limits of the search service."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServiceLimits:
    """What the service takes at most, and what it refuses.

    Attributes:
        max_batch: Queries that are embedded and searched together. Queries that come while a batch is computed wait for
            the next one; a query that comes alone does not wait.
        max_waiting: Requests that wait for a batch; further ones are answered with 503 at once, and so are those that
            would not be answered in time.
        timeout_s: Seconds from a request's last byte to its answer; a later one is a 504.
        max_query_chars: Characters of a query; longer ones are refused, not cut.
        max_k: Products per answer.
        max_body_kib: Size of a request's body in KiB.
        reload_s: Seconds between looks at the index folder, whose index is swapped when it has been replaced; 0: never.
    """

    max_batch: int = 32
    max_waiting: int = 256
    timeout_s: float = 5.0
    max_query_chars: int = 1000
    max_k: int = 1000
    max_body_kib: int = 64
    reload_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_waiting", "max_query_chars", "max_k", "max_body_kib"):
            if getattr(self, name) < 1:
                raise ValueError(f"limits.{name} is {getattr(self, name)}; give at least 1.")
        if not self.timeout_s > 0:
            raise ValueError(f"limits.timeout_s is {self.timeout_s}; give more than 0 seconds.")
        if not self.reload_s >= 0:
            raise ValueError(f"limits.reload_s is {self.reload_s}; give 0 (never) or more seconds.")
