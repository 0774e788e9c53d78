"""What an embedding job costs beside its forward pass, and whether its memory grows; by hand, e.g.

    python tests/benchmarks/embedding.py --catalogue data/catalogue --model outputs/stage2 --output outputs/benchmark

1. Pipeline efficiency: recipes/embed.py from its first line to its manifest (start of Python, loading, reading,
   digests, decoding, forward pass, writing), beside a bare loop of the same forward passes over the same batches,
   decoded beforehand. Both in processes of their own, in turns; the ratio is that of products per second. A start
   costs what the recipe takes when there is nothing to embed any more, whatever the number of products.
2. Memory: the same recipe on the first products of the catalogue and on all of it. Resident memory is sampled twice a
   second; beside it what is anonymous, as pages of memory-mapped files count as resident and can be taken away.

Writes embedding-benchmark.md, .json and .png; a part whose results are there already is not run again.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

CHECKOUT = Path(__file__).resolve().parents[2]
NAME = "embedding-benchmark"


def first_products(catalogue: Path, count: int, folder: Path) -> Path:
    """A catalogue of the first products of another one, which has the table `products` alone."""
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(catalogue.glob("products*.parquet"))
    parts, found = [], 0
    for file in files:
        parts.append(pq.read_table(file))
        found += len(parts[-1])
        if found >= count:
            break
    pq.write_table(_joined(parts).slice(0, count), folder / "products.parquet")
    return folder


def _joined(parts: list[Any]) -> Any:
    import pyarrow as pa

    return pa.concat_tables(parts)


class Memory:
    """Resident and anonymous MiB of a process, sampled twice a second."""

    def __init__(self, pid: int) -> None:
        self.pid, self.samples, self.start = pid, [], time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    samples: list[tuple[float, float, float]]

    def _sample(self) -> None:
        while not self._stop.wait(0.5):
            try:
                text = Path(f"/proc/{self.pid}/status").read_text()
            except OSError:
                return
            fields = dict(line.split(":", 1) for line in text.splitlines())
            if "VmRSS" in fields:
                mib = [int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")]
                self.samples.append((round(time.perf_counter() - self.start, 1), *(round(one, 1) for one in mib)))

    def stop(self) -> list[tuple[float, float, float]]:
        self._stop.set()
        self._thread.join()
        return self.samples


def embed(catalogue: Path, output: Path, options: argparse.Namespace, *, anew: bool = True) -> dict[str, Any]:
    """Runs the recipe in a process of its own."""
    if anew:
        shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, str(CHECKOUT / "recipes" / "embed.py"), "--catalogue", str(catalogue)]
    command += ["--base", str(options.model), "--output", str(output), "--batch_size", str(options.batch_size)]
    command += ["--hardware.num_workers", str(options.num_workers), "--hardware.accelerator", "cpu"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT)
    memory = Memory(process.pid)
    _, errors = process.communicate()
    seconds = time.perf_counter() - start
    samples = memory.stop()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors}")
    rows = json.loads((output / "manifest.json").read_text())["rows"]
    return {"products": rows, "seconds": seconds, "samples": samples}


def bare_loop(catalogue: Path, folder: Path, model_folder: str, batch_size: int) -> dict[str, float]:
    """Seconds of the forward passes alone, over batches that are decoded already."""
    import torch

    from mmfusion.data.catalogue import Catalogue
    from mmfusion.data.tables import ProductTable, text_lengths
    from mmfusion.embedding import EmbeddingSettings
    from mmfusion.embedding.content import content_digests
    from mmfusion.embedding.job import shard_batches
    from mmfusion.training import load_base

    model, processor = load_base(model_folder)
    model.eval()
    products = Catalogue.load_products(str(catalogue), cache_dir=folder / "cache")
    rows = products.product_rows(None)
    size = EmbeddingSettings("float32").shard_size
    shards = [rows[start : start + size] for start in range(0, len(rows), size)]
    lengths = text_lengths(products, processor.template_columns)
    table = ProductTable(products, processor)
    parts = [
        part
        for shard in shards
        for part in shard_batches(table, shard, content_digests(table, shard), lengths, batch_size)
    ]
    batches = [table[part.rows] for part in parts]
    for batch in batches:
        batch.pop("product_rows")
    with torch.inference_mode():
        model(**batches[0])
        start = time.perf_counter()
        for batch in batches:
            model(**batch)
        return {"products": len(rows), "seconds": time.perf_counter() - start}


def efficiency(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both, in turns."""
    scratch = options.output / "work"
    catalogue = first_products(options.catalogue, options.products, scratch / "first")
    found: dict[str, Any] = {"products": options.products, "recipe": [], "again": [], "bare": []}
    for turn in range(options.turns):
        show(f"efficiency: turn {turn + 1} of {options.turns}")
        found["recipe"].append(embed(catalogue, scratch / "embeddings", options)["seconds"])
        found["again"].append(embed(catalogue, scratch / "embeddings", options, anew=False)["seconds"])
        cell = [sys.executable, __file__, "--cell", str(catalogue), str(scratch), str(options.model)]
        done = subprocess.run([*cell, str(options.batch_size)], capture_output=True, text=True, check=True)
        found["bare"].append(json.loads(done.stdout.splitlines()[-1])["seconds"])
    return found


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Samples of memory for the first products and for all of them."""
    catalogue = first_products(options.catalogue, options.few, options.output / "work" / "few")
    show(f"memory: {options.few:,} products")
    few = embed(catalogue, options.output / "work" / "embeddings-few", options)
    show("memory: the whole catalogue")
    return {"few": few, "all": embed(options.catalogue, options.output / "embeddings", options)}


def page(results: dict[str, Any], options: argparse.Namespace) -> str:
    """The results in Markdown."""
    sides = results["efficiency"]
    number = sides["products"]
    turns = list(zip(sides["bare"], sides["recipe"], sides["again"], strict=True))
    ratios = sorted(bare / recipe for bare, recipe, _ in turns)
    without_start = sorted(bare / (recipe - again) for bare, recipe, again in turns)
    lines = [
        "# Embedding a catalogue: what the job costs beside its forward pass",
        "",
        f"`{options.command}`",
        "",
        results["machine"],
        "",
        f"## Pipeline efficiency, {number:,} products, {len(ratios)} turns",
        "",
        "| | products/s, median | all turns |",
        "|---|---|---|",
        _rates("recipes/embed.py, start of Python to manifest", number, sides["recipe"]),
        _rates("bare loop over decoded batches", number, sides["bare"]),
        "",
        f"Ratio of a turn: median {median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}. A start, the recipe with "
        f"nothing to embed, takes {median(sides['again']):.1f} s; without it the ratio is {median(without_start):.2f}, "
        f"{without_start[0]:.2f} to {without_start[-1]:.2f}.",
        "",
        "## Memory",
        "",
        "| products | seconds | products/s | peak resident, MiB | peak anonymous, MiB |",
        "|---|---|---|---|---|",
    ]
    for one in results["memory"].values():
        peaks = [max(sample[column] for sample in one["samples"]) for column in (1, 2)]
        rate = one["products"] / one["seconds"]
        lines.append(f"| {one['products']:,} | {one['seconds']:.0f} | {rate:.1f} | {peaks[0]:,.0f} | {peaks[1]:,.0f} |")
    return "\n".join([*lines, "", f"![resident and anonymous memory over time]({NAME}.png)", ""])


def _rates(what: str, number: int, seconds: list[float]) -> str:
    rates = [number / one for one in seconds]
    return f"| {what} | {median(rates):.1f} | {', '.join(f'{one:.1f}' for one in rates)} |"


def plot(found: dict[str, Any], path: Path) -> None:
    """Memory over the share of the job."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for one, colour in zip(found.values(), ("tab:blue", "tab:orange"), strict=True):
        seconds, resident, anonymous = zip(*one["samples"], strict=True)
        share = [100 * second / seconds[-1] for second in seconds]
        axes.plot(share, resident, color=colour, label=f"{one['products']:,} products: resident")
        axes.plot(share, anonymous, color=colour, linestyle=":", label=f"{one['products']:,} products: anonymous")
    axes.set(xlabel="per cent of the job's time", ylabel="MiB", ylim=(0, None), title="Memory of recipes/embed.py")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def machine() -> str:
    """What it ran on."""
    import os
    import platform

    import torch

    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{os.cpu_count()} CPU cores, {gib:.0f} GiB, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads."
    )


