"""The large file storage of one repository: nothing counts as stored before its size and SHA-256 are verified."""

from __future__ import annotations

import hashlib
import threading

from loopback_hub.refusals import RefusalError


class LargeFiles:
    """Objects by their SHA-256, and what was sent of those that are not verified yet."""

    def __init__(self) -> None:
        self._verified: dict[str, bytes] = {}
        self._sent: dict[str, bytes] = {}
        self._parts: dict[str, dict[int, bytes]] = {}
        self._lock = threading.Lock()

    def __contains__(self, oid: str) -> bool:
        """Whether an object is stored and verified."""
        return oid in self._verified

    def receive(self, oid: str, content: bytes) -> None:
        """Keep a file that came in one piece, unverified."""
        with self._lock:
            self._sent[oid] = content

    def receive_part(self, oid: str, number: int, content: bytes) -> str:
        """Keep one part, from 1; gives the ETag by which the client lists it at the end."""
        with self._lock:
            self._parts.setdefault(oid, {})[number] = content
        return part_etag(content)

    def complete(self, oid: str, etags: list[str]) -> None:
        """Join the parts whose ETags are given, in this order; still unverified.

        Raises:
            RefusalError: a part is missing, surplus or not the one that was sent.
        """
        with self._lock:
            parts = self._parts.get(oid, {})
            known = [part_etag(parts[number]) for number in sorted(parts)]
            if sorted(parts) != list(range(1, len(etags) + 1)) or known != etags:
                raise RefusalError(400, f"Parts of {oid} are missing or differ from what was uploaded")
            self._sent[oid] = b"".join(parts[number] for number in sorted(parts))
            del self._parts[oid]

    def verify(self, oid: str, size: int | None) -> bytes:
        """The content of an object, checked against its name and its size in bytes (None: the name alone).

        Raises:
            RefusalError: 400 if nothing was uploaded or what was uploaded is something else; it is dropped then.
        """
        with self._lock:
            content = self._verified.get(oid, self._sent.get(oid))
            if content is None:
                raise RefusalError(400, f"LFS object {oid} was never uploaded")
            actual = hashlib.sha256(content).hexdigest()
            if actual != oid or (size is not None and len(content) != size):
                self._sent.pop(oid, None)
                found = f"{len(content)} bytes with SHA-256 {actual}"
                raise RefusalError(400, f"LFS object {oid} of {size} bytes was uploaded as {found}")
            self._sent.pop(oid, None)
            self._verified[oid] = content
            return content


def part_etag(content: bytes) -> str:
    """The ETag that the storage gives a part: its MD5, quoted."""
    return f'"{hashlib.md5(content).hexdigest()}"'
