"""One line of JSON and the metrics for each request, and an answer in JSON whatever goes wrong."""

import json
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("mmfusion.access")

_FAILED = json.dumps({"error": "the service failed at this request; its log says why."})

# (route, status, seconds); status 0 where the client left before there was an answer
Observe = Callable[[str, int, float], None]


class AccessLog:
    """Logs requests, tells `observe` of them, and gives each an `X-Request-ID`, the client's own if it sent one.

    Texts of queries are not logged: people type their names and addresses into search boxes.
    """

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self.app = app
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, name = time.perf_counter(), 0, _request_id(scope)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception:
            logging.getLogger("mmfusion").exception("request %s failed", name)
            if not status:
                await Response(_FAILED, 500, media_type="application/json")(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("endpoint"), "__name__", "none")
            self.observe(route, status, seconds)
            log.info(_line(scope, name, route, status, seconds))


def _request_id(scope: Scope) -> str:
    for key, value in scope["headers"]:
        if key == b"x-request-id" and len(value) <= 64 and value.isascii() and value.decode().isprintable():
            return str(value.decode())
    return uuid.uuid4().hex


def _line(scope: Scope, name: str, route: str, status: int, seconds: float) -> str:
    fields: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": name,
        "method": scope["method"],
        "route": route,
        "status": status,
        "ms": round(1000 * seconds, 2),
        **scope.get("state", {}).get("logged", {}),
    }
    return json.dumps(fields)
