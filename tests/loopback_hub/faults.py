"""What can go wrong on the way, on demand: refused, cut, held, stalled, corrupted and truncated transfers."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Fault:
    """One thing that goes wrong with the next requests that match.

    Args:
        action: "status", "cut", "hold", "stall", "corrupt" or "truncate".
        value: HTTP status, bytes let through (twice), seconds, (unused), bytes kept.
        times: how many requests it still befalls.
        method: only requests of this method (None: of any).
        path_contains: only requests whose path holds this text (None: any path).
        reached: set once a request is held.
        released: ends the waiting of a request that is held.
    """

    action: str
    value: float
    times: int
    method: str | None
    path_contains: str | None
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def befalls(self, method: str, path: str) -> bool:
        """Whether a request is one of those that it is for."""
        if self.times <= 0 or (self.method is not None and method != self.method):
            return False
        return self.path_contains is None or self.path_contains in path


class Faults:
    """The faults that are due, each counted down by the requests that it befell."""

    def __init__(self) -> None:
        self._due: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Make a fault due."""
        with self._lock:
            self._due.append(fault)

    def clear(self) -> None:
        """Let everything go well again."""
        with self._lock:
            self._due.clear()

    def take(self, action: str, method: str, path: str) -> Fault | None:
        """The first fault of a kind that befalls a request, counted down; None if none does."""
        with self._lock:
            for fault in self._due:
                if fault.action == action and fault.befalls(method, path):
                    fault.times -= 1
                    return fault
        return None


def flip_a_byte(content: bytes) -> bytes:
    """The same number of bytes, with the middle one changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :] if content else content
