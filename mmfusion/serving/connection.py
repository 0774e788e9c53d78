"""HTTP connections that end when the other side is slow to say what it wants."""

import asyncio

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
