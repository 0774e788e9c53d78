"""Runs the service: uvicorn, with logs of one JSON object per line."""

import contextlib
import gc
import json
import logging.config
import socket
import time
from typing import Any

import uvicorn
from starlette.applications import Starlette

from mmfusion.serving import ServiceLimits

logger = logging.getLogger(__name__)

# Bytes of request line and headers; more than what a query of the default length takes when it is percent-encoded.
_MAX_HEAD = 256 * 1024
# Seconds that a connection is kept between two requests.
_IDLE_S = 30
# Seconds that requests which are being answered get when the service is asked to end.
_GRACE_S = 10


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.name == "mmfusion.access":
            return record.getMessage()
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def log_as_json() -> None:
    """Logs of this process become JSON objects, one a line, on standard error."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": _JsonLines}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"handlers": ["stderr"]},
            "loggers": {"mmfusion": {"level": "INFO"}, "uvicorn": {"level": "WARNING"}},
        }
    )


def bind(host: str, port: int) -> socket.socket:
    """Takes an address, which `run_server` listens on later.

    Args:
        host: Address to listen on.
        port: TCP port, 0 for a free one.

    Raises:
        ValueError: The address is not available.
    """
    if not host:
        # To the system that is 0.0.0.0, and more likely a variable of a shell that was not set.
        raise ValueError(
            "host is empty; give 127.0.0.1 for this machine only, or 0.0.0.0 to be reached from everywhere"
        )
    # asyncio turns Nagle's algorithm off where the protocol is named, and only there. With it, a body waits until the
    # client has acknowledged the head: 40 ms for each answer on a connection that is kept.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise ValueError(f"cannot listen on {host}:{port} ({error}); give another --host or --port") from error
    return bound


def run_server(app: Starlette, bound: socket.socket, limits: ServiceLimits) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers the requests that have started.

    Args:
        app: The application.
        bound: Address to listen on, see `bind`.
        limits: Limits of the service.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        h11_max_incomplete_event_size=_MAX_HEAD,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_GRACE_S,
        backlog=max(2048, limits.max_waiting),
    )
    bound.listen(config.backlog)
    host, port = bound.getsockname()[:2]
    logger.info("listening on http://%s:%s", f"[{host}]" if ":" in host else host, port)
    # What is loaded by now stays. The garbage collector would search all of it again and again, and keep requests
    # waiting for a quarter of a second each time.
    gc.collect()
    gc.freeze()
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[bound])
