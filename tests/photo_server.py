"""A server on this machine that photos are fetched from; each test says with a handler what it answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class PhotoServer(ThreadingHTTPServer):
    """Answers until the test ends; a handler that waits for `stopped` ends with it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.stopped = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, or was killed, is part of what is tested."""

    @contextmanager
    def serving(self) -> Iterator[Self]:
        with self:
            threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            yield self
            self.stopped.set()
            self.shutdown()
