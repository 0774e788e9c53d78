"""The search service under load, from one client to more than it can serve; by hand, e.g.

    python tests/benchmarks/serving.py --index outputs/index --catalogue data/catalogue --output outputs/benchmark

Runs recipes/serve.py in a process of its own and asks it over HTTP, client and service on the same cores:

1. growing concurrency, in a closed loop: each client sends its next request when it has the answer to the one before;
2. twice as many clients as may wait: what is answered, and what is refused with 503;
3. eight clients again: whether it has recovered;
4. eight clients while the index is replaced several times.

Writes serving-benchmark.md, .json and .png.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
import pyarrow.parquet as pq

from mmfusion.retrieval import ProductIndex

CHECKOUT = Path(__file__).resolve().parents[2]
NAME = "serving-benchmark"
FEW = 8


@contextmanager
def service(options: argparse.Namespace, *flags: str, checkout: Path = CHECKOUT) -> Iterator[str]:
    """The URL of a running service, whose log goes to a file."""
    command = [sys.executable, str(checkout / "recipes" / "serve.py"), "--index", str(options.index), "--port", "0"]
    command += ["--limits.reload_s", "0.5", "--limits.max_waiting", str(options.max_waiting), *flags]
    path = options.output / "serve.log"
    with path.open("w") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "PYTHONPATH": str(checkout)})
    try:
        while not (found := re.search(r"listening on (http://[^\"]+)", path.read_text())):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended:\n{path.read_text()}")
            time.sleep(0.1)
        yield found.group(1)
    finally:
        process.terminate()
        process.wait(60)


class Connection:
    """A connection that is kept, which costs the shared cores less than a whole HTTP client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, url: str) -> "Connection":
        host, port = url.removeprefix("http://").split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def search(self, query: str) -> int:
        """Asks for 100 products, reads the answer, and returns its status."""
        target = urlencode({"query": query, "k": 100})
        self.writer.write(f"GET /search?{target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        await self.reader.readexactly(int(length[1]))
        return int(head.split(b" ", 2)[1])


async def load(url: str, queries: list[str], clients: int, requests: int) -> dict[str, Any]:
    """Sends requests from so many clients at a time; one that gets 503 does as it is told, and waits a second."""
    texts, left = cycle(queries), iter(range(requests))
    seconds: list[float] = []
    statuses: Counter[str] = Counter()

    async def client() -> None:
        connection = await Connection.to(url)
        for _ in left:
            start = time.perf_counter()
            status = await connection.search(next(texts))
            statuses[str(status)] += 1
            if status == 200:
                seconds.append(time.perf_counter() - start)
            if status == 503:
                await asyncio.sleep(1)
        connection.writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    wall = time.perf_counter() - start
    return {
        "clients": clients,
        "requests": requests,
        "statuses": dict(statuses),
        "per_second": len(seconds) / wall,
        "p50_ms": 1000 * float(np.percentile(seconds, 50)),
        "p95_ms": 1000 * float(np.percentile(seconds, 95)),
        "p99_ms": 1000 * float(np.percentile(seconds, 99)),
    }


async def load_while_swapping(url: str, queries: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Load while the index is replaced, time and again, by one without its last products."""
    folder = options.index / "index"
    running = asyncio.create_task(load(url, queries, FEW, options.requests))
    swaps = 0
    index = await asyncio.to_thread(ProductIndex.load, folder, memory_map=False)
    try:
        while not running.done():
            smaller = await asyncio.to_thread(ProductIndex.load, folder, memory_map=False)
            smaller.delete(smaller.product_ids[-1:])
            await asyncio.to_thread(smaller.save, folder, overwrite=True)
            swaps += await _seen(url, len(smaller))
    finally:
        await asyncio.to_thread(index.save, folder, overwrite=True)
    return {**await running, "swaps": swaps}


async def _seen(url: str, products: int) -> int:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        for _ in range(100):
            if (await http.get("/health")).json()["products"] == products:
                return 1
            await asyncio.sleep(0.1)
    return 0


async def measure(url: str, queries: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """All of it, one after the other."""
    await load(url, queries, FEW, 200)
    growing = []
    for clients in options.clients:
        print(f"{clients} clients", file=sys.stderr, flush=True)
        growing.append(await load(url, queries, clients, options.requests))
    print("beyond what may wait", file=sys.stderr, flush=True)
    beyond = await load(url, queries, 2 * (options.max_waiting + 32), 2 * options.requests)
    recovered = await load(url, queries, FEW, options.requests)
    print("replacing the index", file=sys.stderr, flush=True)
    swapping = await load_while_swapping(url, queries, options)
    health = httpx.get(f"{url}/health").json()
    return {"growing": growing, "beyond": beyond, "recovered": recovered, "swapping": swapping, "health": health}


def page(results: dict[str, Any], options: argparse.Namespace) -> str:
    """The results in Markdown."""
    health, rows = results["health"], []
    for what, one in labelled(results):
        statuses = ", ".join(f"{count:,} x {status}" for status, count in sorted(one["statuses"].items()))
        numbers = " | ".join(f"{one[name]:.0f}" for name in ("per_second", "p50_ms", "p95_ms", "p99_ms"))
        rows.append(f"| {what} | {one['clients']} | {statuses} | {numbers} |")
    lines = [
        "# The search service under load",
        "",
        f"`{results['command']}`",
        "",
        f"{results['machine']} Client and service share the cores. {health['products']:,} products, "
        f"{health['index']['kind']} of dimension {health['index']['dimension']}; k = 100 with metadata; real "
        f"queries; {options.requests:,} requests a row, twice that beyond what may wait; {options.max_waiting} may "
        "wait, 32 are computed together.",
        "",
        "| | clients | answers | answered a second | p50 ms | p95 ms | p99 ms |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"The index was replaced {results['swapping']['swaps']} times in the last row, by one with a product less. In "
        f"memory at the end: {health['resident_mib']:,.0f} MiB resident, of which the query tower's weights are "
        f"{health['query_tower']['mib']:,.1f} MiB; the vision encoder is "
        f"{'loaded' if health['query_tower']['vision_encoder'] else 'not loaded'}.",
        "",
        f"![throughput and latency by clients]({NAME}.png)",
        "",
    ]
    return "\n".join(lines)


def labelled(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Rows of the table with what they are."""
    rows = [("growing", one) for one in results["growing"]]
    more = [
        ("beyond what may wait", "beyond"),
        ("afterwards", "recovered"),
        ("while the index is replaced", "swapping"),
    ]
    return [*rows, *((what, results[name]) for what, name in more)]


def plot(growing: list[dict[str, Any]], path: Path) -> None:
    """Throughput and latency by the number of clients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    clients = [one["clients"] for one in growing]
    left.plot(clients, [one["per_second"] for one in growing], marker="o")
    left.set(xscale="log", xlabel="clients", ylabel="answers a second", ylim=(0, None), title="Throughput")
    for name, label in (("p50_ms", "median"), ("p95_ms", "95 %"), ("p99_ms", "99 %")):
        right.plot(clients, [one[name] for one in growing], marker="o", label=label)
    right.set(xscale="log", yscale="log", xlabel="clients", ylabel="ms", title="Latency")
    right.legend()
    lowest, highest = right.get_ylim()
    ticks = [tick for power in (1, 10, 100, 1000) for tick in (power, 2 * power, 5 * power) if lowest < tick < highest]
    right.set_yticks(ticks, [str(tick) for tick in ticks])
    for axes in (left, right):
        axes.set_xticks(clients, [str(one) for one in clients])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", type=Path, required=True, help="folder that recipes/index.py wrote")
    parser.add_argument("--catalogue", type=Path, required=True, help="folder of a catalogue, for its queries")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--requests", type=int, default=2000, help="requests in each row")
    parser.add_argument("--max_waiting", type=int, default=256, help="limit of the service")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    queries = pq.read_table(options.catalogue / "queries.parquet").column("query").to_pylist()
    with service(options) as url:
        results = asyncio.run(measure(url, [text for text in queries if text.strip()], options))
    results["command"] = " ".join(["python tests/benchmarks/serving.py", *map(shlex.quote, sys.argv[1:])])
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    results["machine"] = f"{os.cpu_count()} CPU cores, {gib:.0f} GiB, Python {platform.python_version()}."
    (options.output / f"{NAME}.json").write_text(json.dumps(results, indent=1))
    text = page(results, options)
    (options.output / f"{NAME}.md").write_text(text)
    plot(results["growing"], options.output / f"{NAME}.png")
    print(text)


if __name__ == "__main__":
    main()
