"""Photos that are downloaded: each once, a few at a time, later where a server is busy, and on after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pytest
from photo_server import PhotoServer
from PIL import Image

from mmfusion.data.photo_urls import BusyError, PhotoFetcher
from mmfusion.importers import ImportLog, Item, downloads
from mmfusion.importers.downloads import Downloads
from mmfusion.importers.photo_store import PhotoStore
from mmfusion.importers.photos import PhotoFolders
from mmfusion.importers.write import PHOTO


def png(width: int = 20) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, 20), (9, 90, 60)).save(file, "PNG")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """What the path says: /photo/N.png, /busy/TIMES/SECONDS/N, /slow/N, /gone, /page, /error/N."""

    server: Server

    def do_GET(self) -> None:
        server = self.server
        kind, *rest = self.path[1:].partition("?")[0].split("/")
        with server.lock:
            server.asked[self.path] += 1
            server.at_once += 1
            server.most = max(server.most, server.at_once)
        status, content, headers = 200, png(), {}
        if kind == "busy" and server.asked[self.path] <= int(rest[0]):
            status, content, headers = 429, b"", {"Retry-After": unquote(rest[1])}
        elif kind == "slow":
            server.stopped.wait(0.1)
        elif kind == "gone":
            status, content = 404, b"<html>"
        elif kind == "page":
            content = b"<html><body>Please log in"
        elif kind == "error":
            status, content = 503, b""
        with server.lock:
            server.at_once -= 1
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(PhotoServer):
    def __init__(self) -> None:
        super().__init__(Handler)
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.at_once = self.most = 0


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().serving() as server:
        yield server


def downloading(folder: Path, **options: Any) -> Downloads:
    return Downloads(folder, PhotoFetcher(allow_private=True, seconds=5), **options)


def fetched(folder: Path, urls: list[str], **options: Any) -> Downloads:
    found = downloading(folder, **options)
    for url in urls:
        found.want(url)
    found.fetch()
    return found


def test_each_url_is_fetched_once_and_kept_for_the_next_run(tmp_path: Path, server: Server) -> None:
    urls = [f"{server.url}/photo/{number}.png?v=1" for number in range(10)]
    for _ in range(2):
        found = fetched(tmp_path / "photos", [*urls, *urls])
        assert not found.failed and found.wanted[urls[0]] == 2
        assert (tmp_path / "photos" / found.want(urls[3])).read_bytes() == png()
    assert set(server.asked.values()) == {1} and len(server.asked) == 10
    # What a power cut leaves of a file is fetched again.
    (tmp_path / "photos" / found.want(urls[3])).write_bytes(b"")
    fetched(tmp_path / "photos", urls)
    assert server.asked["/photo/3.png?v=1"] == 2


def test_a_server_is_asked_for_a_few_photos_at_a_time(tmp_path: Path, server: Server) -> None:
    fetched(tmp_path, [f"{server.url}/slow/{number}" for number in range(12)], per_host=3)
    assert server.most == 3 and len(server.asked) == 12
    with pytest.raises(ValueError, match="downloads_per_host is 0"):
        downloading(tmp_path, per_host=0)


def test_a_busy_server_is_asked_again_when_it_says(tmp_path: Path, server: Server) -> None:
    began = time.monotonic()
    found = fetched(tmp_path, [f"{server.url}/busy/1/1/x", f"{server.url}/busy/2/0/x"])
    assert not found.failed and time.monotonic() - began > 1
    assert server.asked == {"/busy/1/1/x": 2, "/busy/2/0/x": 3}


def test_a_server_that_stays_busy_is_left_for_the_next_run(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_TRIES", 1)
    urls = [f"{server.url}/error/{number}" for number in range(30)]
    found = fetched(tmp_path, [*urls, f"http://localhost:{server.server_address[1]}/photo/1"], per_host=1)
    assert sum(server.asked.values()) == 6, "five failures in a row, and the photo of the other server"
    assert set(found.failed) == set(urls)
    assert "503" in found.failed[urls[0]] and "not tried after 5 failures in a row" in found.failed[urls[29]]
    later = fetched(tmp_path, [f"{server.url}/busy/9/3600/1"])
    assert sum(server.asked.values()) == 7 and "429" in later.failed[f"{server.url}/busy/9/3600/1"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/gone", "404"),
        ("/page", "HTML or XML text instead of"),
        ("ftp://x/y.jpg", "not an http or https URL"),
        ("http://[x/y", ""),
    ],
)
def test_what_is_no_photo_is_listed_and_tried_again_by_the_next_run(
    tmp_path: Path, server: Server, path: str, reason: str
) -> None:
    url = path if "://" in path else server.url + path
    for run in (1, 2):
        found = fetched(tmp_path, [url, f"{server.url}/photo/1"])
        assert reason in found.failed.pop(url) and not found.failed
        assert server.asked[path] == (run if path.startswith("/") else 0)


def test_private_servers_are_refused_unless_they_are_asked_for(tmp_path: Path, server: Server) -> None:
    found = Downloads(tmp_path, PhotoFetcher())
    found.want(f"{server.url}/photo/1")
    found.fetch()
    assert "--allow_private_urls true" in found.failed[f"{server.url}/photo/1"] and not server.asked


def test_a_full_disk_ends_the_downloads_and_keeps_what_is_there(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched(tmp_path, [f"{server.url}/photo/0"])
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]

    def full(self: Path, data: bytes) -> int:
        open(self, "wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        fetched(tmp_path, [f"{server.url}/photo/{number}" for number in range(20)])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == kept


RUN = """
import sys
# A program of another name would load torch.
sys.argv = ["mmfusion", *sys.argv[1:]]
from pathlib import Path
from mmfusion.data.photo_urls import PhotoFetcher
from mmfusion.importers.downloads import Downloads
found = Downloads(Path(sys.argv[1]), PhotoFetcher(allow_private=True))
for number in range(40):
    found.want(f"{sys.argv[2]}/slow/{number}")
