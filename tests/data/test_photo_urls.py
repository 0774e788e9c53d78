"""Photos behind URLs: fetched where it is asked for, within limits of size, time and redirects, from public places."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from photo_server import PhotoServer
from PIL import Image

from mmfusion import MMFusionProcessor
from mmfusion.data import photo_urls
from mmfusion.data.photos import PhotoError
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.hub import PhotoFetcher


def png() -> bytes:
    file = BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG")
    return file.getvalue()


PHOTO = png()
WITHOUT_LIMIT_OF_PLACE = PhotoFetcher(allow_private=True)


class Handler(BaseHTTPRequestHandler):
    """What the path says: /photo, /redirect/N, /to?URL, /cut, /unsized/N, /drip, /status/N."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Host", "")))
        kind, _, argument = self.path[1:].replace("?", "/", 1).partition("/")
        getattr(self, kind)(argument)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, content: bytes = b"", size: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if size != -1:
            self.send_header("Content-Length", str(len(content) if size is None else size))
        self.end_headers()
        self.wfile.write(content)

    def photo(self, _: str) -> None:
        self.answer(200, PHOTO)

    def redirect(self, count: str) -> None:
        self.answer(302, Location=f"/redirect/{int(count) - 1}" if int(count) > 1 else "/photo")

    def to(self, url: str) -> None:
        self.answer(301, Location=url)

    def cut(self, _: str) -> None:
        self.answer(200, PHOTO[:100], size=len(PHOTO))

    def unsized(self, count: str) -> None:
        self.answer(200, bytes(int(count)), size=-1)

    def status(self, code: str) -> None:
        self.answer(int(code.split("/")[0]), b"<html>")

    def drip(self, size: str) -> None:
        self.answer(200, size=int(size))
        while not self.server.stopped.wait(0.01):
            self.wfile.write(b"x")


class Server(PhotoServer):
    def __init__(self) -> None:
        super().__init__(Handler)
        self.asked: list[tuple[str, str]] = []


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().serving() as server:
        yield server


def refusal(fetcher: PhotoFetcher, url: str) -> str:
    with pytest.raises(PhotoError) as refused:
        fetcher(url)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_photo_is_fetched_and_decoded_also_behind_redirects(server: Server) -> None:
    for path in ("/photo", "/photo?size=größer 100", "/redirect/3", f"/to?{server.url}/photo"):
        found = WITHOUT_LIMIT_OF_PLACE(server.url + path)
        assert found.mode == "RGB" and found.size == (256, 256)


PRIVATE = ["127.0.0.1", "localhost", "2130706433", "0.0.0.0", "10.0.0.1", "169.254.169.254", "100.64.0.1", "224.0.0.1"]
PRIVATE_6 = [
    "::1",
    "::",
    "::ffff:127.0.0.1",
    "fe80::1",
    "fd00::1",
    "fec0::1",
    "64:ff9b::a00:1",
    "2002:a00:1::",
    "ff02::1",
]


@pytest.mark.parametrize("host", [*PRIVATE, *(f"[{address}]" for address in PRIVATE_6)])
def test_private_addresses_are_refused_unless_they_are_asked_for(host: str, server: Server) -> None:
    line = refusal(PhotoFetcher(), f"http://{host}:{server.server_address[1]}/photo?signature=secret")
    assert "which is not a public address; give allow_private=True" in line and "secret" not in line
    assert not server.asked


def test_a_redirect_to_a_private_address_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_urls, "is_public", lambda address: address == "127.0.0.1")
    assert PhotoFetcher()(f"{server.url}/to?{server.url}/photo").size == (256, 256)
    line = refusal(PhotoFetcher(), f"{server.url}/to?http://10.0.0.1/latest/meta-data")
    assert line.startswith("http://10.0.0.1/latest/meta-data is at 10.0.0.1, which is not a public address")


