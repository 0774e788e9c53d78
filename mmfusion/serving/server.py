"""Runs the service: uvicorn, with logs of one JSON object per line."""

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


def run_server(app: Starlette, host: str, port: int, limits: ServiceLimits) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers what has come already.

    Args:
        app: The application.
        host: Address to listen on.
        port: TCP port, 0 for a free one, which is logged.
        limits: Of the service.

    Raises:
        OSError: The address cannot be listened on.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="h11",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        h11_max_incomplete_event_size=_MAX_HEAD,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_GRACE_S,
        backlog=max(2048, limits.max_waiting),
    )
    uvicorn.Server(config).run(sockets=[_listen(config)])


def _listen(config: uvicorn.Config) -> socket.socket:
    # uvicorn's own way ends the process with code 3 and two lines of log.
    place = f"[{config.host}]" if ":" in config.host else config.host
    listening = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
        listening.listen(config.backlog)
    except (OSError, OverflowError) as error:
        listening.close()
        raise OSError(f"cannot listen on {place}:{config.port} ({error}); give another --host or --port") from error
    logging.getLogger("mmfusion").info("listening on http://%s:%d", place, listening.getsockname()[1])
    return listening
