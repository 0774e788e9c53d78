"""Requests and answers as the endpoints see them, free of sockets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_hub.accounts import Account
from loopback_hub.refusals import bad_request


@dataclass(frozen=True)
class Request:
    """One request.

    Args:
        method: HTTP method, "HEAD" as "GET" (the body of its answer is left out on the way).
        target: path and query as sent, still quoted.
        headers: by lower-case name.
        body: the whole body.
        account: who asks; None for a stranger.
        to_storage: whether it came to the storage's origin, not to the Hub's.
    """

    method: str
    target: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    account: Account | None
    to_storage: bool

    @property
    def path(self) -> str:
        """The path alone, still quoted."""
        return urlsplit(self.target).path

    @property
    def segments(self) -> list[str]:
        """The parts of the path, each unquoted: a quoted slash is part of a segment."""
        return [unquote(segment) for segment in self.path.split("/")[1:]]

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's values by name."""
        return parse_qs(urlsplit(self.target).query)

    def flag(self, name: str) -> bool:
        """Whether a parameter of the query is set to something true."""
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            RefusalError: 400 if it is none.
        """
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise bad_request(f"The body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise bad_request("The body is not a JSON object")
        return value


@dataclass(frozen=True)
class Answer:
    """One answer.

    Args:
        status: HTTP status.
        body: the whole body.
        headers: besides length and date.
        counted_as: what its bytes are counted under (None: the path of the request).
    """

    status: int = 200
    body: bytes = field(default=b"", repr=False)
    headers: dict[str, str] = field(default_factory=dict)
    counted_as: str | None = None


def json_answer(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """An answer in JSON."""
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})
