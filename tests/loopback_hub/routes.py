"""Which function answers which path."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from loopback_hub.messages import Answer, Request
from loopback_hub.refusals import RefusalError

if TYPE_CHECKING:
    from hub.state import HubState

Endpoint = Callable[["HubState", Request, dict[str, str]], Answer]
_ROUTES: list[tuple[str, list[str], Endpoint]] = []


def route(method: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint.

    Args:
        method: "GET" (HEAD comes to it, too), "POST", "PUT" or "DELETE".
        pattern: a path whose segments are words, `{names}` of one segment or, at its end, `{names...}` of the rest.
    """

    def register(endpoint: Endpoint) -> Endpoint:
        _ROUTES.append((method, pattern.split("/")[1:], endpoint))
        return endpoint

    return register


def find(request: Request) -> tuple[Endpoint, dict[str, str]]:
    """The endpoint of a request and the values of its pattern's names.

    Raises:
        RefusalError: 404 if there is none.
    """
    for method, pattern, endpoint in _ROUTES:
        if method == request.method and (values := _match(pattern, request.segments)) is not None:
            return endpoint, values
    raise RefusalError(404, f"Sorry, this Hub has no {request.method} {request.path}")


def _match(pattern: list[str], segments: list[str]) -> dict[str, str] | None:
    values: dict[str, str] = {}
    for position, part in enumerate(pattern):
        if part.endswith("...}"):
            rest = segments[position:]
            return {**values, part[1:-4]: "/".join(rest)} if rest else None
        if position >= len(segments):
            return None
        if part.startswith("{"):
            values[part[1:-1]] = segments[position]
        elif part != segments[position]:
            return None
    return values if len(pattern) == len(segments) else None
