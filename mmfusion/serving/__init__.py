"""The search service: HTTP over a query tower and an index. Needs the extra `mmfusion[serve]`."""

from dataclasses import dataclass

from mmfusion.extras import library


@dataclass(frozen=True)
class ServiceLimits:
    """What the service accepts.

    Attributes:
        max_batch: Queries that are embedded and searched together. Queries that come while a batch is computed wait for
            the next one; a query that comes alone does not wait.
        max_waiting: Requests that wait for a batch; further ones are answered with 503 at once, and so are those that
            would not be answered in time.
        timeout_s: Seconds from a request's last byte to its answer; after that it gets a 504.
        max_query_chars: Characters of a query; longer ones are an error, they are not cut.
        max_k: Products per answer.
        max_body_kib: Size of a request's body in KiB.
        max_photo_kib: Size of a photo that is searched for in KiB.
        max_photo_pixels: Width times height of such a photo, as its file says; it is not decoded if there are more.
        max_photos_waiting: Photos that are read at a time, and as many that wait to be searched for; further ones are
            answered with 503.
        reload_s: Seconds between looks at the index folder; an index that has been replaced is loaded. 0: never.
    """

    max_batch: int = 32
    max_waiting: int = 256
    timeout_s: float = 5.0
    max_query_chars: int = 1000
    max_k: int = 1000
    max_body_kib: int = 64
    max_photo_kib: int = 8192
    max_photo_pixels: int = 25_000_000
    max_photos_waiting: int = 32
    reload_s: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value > 0 or (name, value) == ("reload_s", 0)):
                raise ValueError(f"limits.{name} is {value}; give more than 0.")


def check_installed() -> None:
    """Checks that the packages of the extra are there.

    Raises:
        MissingLibraryError: One is missing.
    """
    for name in ("prometheus_client", "pydantic", "python_multipart", "starlette", "uvicorn"):
        library(name, "serve")
