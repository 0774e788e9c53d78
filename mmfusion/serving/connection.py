"""HTTP connections that end when the other side is slow to say what it wants, or does not say it in HTTP."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class PunctualProtocol(H11Protocol):
    """Closes a connection on which no whole head of a request has arrived for as long as an idle one is kept.

    uvicorn's own waits for ever for the first byte of a connection and for the rest of a head, and reads what is left
    of a body that was refused for as long as it comes: a thousand such connections use up the files that a process may
    have open.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        # Stops no clock, other than uvicorn's.
        self.conn.receive_data(data)
        self.handle_events()

    def timeout_keep_alive_handler(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        kib = (self.config.h11_max_incomplete_event_size or 0) // 1024
        text = f"this is no request in HTTP/1.1, or its line and headers have more than {kib} KiB."
        body = json.dumps({"error": text}).encode()
        size = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", size), (b"connection", b"close")]
        start = h11.Response(status_code=400, reason=b"Bad Request", headers=headers)
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
