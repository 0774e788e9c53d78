"""What a request asks for: read, and refused with the reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request

from mmfusion.retrieval.filters import Filter, FilterError, alternatives_of
from mmfusion.serving.jsonable import from_json
from mmfusion.serving.settings import ServiceLimits

# Of JSON in a request; a filter needs four levels, and Python fails at some hundred.
_MAX_LEVELS = 8
# Each looks at a column of the whole index, and holds a byte per product.
_MAX_CONDITIONS = 32


class RequestError(Exception):
    """A request that is not answered, with the HTTP status and a text that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class SearchRequest:
    """A query, the number of hits wanted (None: it was not said), and conditions on metadata."""

    query: str
    k: int | None = None
    filter: Filter | None = None


async def read_search(request: Request, limits: ServiceLimits) -> SearchRequest:
    """The search that a GET request's parameters or a POST request's JSON body ask for.

    Raises:
        RequestError: Something is missing, unknown, of another type or beyond the limits.
    """
    given = await _body(request, limits) if request.method == "POST" else _parameters(request)
    return SearchRequest(_query(given.get("query"), limits), read_k(given, limits), _filter(given.get("filter")))


def read_k(given: Mapping[str, Any], limits: ServiceLimits) -> int | None:
    """The number of products that is asked for, None if none is.

    Raises:
        RequestError: It is none, or out of range.
    """
    if "k" not in given:
        return None
    value = given["k"]
    try:
        k = int(value) if isinstance(value, str) else value
    except ValueError:
        k = None
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= limits.max_k:
        raise RequestError(400, f"k is {short(value)}; give a whole number from 1 to {limits.max_k}.")
    return k


def only_known(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuses parameters that mean nothing, which are probably misspelt.

    Raises:
        RequestError: There is one.
    """
    for name in given:
        if name not in known:
            raise RequestError(400, f"{short(name)} is no parameter; there are {', '.join(known)}.")


def parameters(request: Request, known: tuple[str, ...]) -> dict[str, Any]:
    """Parameters in a request's address.

    Raises:
        RequestError: One is unknown, or there twice.
    """
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        only_known({name: value}, known)
        if name in given:
            raise RequestError(400, f"{name} is given twice, as {short(given[name])} and {short(value)}; give it once.")
        given[name] = value
    return given


def short(value: Any) -> str:
    """A value as an answer repeats it: its beginning, in a line without control characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def limited(text: str) -> str:
    """An error's text that repeats what was asked, which may be long."""
    return text if len(text) <= 400 else f"{text[:399]}…"


def _parameters(request: Request) -> dict[str, Any]:
    given = parameters(request, ("query", "k", "filter"))
    if "filter" in given:
        given["filter"] = _json(given["filter"], "the parameter filter")
    return given


async def _body(request: Request, limits: ServiceLimits) -> dict[str, Any]:
    if request.query_params:
        name = next(iter(request.query_params))
        raise RequestError(400, f"{short(name)} is in the address; a POST says everything in its body.")
    try:
        raw = await _bytes(request, limits.max_body_kib)
    except ClientDisconnect:
        raise RequestError(400, "the client left before its request had arrived.") from None
    given = _json(raw, "the body")
    if not isinstance(given, dict):
        raise RequestError(400, f'the body is {short(given)}; give an object such as {{"query": "red dress"}}.')
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
        value = from_json(raw)
    except ValueError as error:
        raise RequestError(400, f"{what} is no JSON ({short(str(error))}).") from error
    if not _within(value, _MAX_LEVELS):
        raise RequestError(400, f"{what} is nested in more than {_MAX_LEVELS} levels.")
    return value


def _within(value: Any, levels: int) -> bool:
    if not isinstance(value, (list, dict)):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_within(one, levels - 1) for one in inner)


def _filter(value: Any) -> Filter | None:
    if value is None:
        return None
    try:
        conditions = sum(map(len, alternatives_of(value)))
    except FilterError as error:
        raise RequestError(400, limited(str(error))) from error
    if conditions > _MAX_CONDITIONS:
        raise RequestError(400, f"filter has {conditions:,} conditions; give at most {_MAX_CONDITIONS}.")
    return value


def _query(value: Any, limits: ServiceLimits) -> str:
    if value is None:
        raise RequestError(400, "query is missing; give a text to search for.")
    if not isinstance(value, str) or not value.strip():
        raise RequestError(400, f"query is {short(value)}; give a text to search for.")
    if len(value) > limits.max_query_chars:
        raise RequestError(400, f"query has {len(value):,} characters; give at most {limits.max_query_chars:,}.")
    return value
