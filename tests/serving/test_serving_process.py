"""The service as it is run: a process of its own, under load, while its index changes and when it is asked to end."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from commands import command
from processes import started
from served_index import ODD_IDS, drawn_index

from mmfusion.retriever import Retriever

CHECKOUT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


class Service:
    """A running service; `lines` are what it has logged so far."""

    def __init__(self, place: Path, *flags: str, command: list[str] | None = None) -> None:
        command = command or [sys.executable, str(CHECKOUT / "recipes" / "serve.py"), "--index", str(place / "run")]
        command = [*command, *flags]
        self._block = started(command, stderr=subprocess.PIPE, text=True, env=ENV, cwd=place)
        self.process = self._block.__enter__()
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.url = self._wait_for(r"listening on (http://[^\"]+)")
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        self._block.__exit__(None, None, None)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def _wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + 6000
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found.group(1)
            assert self.process.poll() is None, "".join(self.lines)
            time.sleep(0.05)
        raise AssertionError("the service does not listen: " + "".join(self.lines))


# One for all tests here, as it takes seconds to start; the last of them ends it.
@pytest.fixture(scope="module")
def service(place: Path, encoder: Retriever) -> Iterator[Service]:
    running = Service(place, "--port", "0", "--limits.reload_s", "0.1")
    yield running
    running.end()


def test_the_index_is_swapped_under_load_without_a_failed_request(
    place: Path, encoder: Retriever, service: Service
) -> None:
    before = {path.relative_to(place) for path in place.rglob("*")}
    stop, statuses, sizes = threading.Event(), [], set()

    def load(number: int) -> None:
        with httpx.Client(base_url=service.url, timeout=600) as http:
            while not stop.is_set():
                found = http.post("/search", json={"query": f"query {number}", "k": 50})
                product = http.get("/products/p60?k=2")
                statuses.extend([found.status_code, product.status_code])

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    with httpx.Client(base_url=service.url, timeout=600) as http:
        for count in (210, 220, 230, 240):
            drawn_index(encoder, count).save(place / "run" / "index", overwrite=True)
            deadline = time.monotonic() + 600
            while http.get(f"/products/p{count - 1}").status_code != 200 and time.monotonic() < deadline:
                time.sleep(0.02)
            sizes.add(http.get("/health").json()["products"])
            # However busy the machine is, each index answers some.
            answered = len(statuses) + 15
            while len(statuses) < answered and time.monotonic() < deadline:
                time.sleep(0.02)
        health = http.get("/health").json()
    stop.set()
    for thread in threads:
        thread.join()
    assert sizes == {210, 220, 230, 240} and len(statuses) > 50 and set(statuses) == {200}
    assert health["query_tower"]["vision_encoder"] is False and health["resident_mib"] > 0
    assert {path.relative_to(place) for path in place.rglob("*")} == before
    records = [json.loads(line) for line in service.lines if line.startswith("{")]
    assert sum(record.get("route") == "search" for record in records) == len(statuses) / 2
    assert sum("is served" in record.get("message", "") for record in records) == 4
    assert "no vision encoder; 200 products" in "".join(service.lines)


def test_requests_beyond_any_measure_leave_the_service_up(
    place: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, port = service.url.removeprefix("http://").split(":")

    def raw(data: bytes) -> bytes:
        with socket.create_connection((host, int(port)), timeout=600) as connection:
            connection.sendall(data)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65_536):
                    answer += part
            return answer

    end = b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert b"query: String should have at most 1000 characters" in raw(b"GET /search?query=" + b"x" * 100_000 + end)
    assert b" 200 " not in raw(b"GET /search?query=" + b"x" * 500_000 + end)
    assert b" 400 " in raw(b"\x16\x03\x01nonsense\r\n\r\n")
    with httpx.Client(base_url=service.url, timeout=600) as http:
        for number in range(len(ODD_IDS)):
            assert http.get("/search", params={"query": ODD_IDS[number] + "x"}).status_code == 200
    monkeypatch.setattr("mmfusion.serving.server.log_as_json", lambda: None)
    with pytest.raises(ValueError, match=rf"cannot listen on 127\.0\.0\.1:{port} "):
        command("serve")(str(place / "run"), port=int(port))


def test_what_has_begun_is_answered_before_the_service_ends(service: Service) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    body = json.dumps({"query": "red dress"}).encode()
    head = b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    with contextlib.ExitStack() as stack:
        begun = [stack.enter_context(socket.create_connection((host, int(port)), timeout=600)) for _ in range(24)]
        for connection in begun:
            connection.sendall(head + body[:-1])
        assert httpx.get(f"{service.url}/health").status_code == 200
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        for connection in begun:
            connection.sendall(body[-1:])
        answers = [connection.recv(64) for connection in begun]
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    # uvicorn ends by the signal itself once everything is answered.
    assert service.process.wait(60) in (0, -signal.SIGTERM)
