"""What a request asks for: read, and refused with the reason."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request

from mmfusion.retrieval.filters import Filter
from mmfusion.serving.jsonable import from_json
from mmfusion.serving.settings import ServiceLimits

DEFAULT_K = 10


class RequestError(Exception):
    """A request that is not answered, with the HTTP status and a text that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class SearchRequest:
    """A query, the number of hits wanted, and conditions on metadata."""

    query: str
    k: int = DEFAULT_K
    filter: Filter | None = None


async def read_search(request: Request, limits: ServiceLimits) -> SearchRequest:
    """The search that a GET request's parameters or a POST request's JSON body ask for.

    Raises:
        RequestError: Something is missing, unknown, of another type or beyond the limits.
    """
    given = _parameters(request) if request.method == "GET" else await _body(request, limits)
    k = read_k(given.get("k", DEFAULT_K), limits)
    return SearchRequest(_query(given.get("query"), limits), k, given.get("filter"))


def read_k(value: Any, limits: ServiceLimits) -> int:
    """A number of products.

    Raises:
        RequestError: It is none, or out of range.
    """
    try:
        k = int(value) if isinstance(value, str) else value
    except ValueError:
        k = None
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= limits.max_k:
        raise RequestError(400, f"k is {_short(value)}; give a whole number from 1 to {limits.max_k}.")
    return k


def only_known(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuses parameters that mean nothing, which are probably misspelt.

    Raises:
        RequestError: There is one.
    """
    for name in given:
        if name not in known:
            raise RequestError(400, f"{_short(name)} is no parameter; there are {', '.join(known)}.")


def _parameters(request: Request) -> dict[str, Any]:
    given: dict[str, Any] = dict(request.query_params)
    only_known(given, ("query", "k", "filter"))
    if "filter" in given:
        given["filter"] = _json(given["filter"], "the parameter filter")
    return given


async def _body(request: Request, limits: ServiceLimits) -> dict[str, Any]:
    try:
        raw = await asyncio.wait_for(_bytes(request, limits.max_body_kib), limits.timeout_s)
    except asyncio.TimeoutError:
        raise RequestError(408, f"the body did not arrive within {limits.timeout_s:g} s.") from None
    except ClientDisconnect:
        raise RequestError(400, "the client left before its request had arrived.") from None
    given = _json(raw, "the body")
    if not isinstance(given, dict):
        raise RequestError(400, f'the body is {_short(given)}; give an object such as {{"query": "red dress"}}.')
    only_known(given, ("query", "k", "filter"))
    return given


async def _bytes(request: Request, max_kib: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > max_kib * 1024:
            raise RequestError(413, f"the body has more than {max_kib} KiB.")
    return b"".join(parts)


def _json(raw: str | bytes, what: str) -> Any:
    try:
        return from_json(raw)
    except ValueError as error:
        raise RequestError(400, f"{what} is no JSON ({_short(str(error))}).") from error


def _query(value: Any, limits: ServiceLimits) -> str:
    if value is None:
        raise RequestError(400, "query is missing; give a text to search for.")
    if not isinstance(value, str) or not value.strip():
        raise RequestError(400, f"query is {_short(value)}; give a text to search for.")
    if len(value) > limits.max_query_chars:
        raise RequestError(400, f"query has {len(value):,} characters; give at most {limits.max_query_chars:,}.")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
