"""Runs the service: uvicorn, with logs of one JSON object per line."""

import contextlib
import gc
import json
import logging
import socket
import sys
import time
from typing import Any

import uvicorn
from starlette.applications import Starlette

from mmfusion.serving.settings import ServiceLimits

# Bytes of request line and headers; beyond what a query of the default length takes when it is percent-encoded.
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
    """Logs of this process become objects of JSON, one a line, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.getLogger().handlers[:] = [handler]
    for name, level in (("mmfusion", logging.INFO), ("mmfusion.access", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(level)


def bind(host: str, port: int) -> socket.socket:
    """Takes an address, which `run_server` listens on later.

    Args:
        host: Address to listen on.
        port: TCP port, 0 for a free one.

    Raises:
        ValueError: It cannot be had.
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
        raise _refusal(host, port, error) from error
    return bound


def run_server(app: Starlette, bound: socket.socket, limits: ServiceLimits) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers what has begun.

    Args:
        app: The application.
        bound: Where; see `bind`.
        limits: Of the service.

    Raises:
        ValueError: The address cannot be listened on after all.
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
    host, port = bound.getsockname()[:2]
    try:
        bound.listen(config.backlog)
    except OSError as error:
        # Another process took it meanwhile, which only the listening one finds out.
        raise _refusal(host, port, error) from error
    logging.getLogger("mmfusion").info("listening on http://%s", _address(host, port))
    # What is loaded by now stays. Python would look through all of it time and again, and answer nobody for a quarter
    # of a second.
    gc.collect()
    gc.freeze()
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[bound])


def _refusal(host: str, port: int, error: Exception) -> ValueError:
    return ValueError(f"cannot listen on {_address(host, port)} ({error}); give another --host or --port")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