def test_the_address_that_was_checked_is_the_one_that_is_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve, port = socket.getaddrinfo, server.server_address[1]
    addresses = iter(["127.0.0.1"])

    def of_a_hostile_name(host: str, *arguments: Any, **options: Any) -> Any:
        # A name that resolves to a public address when it is checked would resolve to a private one after that.
        return resolve(next(addresses) if host == "shop.example" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", of_a_hostile_name)
    monkeypatch.setattr(photo_urls, "is_public", lambda address: address == "127.0.0.1")
    assert PhotoFetcher()(f"http://shop.example:{port}/photo").size == (256, 256)
    assert server.asked == [("/photo", f"shop.example:{port}")]


def test_a_name_with_a_private_address_among_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(*_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("1.1.1.1", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert "http://shop.example/x is at 10.0.0.1" in refusal(PhotoFetcher(), "http://shop.example/x")


@pytest.mark.parametrize(
    ("limits", "path", "reason"),
    [
        ({"max_bytes": len(PHOTO) - 1}, "/photo", f"has more than {len(PHOTO) - 1:,} bytes"),
        ({"max_bytes": 1000}, "/unsized/1001", "has more than 1,000 bytes"),
        ({"max_redirects": 2}, "/redirect/3", "/redirect/3 is redirected more than 2 times."),
        ({"seconds": 0.2}, "/drip/1000000", "/drip/1000000 cannot be fetched: it took longer than 0.2 s"),
        ({"seconds": 0.2}, "/drip/-1", "/drip/-1 cannot be fetched: it took longer than 0.2 s"),
        ({}, "/cut", f"/cut cannot be fetched: IncompleteRead(100 bytes read, {len(PHOTO) - 100} more expected)"),
        ({}, "/status/404?key=secret", "/status/404 cannot be fetched: the server answers 404 Not Found"),
        ({}, "/unsized/1000", "not an image in a known format"),
        ({}, "/to?file:///etc/passwd", "'file:///etc/passwd' is not an http or https URL"),
    ],
)
def test_limits_hold_and_what_is_no_photo_is_refused(
    limits: dict[str, Any], path: str, reason: str, server: Server
) -> None:
    assert reason in refusal(PhotoFetcher(allow_private=True, **limits), server.url + path)


def test_the_limits_themselves_are_no_refusal(server: Server) -> None:
    exact = PhotoFetcher(max_bytes=len(PHOTO), max_redirects=3, allow_private=True)
    assert exact.fetch(f"{server.url}/redirect/3") == PHOTO


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "is not an http or https URL"),
        ("ftp://shop.example/x", "is not an http or https URL"),
        ("photos/dress.jpg", "is not an http or https URL"),
        ("http:///x", "is not an http or https URL"),
        ("http://shop.example:port/x", "is not an http or https URL"),
        ("http://ada:secret@shop.example/x", "http://shop.example/x comes with a user name or password"),
    ],
)
def test_what_is_no_plain_url_is_refused(url: str, reason: str) -> None:
    line = refusal(WITHOUT_LIMIT_OF_PLACE, url)
    assert reason in line and "secret" not in line


def test_a_redirect_away_from_https_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PhotoFetcher, "_ask", lambda self, parts, deadline: "http://shop.example/photo")
    assert "is redirected away from https" in refusal(PhotoFetcher(), "https://shop.example/photo")


def test_a_server_without_tls_is_no_https(server: Server) -> None:
    assert "cannot be fetched" in refusal(WITHOUT_LIMIT_OF_PLACE, server.url.replace("http", "https") + "/photo")


def test_a_server_that_is_away_is_one_line(server: Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert "cannot be fetched" in refusal(WITHOUT_LIMIT_OF_PLACE, f"http://127.0.0.1:{unused.getsockname()[1]}/x")


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_redirects": -1}, {"seconds": 0}, {"seconds": float("nan")}])
def test_limits_that_let_nothing_through_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"PhotoFetcher: {next(iter(limits))} is "):
        PhotoFetcher(**limits)


def test_the_processor_fetches_only_where_it_is_given_a_loader(server: Server, tmp_path: Path) -> None:
    backbones = write_toy_encoders(tmp_path)
    processor = MMFusionProcessor.from_backbones(str(backbones.text), str(backbones.vision), max_photos=2)
    urls = [f"{server.url}/photo?{number}" for number in range(3)]
    products = [{"title": "dress", "image": urls}, {"title": "mug", "image": None}]
    with pytest.raises(ValueError, match=r"photo of product 0 is the text .*the processor opens and fetches nothing"):
        processor(products=products)
    assert not server.asked
    fetched = processor(queries=["red dress"], products=products, photo_loader=WITHOUT_LIMIT_OF_PLACE)
    assert [path for path, _ in server.asked] == ["/photo?0", "/photo?1"], "photos beyond max_photos are not fetched"
    photo = Image.linear_gradient("L").convert("RGB")
    given = processor(queries=["red dress"], products=[{"title": "dress", "image": [photo, photo]}, products[1]])
    assert fetched.keys() == given.keys() and all(torch.equal(fetched[name], given[name]) for name in given)