found.fetch()
assert not found.failed
"""


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path, server: Server) -> None:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "photos"), server.url])

    def whole() -> list[Path]:
        return [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".partial")]

    killed = start()
    while len(whole()) < 8:
        assert killed.poll() is None
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    kept = whole()
    assert all(path.read_bytes() == png() for path in kept)
    assert start().wait() == 0
    assert len(whole()) == 40
    again = sum(count - 1 for count in server.asked.values())
    assert again <= 4, "only what was on its way when the run was killed is fetched a second time"


def test_products_get_what_was_fetched(tmp_path: Path, server: Server) -> None:
    catalogue = tmp_path / "catalogue"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "here.png").write_bytes(png(50))
    log = ImportLog()
    photos = PhotoStore(
        catalogue,
        PhotoFolders([tmp_path / "own"], log),
        log,
        tmp_path / "failed.csv",
        downloads=downloading(catalogue / "photos_downloaded"),
    )
    items = [
        Item("a", photos=[f"{server.url}/photo/1", f"{server.url}/gone"]),
        Item("b", photos=[f"{server.url}/gone"]),
        Item("c", photos=["https://shop.example/here.png"]),
    ]
    rows = {item.item_id: photos.structs(item) for item in items}
    photos.fetch()
    assert (photos.counts.named, photos.counts.found) == (4, 2)
    photos.check()
    photos.link()
    images = pa.array(list(rows.values()), pa.list_(PHOTO))
    parts = photos.settled(pa.table({"product_id": list(rows), "image": images}))
    kept = {one["product_id"]: one["image"] for part in parts for one in part.to_pylist()}
    photos.close()
    assert [len(kept[name] or []) for name in "abc"] == [1, 0, 1]
    assert kept["a"][0]["path"].startswith("photos_downloaded/") and kept["c"][0]["path"] == "photos/here.png"
    assert (catalogue / kept["a"][0]["path"]).read_bytes() == png()
    assert (tmp_path / "failed.csv").read_text().count(f"{server.url}/gone") == 2


def test_what_a_server_says_about_later(server: Server) -> None:
    for path, seconds in (("/busy/9/30/x", 30.0), ("/busy/9/soon/x", 0.0), ("/error/1", 0.0)):
        with pytest.raises(BusyError) as busy:
            PhotoFetcher(allow_private=True).fetch(server.url + path)
        assert busy.value.seconds == seconds
    with pytest.raises(BusyError) as busy:
        PhotoFetcher(allow_private=True).fetch(f"{server.url}/busy/9/Fri, 01 Jan 2100 00:00:00 GMT/x")
    assert busy.value.seconds > 1e9
