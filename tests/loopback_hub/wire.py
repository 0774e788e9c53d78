"""Sockets: reads requests, lets faults befall them, asks the endpoints and sends their answers."""

from __future__ import annotations

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from loopback_hub import endpoints  # noqa: F401 (registers the routes)
from loopback_hub.faults import Fault, flip_a_byte
from loopback_hub.messages import Answer, Request, json_answer
from loopback_hub.refusals import RefusalError
from loopback_hub.routes import find
from loopback_hub.state import HubState
from loopback_hub.traffic import Seen

CHUNK = 1 << 16


class _CutError(Exception):
    """The connection is to be dropped."""


class Server(ThreadingHTTPServer):
    """One origin of a Hub, on a free port of the loopback address.

    Args:
        state: what the endpoints answer from.
        to_storage: whether this is the storage's origin, not the Hub's.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, state: HubState, *, to_storage: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.state = state
        self.to_storage = to_storage

    @property
    def url(self) -> str:
        """Where it listens. The storage goes by another host name: clients compare names, and not all of them ports."""
        host = "localhost" if self.to_storage else "127.0.0.1"
        return f"http://{host}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of what is tested, and nothing to print."""


class Handler(BaseHTTPRequestHandler):
    """One connection, kept open from request to request as real servers do."""

    protocol_version = "HTTP/1.1"
    server_version = "LoopbackHub"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        """Answer a request."""
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 (names of the base class)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: what was asked is in `Traffic.requests`."""

    def _serve(self) -> None:
        state = self.server.state
        user: str | None = None
        seen: Seen | None = None
        try:
            if (stall := state.faults.take("stall", self.command, self.path)) is not None:
                time.sleep(stall.value)
            cut = state.faults.take("cut", self.command, self.path)
            allowed = None if cut is None else int(cut.value)
            body = self._read_body(allowed, state.faults.take("hold", self.command, self.path))
            if allowed is not None:
                allowed -= len(body)
            answer, user = self._answer(body)
            # Before it is sent: a client that has its answer may look at once.
            seen = Seen(self.command, self.path, answer.status, user)
            state.traffic.answered(seen)
            self._send(answer, allowed)
        except (_CutError, ConnectionError, TimeoutError):
            state.traffic.answered(Seen(self.command, self.path, 0, user), instead_of=seen)
            self.close_connection = True

    def _answer(self, body: bytes) -> tuple[Answer, str | None]:
        state = self.server.state
        method = "GET" if self.command == "HEAD" else self.command
        headers = {name.lower(): value for name, value in self.headers.items()}
        user = None
        try:
            if (failure := state.faults.take("status", self.command, self.path)) is not None:
                raise RefusalError(int(failure.value), "This Hub was told to fail")
            account = None
            if not self.server.to_storage:
                account = state.accounts.of_header(headers.get("authorization"))
            user = None if account is None else account.name
            request = Request(method, self.path, headers, body, account, self.server.to_storage)
            endpoint, values = find(request)
            return endpoint(state, request, values), user
        except RefusalError as refusal:
            return json_answer(refusal.body, status=refusal.status, headers=refusal.headers()), user

    def _read_body(self, allowed: int | None, hold: Fault | None) -> bytes:
        received = bytearray()
        for chunk in self._body_chunks():
            received += chunk
            if hold is not None and len(received) > hold.value:
                self._count_received(len(received))
                hold.reached.set()
                hold.released.wait()
                raise _CutError
            if allowed is not None and len(received) > allowed:
                self._count_received(allowed)
                raise _CutError
        self._count_received(len(received))
        if self.command == "PUT" and self.server.state.faults.take("corrupt", self.command, self.path) is not None:
            return flip_a_byte(bytes(received))
        return bytes(received)

    def _body_chunks(self) -> Any:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while (size := int(self.rfile.readline().split(b";")[0], 16)) > 0:
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", "0"))
        while left > 0:
            chunk = self.rfile.read(min(left, CHUNK))
            if not chunk:
                raise _CutError
            left -= len(chunk)
            yield chunk

    def _count_received(self, count: int) -> None:
        self.server.state.traffic.received(self.path.split("?")[0], count)

    def _send(self, answer: Answer, allowed: int | None) -> None:
        content = answer.body
        faults = self.server.state.faults
        is_content = answer.counted_as is not None and self.command == "GET"
        if is_content and faults.take("corrupt", self.command, self.path) is not None:
            content = flip_a_byte(content)
        if is_content and (truncation := faults.take("truncate", self.command, self.path)) is not None:
            content = content[: int(truncation.value)]
        if allowed is not None and (allowed <= 0 or self.command == "HEAD"):
            raise _CutError
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value.replace("\n", " "))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(content, allowed, answer.counted_as or self.path.split("?")[0])

    def _send_body(self, content: bytes, allowed: int | None, key: str) -> None:
        end = len(content) if allowed is None else min(allowed, len(content))
        for start in range(0, end, CHUNK):
            chunk = content[start : min(start + CHUNK, end)]
            self.wfile.write(chunk)
            self.server.state.traffic.sent(key, len(chunk))
        if allowed is not None:
            self.wfile.flush()
            raise _CutError
