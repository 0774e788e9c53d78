"""A client of Milvus whose errors are one line with the place and the remedy."""

import logging
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmfusion.extras import library
from mmfusion.model.errors import MMFusionError

# Embedded servers of this process by path, and how many connections each has.
_embedded: Counter[str] = Counter()
_counting = threading.Lock()
# Path and collection of logs in which a write failed.
_torn_logs: set[tuple[str, str]] = set()


class MilvusError(MMFusionError):
    """Milvus cannot be reached, or rejects a request."""


def pymilvus() -> Any:
    """The client library.

    Raises:
        MissingLibraryError: It is not installed.
    """
    client = library("pymilvus", "milvus")
    # They print the traces of errors that are raised, or expected; what is raised says enough.
    for name in ("pymilvus", "milvus_lite", "grpc._server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return client


class Connection:
    """A client for one collection.

    Args:
        uri: File that ends in ".db" (Milvus Lite, in this process), or address of a server, "http://host:19530".
        collection: Name of the collection, or an alias.
        token: "user:password" or an API key.
        timeout: Seconds that a request may take.

    Raises:
        MissingLibraryError: pymilvus is not installed.
        MilvusError: There is no such server, the file is open elsewhere, or the name is not valid.
    """

    def __init__(self, uri: str | os.PathLike[str], collection: str, token: str | None, timeout: float) -> None:
        self.uri, self.collection, self.timeout = os.fspath(uri), collection, timeout
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", collection):
            raise MilvusError(
                f"the collection {collection!r} has no name that Milvus takes; use letters, digits and underscores, "
                "and no digit in front"
            )
        library, remedy = pymilvus(), "start the server, or check the address and the token"
        if is_file(self.uri):
            remedy = (
                "check that its name ends in .db, that no other process has the file open, and that Milvus Lite made it"
            )
            folder = Path(self.uri).parent.resolve()
            folder.mkdir(parents=True, exist_ok=True)
            # One name for the file, wherever this process goes later, as its users are counted by name.
            self.uri = str(folder / Path(self.uri).name)
        # Before there is a client: closing the last one meanwhile would otherwise close the file for this one.
        self._count(1)
        try:
            with self._asking("cannot be reached", remedy):
                self._client = library.MilvusClient(uri=self.uri, token=token or "", timeout=timeout)
            if is_file(self.uri):
                self._forget_closed_files()
        except BaseException:
            self._count(-1)
            raise
        self._open = True

    @property
    def place(self) -> str:
        """The collection and where it is, without credentials."""
        return f"collection {self.collection!r} at {self._address}"

    def ask(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Calls a method of the client for the collection.

        Args:
            method: Its name.
            timeout: Seconds that it may take; default: the connection's.
            arguments: Its arguments.

        Raises:
            MilvusError: Milvus rejects the request, or cannot be reached.
        """
        if not self._open:
            raise MilvusError(f"the connection to {self.place} is closed; connect again")
        with self._asking(f"fails at {method}", "check that the server is up, has room and accepts your token"):
            asked = getattr(self._client, method)
            return asked(collection_name=self.collection, timeout=timeout or self.timeout, **arguments)

    def change(self, method: str, **arguments: Any) -> None:
        """Calls a method that changes products, as `ask` does.

        After a write to its log that failed, as on a full disk, Milvus Lite loses what follows in the log when the
        process is killed. So the next change is flushed.
        """
        log = self.uri, self.collection
        try:
            self.ask(method, **arguments)
            if log in _torn_logs:
                self.ask("flush")
                _torn_logs.discard(log)
        except MilvusError:
            if is_file(self.uri):
                _torn_logs.add(log)
            raise

    def close(self) -> None:
        """Closes the client, and Milvus Lite in this process when this was the last one."""
        if self._open:
            self._open = False
            self._client.close()
            self._count(-1)

    def _count(self, change: int) -> None:
        """Counts the users of a file; the last one closes its server, so that other processes may open it."""
        if not is_file(self.uri):
            return
        with _counting:
            _embedded[self.uri] += change
            # It is there as soon as a file was opened; without it, that is what the error is about.
            servers = sys.modules.get("milvus_lite.server_manager")
            if not _embedded[self.uri] and servers is not None:
                servers.server_manager_instance.release_server(self.uri)

    def _forget_closed_files(self) -> None:
        """Forgets the schema of a file that this process closed and whose port this one has now.

        pymilvus from 3.0 keeps schemas for the life of the process, by address and name of the collection.
        """
        cache = getattr(sys.modules.get("pymilvus.client.cache"), "GlobalCache", None)
        if cache is not None:
            address = sys.modules["milvus_lite.server_manager"].server_manager_instance.start_and_get_uri(self.uri)
            cache.schema.invalidate(address.removeprefix("http://"), "", self.collection)

    @property
    def _address(self) -> str:
        # Credentials end at the last @, as passwords may hold others.
        return re.sub(r"://.*@", "://", self.uri)

    @contextmanager
    def _asking(self, trouble: str, remedy: str) -> Iterator[None]:
        """Turns errors of the client library into one line."""
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, ValueError) as error:
            reason = " ".join(str(getattr(error, "message", None) or error).split())
            raise MilvusError(f"Milvus at {self._address} {trouble} ({reason[:300]}); {remedy}") from error


def is_file(uri: str) -> bool:
    """Whether a URI is a file of Milvus Lite rather than a server."""
    return "://" not in uri and not uri.startswith("unix:")
