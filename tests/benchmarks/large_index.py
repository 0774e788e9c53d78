"""What an index of millions of products costs beside its vectors: python tests/benchmarks/large_index.py --help

Ids, titles, prices and weights of drawn products (synthetic) with short drawn vectors, so that ids and metadata are
what is measured. The index is built in one process, and loaded, searched and changed in another. Writes large-index.md.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmfusion.retrieval import ProductIndex

MODEL, BLOCK = "benchmark", 500_000


def titles(count: int) -> pa.ChunkedArray:
    """Titles of 50 to 60 characters."""
    blocks = (range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))
    return pa.chunked_array(
        [pa.array([f"Product number {row:,}, in red or blue cotton, size M" for row in block]) for block in blocks]
    )


def build(folder: Path, count: int, dimension: int, factory: str) -> None:
    """Draws and saves an index."""
    vectors = np.random.default_rng(0).standard_normal((count, dimension), dtype=np.float32)
    ProductIndex.build(
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        [f"sku-{row:010d}" for row in range(count)],
        model_fingerprint=MODEL,
        metadata=pa.table({"title": titles(count), "price": np.arange(count) % 1000}),
        modality_weights=np.full((count, 2), 0.5, np.float32),
        factory=factory,
        search_parameters="nprobe=8",
    ).save(folder / "index", overwrite=True)


def use(folder: Path, count: int, dimension: int) -> list[tuple[str, float, float]]:
    """Seconds of each act, and anonymous MiB after it."""
    queries = np.random.default_rng(1).standard_normal((20, dimension)).astype(np.float32)
    rows: list[tuple[str, float, float]] = [("start of Python", 0.0, anonymous_mib())]

    def timed(what: str, act: Callable[[], Any], times: int = 1) -> Any:
        start = time.perf_counter()
        found = [act() for _ in range(times)]
        rows.append((what, (time.perf_counter() - start) / times, anonymous_mib()))
        return found[0]

    def new(name: str) -> None:
        metadata = pa.table({"title": ["new"], "price": [1]})
        weights = np.full((1, 2), 0.5, np.float32)
        index.update(queries[:1], [name], model_fingerprint=MODEL, metadata=metadata, modality_weights=weights)

    index = timed("load, memory-mapped", lambda: ProductIndex.load(folder / "index"))
    timed("sort the ids, once", index.prepare_ids)
    timed("first product by id", lambda: index.product(f"sku-{count // 2:010d}"))
    timed("a product by id", lambda: index.product(f"sku-{count // 3:010d}"), 20)
    turn = iter(np.resize(np.arange(20), 1000))
    timed("first search for 100 products", lambda: index.search(queries[:1], 100))
    timed("a search for 100 products", lambda: index.search(queries[[next(turn)]], 100), 20)
    cheap = [("price", "<", 50)]
    timed("a search with a filter that 5 % pass", lambda: index.search(queries[[next(turn)]], 100, filter=cheap), 20)
    timed("delete a product", lambda: index.delete(["sku-0000000007"]))
    timed("add a product", lambda: new("one more"))
    timed("replace a product", lambda: new("sku-0000000009"))
    timed("a search after these changes", lambda: index.search(queries[[next(turn)]], 100), 20)
    timed("save what has changed", lambda: index.save(folder / "changed", overwrite=True))
    return rows


def anonymous_mib() -> float:
    """Memory of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--products", type=int, default=10_000_000)
    parser.add_argument("--dimension", type=int, default=16, help="of the drawn vectors")
    parser.add_argument("--factory", default="IVF4096,SQ8", help="FAISS factory string")
    parser.add_argument("--step", choices=["build"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "build":
        build(options.output, options.products, options.dimension, options.factory)
        return
    subprocess.run([sys.executable, *sys.argv, "--step", "build"], check=True)
    size = sum(path.stat().st_size for path in (options.output / "index").iterdir()) / 2**20
    lines = [
        f"# An index of {options.products:,} synthetic products",
        "",
        f"`{' '.join(['python tests/benchmarks/large_index.py', *map(shlex.quote, sys.argv[1:])])}`",
        "",
        f"{options.factory} of dimension {options.dimension}; {size:,.0f} MiB on disk, of which products.arrow is "
        f"{(options.output / 'index' / 'products.arrow').stat().st_size / 2**20:,.0f} MiB.",
        "",
        "| | seconds | anonymous memory afterwards, MiB |",
        "|---|---|---|",
        *(
            f"| {what} | {seconds:.4f} | {mib:,.0f} |"
            for what, seconds, mib in use(options.output, options.products, options.dimension)
        ),
    ]
    text = "\n".join(lines) + "\n"
    (options.output / "large-index.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
