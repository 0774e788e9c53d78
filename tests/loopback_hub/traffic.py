"""What went over the wire: the requests in order, and the bytes of the bodies by path."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Seen:
    """One request that was answered.

    Args:
        method: HTTP method.
        path: path and query as sent, still quoted.
        status: HTTP status of the answer; 0 for a connection that was cut.
        user: name of the account whose token came with it; None for a stranger.
    """

    method: str
    path: str
    status: int
    user: str | None


class Traffic:
    """Counts since the last reset.

    Bytes are those of bodies that really went over the wire. The content of a repository's file counts under
    "namespace/name/path/in/repository", wherever it was fetched from; everything else under its URL path.
    """

    def __init__(self) -> None:
        self.bytes_sent: Counter[str] = Counter()
        self.bytes_received: Counter[str] = Counter()
        self.requests: list[Seen] = []
        self._lock = threading.Lock()

    def sent(self, key: str, count: int) -> None:
        """Count bytes from the Hub to a client."""
        with self._lock:
            self.bytes_sent[key] += count

    def received(self, key: str, count: int) -> None:
        """Count bytes from a client to the Hub."""
        with self._lock:
            self.bytes_received[key] += count

    def answered(self, seen: Seen, instead_of: Seen | None = None) -> None:
        """Note a request, in the place of what was noted of it before."""
        with self._lock:
            if instead_of is not None and instead_of in self.requests:
                self.requests.remove(instead_of)
            self.requests.append(seen)

    def reset(self) -> None:
        """Forget everything that was counted."""
        with self._lock:
            self.bytes_sent.clear()
            self.bytes_received.clear()
            self.requests.clear()
