"""The Hub that tests start: `with LoopbackHub() as hub:`, and what they may ask of it and do to it."""

from __future__ import annotations

import os
import secrets
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from loopback_hub.accounts import Account
from loopback_hub.faults import Fault
from loopback_hub.repository import Repository
from loopback_hub.state import HubState
from loopback_hub.traffic import Seen
from loopback_hub.wire import Server

MEGABYTE = 1 << 20
ALWAYS = 1_000_000
SETTINGS_OF_THE_CALLER = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE")


class LoopbackHub:
    """A Hub on the loopback address, empty at first, gone when its block ends.

    The user `hub.user` may write (her token is `hub.token`) to her own namespace and to every organisation, which any
    other namespace is. `hub.reader` has a token (`hub.reader_token`) that reads only, and sees no private repository.

    Args:
        part_size: uploads of more bytes than this are done in parts of this size.
        large_from: files of at least this many bytes are LFS files whatever their name (a `.safetensors` always is).
        page_size: entries of one page of a listing.
    """

    def __init__(self, *, part_size: int = 16 * MEGABYTE, large_from: int = 10 * MEGABYTE, page_size: int = 50) -> None:
        self.user = "ada"
        self.reader = "bob"
        self.token = f"hf_{secrets.token_hex(17)}"
        self.reader_token = f"hf_{secrets.token_hex(17)}"
        accounts = [Account(self.user, self.token, True), Account(self.reader, self.reader_token, False)]
        self._state = HubState(accounts, part_size=part_size, large_from=large_from, page_size=page_size)
        self._servers: list[Server] = []

    def __enter__(self) -> LoopbackHub:
        """Start to listen, on two free ports: the Hub's, and its storage's (the "CDN", another origin)."""
        hub, storage = Server(self._state, to_storage=False), Server(self._state, to_storage=True)
        self._state.endpoint, self._state.storage = hub.url, storage.url
        self._servers = [hub, storage]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop to listen; connections after this are refused, as when the Hub is away."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`, for `HF_ENDPOINT`."""
        return self._state.endpoint

    def environment(self, home: Path, token: bool | str = True) -> dict[str, str]:
        """The environment of a sub-process that talks to this Hub and to no other.

        Args:
            home: its HF_HOME: cache, modules of remote code, stored tokens.
            token: True for the token of `hub.user`, False for none, or a token.
        """
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(SETTINGS_OF_THE_CALLER) and not name.lower().endswith("_proxy")
        }
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        direct = {"NO_PROXY": "127.0.0.1,localhost"}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        credentials = {"HF_TOKEN": self.token if token is True else token} if token else {}
        return {**kept, **settings, **direct, **quiet, **credentials}

    # Repositories

    def repo(self, repository_id: str, *, kind: str = "model") -> Repository:
        """A repository as the Hub keeps it: `.files(revision)`, `.commits(revision)`, `.private`, `.gated`, ....

        Raises:
            KeyError: there is none.
        """
        try:
            return self._state.repositories[kind, repository_id]
        except KeyError:
            there = sorted(name for _, name in self._state.repositories)
            raise KeyError(f"the loopback Hub has no {kind} {repository_id!r}, only {there}") from None

    def has_repo(self, repository_id: str, *, kind: str = "model") -> bool:
        """Whether there is a repository."""
        return (kind, repository_id) in self._state.repositories

    def create_repo(
        self,
        repository_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        kind: str = "model",
        private: bool = False,
        gated: bool | str = False,
        sdk: str | None = None,
    ) -> Repository:
        """A new repository made past the client, with files under any names (hostile ones, too)."""
        repository = Repository(kind, repository_id, author=self.user, private=private, sdk=sdk)
        repository.gated = gated
        if files:
            repository.plant(files)
        with self._state.lock:
            self._state.repositories[kind, repository_id] = repository
        return repository

    def unique(self, name: str = "model") -> str:
        """A repository id, "org/name-...", that no other test uses."""
        return f"org/{name}-{secrets.token_hex(4)}"

    # What went over the wire

    @property
    def bytes_sent(self) -> Counter[str]:
        """Bytes sent since the last reset, by "namespace/name/path/in/repository" for the content of files."""
        return self._state.traffic.bytes_sent

    @property
    def bytes_received(self) -> Counter[str]:
        """Bytes received since the last reset, by URL path."""
        return self._state.traffic.bytes_received

    @property
    def requests(self) -> list[Seen]:
        """The requests answered since the last reset, in their order."""
        return self._state.traffic.requests

    def reset(self) -> None:
        """Forget repositories, faults and counts."""
        with self._state.lock:
            self._state.repositories.clear()
        self.clear_faults()
        self.reset_counters()

    def reset_counters(self) -> None:
        """Forget requests and bytes."""
        self._state.traffic.reset()

    # Faults

    def fail_next(self, n: int, status: int = 503, method: str | None = None, path_contains: str | None = None) -> None:
        """Answer the next `n` requests that match with an HTTP status, 400..599, and do nothing for them."""
        self._state.faults.add(Fault("status", status, n, method, path_contains))

    def cut_after(self, count: int, path_contains: str | None = None, *, method: str | None = None, n: int = 1) -> None:
        """Drop the connection of the next `n` requests that match after `count` bytes of body, either way.

        With `count` 0 the client gets no answer at all. Content of files is matched by its URL, which holds the file's
        name (`/cdn/...` for LFS files); uploads of LFS files are `PUT /storage/...`, commits `POST .../commit/...`.
        """
        self._state.faults.add(Fault("cut", count, n, method, path_contains))

    def hold_after(self, count: int, path_contains: str | None = None, *, method: str | None = None) -> Fault:
        """Stop to read the next upload that matches after more than `count` bytes, and drop it once it is released.

        Returns:
            What to wait for (`.reached`), and what to set in the end (`.released`).
        """
        hold = Fault("hold", count, 1, method, path_contains)
        self._state.faults.add(hold)
        return hold

    def stall(self, seconds: float, path_contains: str | None = None, *, method: str | None = None, n: int = 1) -> None:
        """Answer the next `n` requests that match only after some seconds."""
        self._state.faults.add(Fault("stall", seconds, n, method, path_contains))

    def corrupt(self, path_contains: str, *, n: int = ALWAYS) -> None:
        """Flip one byte of the files whose URL holds this text: of a download, or of an upload to `/storage/`."""
        self._state.faults.add(Fault("corrupt", 0, n, None, path_contains))

    def truncate(self, path_contains: str, count: int, *, n: int = ALWAYS) -> None:
        """Send only the first `count` bytes of the files whose URL holds this text, as if that were all."""
        self._state.faults.add(Fault("truncate", count, n, "GET", path_contains))

    def clear_faults(self) -> None:
        """Let everything go well again."""
        self._state.faults.clear()
