"""What the search page costs: requests a second with and without it, its weight, and the time to the first result.

    python tests/benchmarks/search_page.py --index outputs/index --queries queries.parquet --output outputs/page

1. Eight clients ask for JSON, in a closed loop: of a service with the page, of one with `--page false`, and (with
   `--before`) of an earlier checkout; one after the other, in several rounds. Client and service share the cores.
2. Chromium opens a search, with nothing kept from before, and each time with small photos that are there already; the
   first time they have to be made.

Each row is kept in search-page.json when it is measured, and not measured again. Writes search-page.md.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
from serving import CHECKOUT, FEW, load, service

NAME = "search-page"
ADDRESS = "/?query=red+floral+summer+dress&compare=0"
KINDS = {"document": "page", "stylesheet": "page", "script": "page", "fetch": "answers", "image": "photos"}


def measure_requests(options: argparse.Namespace, flags: list[str], checkout: Path) -> dict[str, Any]:
    """Requests a second of a service, and the processor's time that it took for each."""
    queries = pq.read_table(options.queries).column("query").to_pylist()
    with service(options, *flags, checkout=checkout) as url:
        asyncio.run(load(url, queries, FEW, 200))
        before = cpu_seconds(url)
        row = asyncio.run(load(url, queries, FEW, options.requests))
        return {**row, "cpu_ms": 1000 * (cpu_seconds(url) - before) / options.requests}


def cpu_seconds(url: str) -> float:
    """What a service has taken of the processor's time, which says more than the clock on a machine that is busy."""
    (line,) = re.findall(r"^process_cpu_seconds_total (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(line)


def measure_page(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Bytes and times of several visits, the first one with photos that have to be made."""
    from playwright.sync_api import sync_playwright

    found: list[dict[str, Any]] = []
    shutil.rmtree(options.index / "thumbnails", ignore_errors=True)
    with service(options) as url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(options.visits):
            context = chromium.new_context(viewport={"width": 1280, "height": 800})
            page = context.new_page()
            sizes: dict[str, int] = dict.fromkeys(KINDS.values(), 0)

            def count(request: Any, sizes: dict[str, int] = sizes) -> None:
                kind = "page" if request.url.endswith("icon.svg") else KINDS.get(request.resource_type, "page")
                got = request.sizes()
                sizes[kind] += got["responseBodySize"] + got["responseHeadersSize"]

            page.on("requestfinished", count)
            page.goto(url + ADDRESS)
            page.wait_for_selector(".card")
            page.wait_for_load_state("networkidle")
            times = page.evaluate(
                "({shown: performance.getEntriesByName('shown')[0].startTime, paint: "
                "performance.getEntriesByName('first-contentful-paint')[0].startTime, photos: Math.max(0, "
                "...performance.getEntriesByType('resource').filter((one) => one.name.includes('/photos/'))"
                ".map((one) => one.responseEnd))})"
            )
            found.append({**{f"{kind}_bytes": size for kind, size in sizes.items()}, **times})
            context.close()
        chromium.close()
    return found


def tables(rows: dict[str, Any], options: argparse.Namespace) -> str:
    """The results in Markdown."""
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    command = " ".join(["python tests/benchmarks/search_page.py", *map(shlex.quote, sys.argv[1:])])
    lines = [
        "# The search page",
        "",
        f"`{command}`",
        "",
        f"{os.cpu_count()} CPU cores, {gib:.0f} GiB, Python {platform.python_version()}. Client, browser and service "
        f"share the cores; load average {os.getloadavg()[2]:.0f} at the end. {options.requests:,} requests a row "
        f"for 100 products each, {FEW} clients; medians of {options.rounds} interleaved rounds, lowest and highest.",
        "",
        "| service | answers a second | ratio to the page | p50 ms | CPU ms an answer | ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    page = [rows[f"with the page {number}"] for number in range(options.rounds)]
    for name in _variants(options):
        all_of = [rows[f"{name} {number}"] for number in range(options.rounds)]
        cells = []
        for key, digits in (("per_second", 0), ("cpu_ms", 2)):
            values = [one[key] for one in all_of]
            spread = f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"
            ratio = statistics.median(mine[key] / theirs[key] for mine, theirs in zip(all_of, page, strict=True))
            cells.append(f"{spread} | {ratio:.3f}")
        p50 = statistics.median(one["p50_ms"] for one in all_of)
        lines.append(f"| {name} | {cells[0]} | {p50:.0f} | {cells[1]} |")
    first, *later = rows["visits"]
    lines += [
        "",
        f"A visit with an empty cache, 1280 x 800, 24 products: the first, for which photos are made, and the median "
        f"of {len(later)} later ones. Times are from the beginning of the navigation.",
        "",
        "| | first visit | later visits |",
        "|---|---:|---:|",
    ]
    units = {
        "page_bytes": "the page itself, kB sent",
        "answers_bytes": "settings and answer, kB",
        "photos_bytes": "photos, kB",
    }
    times = {"paint": "first paint, ms", "shown": "products shown, ms", "photos": "all photos in sight there, ms"}
    for key, text in {**units, **times}.items():
        scale = 1000 if key in units else 1
        median = statistics.median(one[key] for one in later)
        lines.append(f"| {text} | {first[key] / scale:,.1f} | {median / scale:,.1f} |")
    return "\n".join([*lines, ""])


def _variants(options: argparse.Namespace) -> dict[str, tuple[list[str], Path]]:
    variants = {"with the page": ([], CHECKOUT), "--page false": (["--page", "false"], CHECKOUT)}
    return variants if options.before is None else {**variants, "before the page": ([], options.before)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", type=Path, required=True, help="folder that recipes/index.py wrote")
    parser.add_argument("--queries", type=Path, required=True, help="Parquet file with a column query")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--before", type=Path, help="checkout of an earlier version, to compare with")
    parser.add_argument("--requests", type=int, default=2000, help="requests in each row")
    parser.add_argument("--rounds", type=int, default=5, help="rows of each service")
    parser.add_argument("--visits", type=int, default=6, help="visits of the page")
    parser.add_argument("--max_waiting", type=int, default=256, help="limit of the service")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{NAME}.json"
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep(name: str, measure: Callable[[], Any]) -> None:
        if name not in rows:
            print(name, file=sys.stderr, flush=True)
            rows[name] = measure()
            path.write_text(json.dumps(rows, indent=1))

    for number in range(options.rounds):
        for name, (flags, checkout) in _variants(options).items():
            keep(f"{name} {number}", lambda flags=flags, checkout=checkout: measure_requests(options, flags, checkout))
    keep("visits", lambda: measure_page(options))
    text = tables(rows, options)
    (options.output / f"{NAME}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
