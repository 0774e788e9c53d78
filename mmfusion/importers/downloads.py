"""Photos fetched from many servers into a folder, some at a time from each of them, and each only once."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter, deque
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfusion.data.photo_urls import BusyError, PhotoFetcher
from mmfusion.data.photos import decode_photo
from mmfusion.model.photos import PhotoError
from mmfusion.progress import progress_bar

_THREADS = 32
_TRIES = 4
# Longer, nobody waits; what is left is fetched by the next run.
_LONGEST_PAUSE = 60.0
# Photos in a row, each tried several times, after which a server is taken for gone.
_GIVE_UP = 5


@dataclass
class _Host:
    """A server and the photos that are still to be fetched from it."""

    urls: deque[str] = field(default_factory=deque)
    # Moment (of the monotonic clock) before which it does not want to be asked.
    ready: float = 0.0
    failed_in_a_row: int = 0


class Downloads:
    """Photos behind URLs, each in a file of a folder that is named by a digest of its URL.

    A file has its name once all of it is there, so that a run that was killed goes on where it was.

    Attributes:
        wanted: How often each URL was asked for.
        failed: Why a URL has no photo, once `fetch` was called.
    """

    def __init__(self, folder: Path, fetcher: PhotoFetcher, *, per_host: int = 4) -> None:
        """Downloads into a folder.

        Args:
            folder: Created when it is needed.
            fetcher: Fetches one photo within its limits.
            per_host: Photos that are fetched from a server at a time, at least 1.

        Raises:
            ValueError: `per_host` is below 1.
        """
        if per_host < 1:
            raise ValueError(f"downloads_per_host is {per_host}; give at least 1.")
        self.wanted: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self._folder, self._fetcher, self._per_host = folder, fetcher, per_host
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    def want(self, url: str) -> str:
        """Notes a URL for `fetch` and returns the path, within the folder, that its photo will have."""
        url = _whole(url)
        self.wanted[url] += 1
        return _path(url)

    def fetch(self) -> None:
        """Fetches what is not there yet; a server that is busy is asked again, later and later.

        Raises:
            OSError: A file cannot be written; those that are there stay.
        """
        hosts: dict[str, _Host] = {}
        for url in self.wanted:
            if not self._there(url):
                hosts.setdefault(url.partition("://")[2].partition("/")[0], _Host()).urls.append(url)
        total = sum(len(host.urls) for host in hosts.values())
        if not total:
            return
        with (
            progress_bar(total=total, desc="photos", unit="") as progress,
            ThreadPoolExecutor(min(_THREADS, self._per_host * len(hosts))) as pool,
        ):
            # The first of each server before the second of any.
            work = [
                pool.submit(self._drain, host, progress)
                for number in range(self._per_host)
                for host in hosts.values()
                if number < len(host.urls)
            ]
            try:
                for done in wait(work, return_when=FIRST_EXCEPTION).done:
                    done.result()
            finally:
                self._stopped.set()

    def failed_paths(self) -> dict[str, tuple[str, str]]:
        """URL and reason by the path that a photo would have had."""
        return {_path(url): (url, reason) for url, reason in self.failed.items()}

    def _there(self, url: str) -> bool:
        try:
            # A power cut may leave an empty file.
            return os.path.getsize(self._folder / _path(url)) > 0
        except OSError:
            return False

    def _drain(self, host: _Host, progress: Any) -> None:
        while not self._stopped.is_set():
            with self._lock:
                if not host.urls:
                    return
                url = host.urls.popleft()
            try:
                self._keep(url, self._ask(url, host))
                host.failed_in_a_row = 0
            except BusyError as error:
                self.failed[url] = _reason(error, url)
                progress.update(self._given_up(host, self.failed[url]))
            except PhotoError as error:
                self.failed[url] = _reason(error, url)
                host.failed_in_a_row = 0
            progress.update()

    def _ask(self, url: str, host: _Host) -> bytes:
        for attempt in range(_TRIES):
            self._stopped.wait(max(host.ready - time.monotonic(), 0.0))
            try:
                data = self._fetcher.fetch(url)
            except BusyError as error:
                if attempt == _TRIES - 1 or self._stopped.is_set() or error.seconds > _LONGEST_PAUSE:
                    raise
                # All threads wait that ask this server.
                host.ready = time.monotonic() + (error.seconds or 0.5 * 2**attempt)
                continue
            # An error page also comes with code 200.
            decode_photo(data, min_size=(16, 16))
            return data
        raise AssertionError("the last try returns or raises")

    def _given_up(self, host: _Host, reason: str) -> int:
        """Counts a failure, and the photos that are not tried any more after so many of them."""
        host.failed_in_a_row += 1
        if host.failed_in_a_row < _GIVE_UP:
            return 0
        with self._lock:
            left, host.urls = list(host.urls), deque()
        reason = f"not tried after {_GIVE_UP} failures in a row, the last one: {reason}"
        self.failed.update(dict.fromkeys(left, reason))
        return len(left)

    def _keep(self, url: str, data: bytes) -> None:
        path = self._folder / _path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _reason(error: PhotoError, url: str) -> str:
    """What is wrong, without the URL, which stands beside it, and with the flag of the command."""
    text = str(error).removeprefix(url.partition("?")[0]).strip(" .")
    return text.replace("allow_private=True", "--allow_private_urls true")


def _whole(url: str) -> str:
    url = url.strip()
    return f"https:{url}" if url.startswith("//") else url


def _path(url: str) -> str:
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:40]
    return f"{digest[:2]}/{digest}"