def show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--catalogue", type=Path, required=True, help="folder of a catalogue")
    parser.add_argument("--model", required=True, help="folder or Hub id of the model")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--products", type=int, default=2000, help="of which efficiency is measured")
    parser.add_argument("--turns", type=int, default=3, help="times that both are run for efficiency")
    parser.add_argument("--few", type=int, default=4000, help="products beside the whole catalogue, for memory")
    parser.add_argument("--batch_size", type=int, default=64, help="products per forward pass")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode photos")
    parser.add_argument("--parts", nargs="+", default=["efficiency", "memory"], choices=["efficiency", "memory"])
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    options.command = " ".join(["python tests/benchmarks/embedding.py", *map(shlex.quote, sys.argv[1:])])
    path = options.output / f"{NAME}.json"
    results = json.loads(path.read_text()) if path.is_file() else {"machine": machine()}
    parts: dict[str, Callable[[argparse.Namespace], Any]] = {"efficiency": efficiency, "memory": memory}
    for name in options.parts:
        if name not in results:
            results[name] = parts[name](options)
            path.write_text(json.dumps(results))
    if all(name in results for name in parts):
        text = page(results, options)
        (options.output / f"{NAME}.md").write_text(text)
        plot(results["memory"], options.output / f"{NAME}.png")
        print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        print(json.dumps(bare_loop(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))))
    else:
        main()
