"""Photos that are given as URLs: fetched where somebody asks for it, within limits, and from public places."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from PIL import Image

from mmfusion.data.photos import PhotoError, decode_photo

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
# Answers of servers that are overloaded, restarted or slow.
_BUSY = (408, 425, 429, 500, 502, 503, 504)
# Translates to any IPv4 address, a private one too.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class BusyError(PhotoError):
    """A photo may be had later: its server cannot be reached, is too slow, or says so.

    Attributes:
        seconds: For how long the server does not want to be asked again, 0 where it does not say.
    """

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.seconds = seconds


@dataclass(frozen=True)
class PhotoFetcher:
    """Fetches the photo behind a URL: `processor(products=…, photo_loader=PhotoFetcher())`.

    URLs come from a catalogue, and whoever writes into that must not make this machine ask its neighbours: a name is
    resolved once, what it resolves to must be public, and that address is the one that is asked, after each redirect
    anew. Proxies of the environment are not used. The resolver of the system has a time limit of its own.

    Attributes:
        max_bytes: Largest file, at least 1.
        seconds: Longest time for one photo, redirects included, above 0.
        max_redirects: Redirects that are followed, at least 0.
        allow_private: Asks this machine and private networks, too.

    Example:
        >>> PhotoFetcher()("http://127.0.0.1/photo.jpg")
        Traceback (most recent call last):
        ...
        mmfusion.model.photos.PhotoError: http://127.0.0.1/photo.jpg is at 127.0.0.1, which is not a public address; give allow_private=True to fetch it anyway.
    """  # noqa: E501 (a line of a doctest)

    max_bytes: int = 20_000_000
    seconds: float = 10.0
    max_redirects: int = 3
    allow_private: bool = False

    def __post_init__(self) -> None:
        for name, value, lowest in (("max_bytes", self.max_bytes, 1), ("max_redirects", self.max_redirects, 0)):
            if value < lowest:
                raise ValueError(f"PhotoFetcher: {name} is {value}; give at least {lowest}.")
        if not self.seconds > 0:
            raise ValueError(f"PhotoFetcher: seconds is {self.seconds}; give more than 0.")

    def __call__(self, url: str) -> Image.Image:
        """The photo, in mode RGB, as `decode_photo` decodes it.

        Raises:
            PhotoError: The URL is not one of http or https, or leads to a private address; the answer is not a photo,
                too large, too slow or redirected too often. The message has the URL without its query, and the reason.
        """
        return decode_photo(self.fetch(url))

    def fetch(self, url: str) -> bytes:
        """The file behind a URL, as it is.

        Raises:
            PhotoError: As for a call; a `BusyError` where it is worth to ask again.
        """
        deadline, place = time.monotonic() + self.seconds, url
        for _ in range(self.max_redirects + 1):
            parts = _checked(place)
            try:
                found = self._ask(parts, deadline)
                if time.monotonic() >= deadline:
                    # Cut off by the watch, a body of unknown length looks whole.
                    raise TimeoutError
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                late = time.monotonic() >= deadline
                reason = f"it took longer than {self.seconds:g} s" if late else f"{error or type(error).__name__}"
                raise BusyError(f"{_shown(parts)} cannot be fetched: {reason}") from error
            if isinstance(found, bytes):
                return found
            place = urljoin(place, found)
            if parts.scheme == "https" and not place.lower().startswith("https:"):
                raise PhotoError(f"{_shown(parts)} is redirected away from https; give the URL that it leads to.")
        raise PhotoError(f"{_shown(urlsplit(url))} is redirected more than {self.max_redirects} times.")

    def _ask(self, parts: SplitResult, deadline: float) -> bytes | str:
        """The content, or where the server says that it is."""
        host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
        address = self._address(parts, host, port)
        left = max(deadline - time.monotonic(), 0.001)
        connection = _Connection(host, port, address, secure=parts.scheme == "https", timeout=left)
        # A server that sends a byte now and then never runs into the time-out of a single read.
        watch = threading.Timer(left, connection.abort)
        watch.daemon = True
        watch.start()
        try:
            headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "mmfusion"}
            connection.request("GET", _target(parts), headers=headers)
            return self._read(parts, connection.getresponse())
        finally:
            watch.cancel()
            connection.close()

    def _address(self, parts: SplitResult, host: str, port: int) -> str:
        addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        private = [address for address in addresses if not is_public(address)]
        if private and not self.allow_private:
            raise PhotoError(
                f"{_shown(parts)} is at {private[0]}, which is not a public address; give allow_private=True to fetch "
                "it anyway."
            )
        return addresses[0]

    def _read(self, parts: SplitResult, answer: http.client.HTTPResponse) -> bytes | str:
        target = answer.getheader("Location")
        if answer.status in _REDIRECTS and target:
            return target
        if answer.status != 200:
            reason = f"{_shown(parts)} cannot be fetched: the server answers {answer.status} {answer.reason}"
            if answer.status in _BUSY:
                raise BusyError(reason, _seconds(answer.getheader("Retry-After", "")))
            raise PhotoError(reason)
        content = b"" if (answer.length or 0) > self.max_bytes else answer.read(self.max_bytes + 1)
        if (answer.length or 0) + len(content) > self.max_bytes:
            raise PhotoError(f"{_shown(parts)} has more than {self.max_bytes:,} bytes")
        if answer.length:
            raise http.client.IncompleteRead(content, answer.length)
        return content


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet: neither of this machine nor of a private or special network.

    Example:
        >>> is_public("1.1.1.1"), is_public("10.0.0.1"), is_public("::ffff:127.0.0.1")
        (True, False, False)
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or (ipaddress.ip_address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
        if ip.sixtofour or ip.teredo or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class _Connection(http.client.HTTPConnection):
    """A connection to one address, whatever the host's name would resolve to by now."""

    def __init__(self, host: str, port: int, address: str, *, secure: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self.address = address
        self.secure = secure
        # http.client releases its socket before the body is read, where the server closes the connection after it.
        self.watched: socket.socket | None = None
        # The name of the host is sent with its port unless it is this one.
        self.default_port = _PORTS["https" if secure else "http"]

    def connect(self) -> None:
        self.watched = self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.secure:
            context = ssl.create_default_context()
            secured = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.watched = self.sock = secured
            secured.do_handshake()

    def abort(self) -> None:
        """Ends whatever the connection waits for; called from another thread."""
        if self.watched is not None:
            with suppress(OSError):
                # That of an SSL socket would pull the TLS state away from under a thread that reads.
                socket.socket.shutdown(self.watched, socket.SHUT_RDWR)


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise PhotoError(f"{url[:80]!r} is not an http or https URL; give one, or the photo itself.")
    if parts.username is not None or parts.password is not None:
        raise PhotoError(f"{_shown(parts)} comes with a user name or password; give a URL without.")
    return parts


def _seconds(retry_after: str) -> float:
    """What a server says with Retry-After: seconds, or a date."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max((parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return 0.0


def _target(parts: SplitResult) -> str:
    path = parts.path or "/"
    # Quoted already, or not; a space or an umlaut in it is not allowed in HTTP.
    return quote(f"{path}?{parts.query}" if parts.query else path, safe="%/:=&?~+!$,;'@()*[]")


def _shown(parts: SplitResult) -> str:
    """A URL as it may be logged: its query may be a signature, and its user a password."""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
