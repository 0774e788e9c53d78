"""Row 12 of docs/benchmarks/peers.md: the cost of one item at four times the size; by hand, e.g.

    python tests/benchmarks/growth.py --catalogue data/fpi --model outputs/stage2 --output outputs/peers

A ratio is the cost of an item at four times the size over its cost at the size, of one turn. The cost is CPU seconds
with children, less those of a start (a job with nothing to do; an import of a hundred rows), which would make larger
jobs look cheaper; for the loss it is the extra peak of memory with gradients. Parts run in turns, each size after the
other.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import process_time

import numpy as np
import torch
from embedding import first_products
from importing import KINDS, rows_of, run_import
from losses import Contender
from row_files import machine, write_row
from start import run

from mmfusion.data.qrels import Qrels

GROWTH = 4
Cost = Callable[[int], float]
"""Of a number of items."""


def embedding(catalogue: Path, model: str, work: Path) -> Cost:
    """CPU seconds of `mmfusion embed` less those of a start, by products."""

    def cost(products: int) -> float:
        folder, output = work / f"products_{products}", work / "embeddings"
        if not (folder / "products.parquet").is_file():
            first_products(catalogue, products, folder)
        shutil.rmtree(output, ignore_errors=True)
        command = [sys.executable, "-m", "mmfusion", "embed", "--catalogue", str(folder), "--base", model]
        command += ["--output", str(output), "--hardware.accelerator", "cpu"]
        # The same command again finds nothing to do.
        return run(command)[0] - run(command)[0]

    return cost


def importing(work: Path) -> Cost:
    """CPU seconds of `mmfusion import` of a CSV file less those of a start, by rows."""

    def source(rows: int) -> Path:
        folder = work / f"rows_{rows}"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            KINDS["csv"](folder, rows_of(rows, 0, 0))
        return folder

    def cost(rows: int) -> float:
        return run_import([str(source(rows))], work)[1] - run_import([str(source(100))], work)[1]

    return cost


def evaluation() -> Cost:
    """CPU seconds of `evaluate_rankings`, by queries over the same products."""
    from evaluation import JUDGED, draw, ours

    @cache
    def drawn(queries: int) -> tuple[np.ndarray, Qrels]:
        ranked, judged, grades = draw(queries)
        return ranked, Qrels(np.repeat(np.arange(queries), JUDGED), judged.ravel(), grades.ravel())

    def cost(queries: int) -> float:
        ranked, qrels = drawn(queries)
        ours(ranked, qrels)
        start = process_time()
        ours(ranked, qrels)
        return process_time() - start

    return cost


def loss_memory() -> Cost:
    """MiB of the contrastive loss with gradients, by pairs."""

    def cost(pairs: int) -> float:
        with Contender("contrastive", pairs) as contender:
            return contender.repetition()["peak"]

    return cost


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--catalogue", type=Path, required=True, help="folder of a catalogue with photos")
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--output", type=Path, default=Path("outputs/peers"), help="folder of row12.json")
    parser.add_argument("--products", type=int, default=1_000)
    parser.add_argument("--pairs", type=int, default=4_096)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    measured_on, work = machine(), (options.output / "growth").absolute()
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    sizes: dict[str, tuple[int, Cost]] = {
        f"evaluation, from {options.queries:,} queries": (options.queries, evaluation()),
        f"loss memory, from {options.pairs:,} pairs": (options.pairs, loss_memory()),
        f"import, from {options.rows:,} rows": (options.rows, importing(work)),
        f"embedding, from {options.products:,} products": (
            options.products,
            embedding(options.catalogue, options.model, work),
        ),
    }
    ratios, costs = {}, {}
    for name, (items, cost) in sizes.items():
        turns = [[cost(size) for size in (items, GROWTH * items)] for _ in range(options.turns)]
        costs[name] = turns
        ratios[name] = [large / small / GROWTH for small, large in turns]
        least, middle, most = np.quantile(ratios[name], [0, 0.5, 1])
        print(f"{name}: {middle:.3f} ({least:.3f} to {most:.3f}) of the cost of an item", flush=True)
    write_row(
        options.output,
        12,
        what=f"the cost of an item at {GROWTH} times the size",
        beside="the size",
        target=1.05,
        ratios=ratios,
        packages=("torch", "numpy", "pyarrow", "transformers"),
        measured_on=measured_on,
        settings={"turns": options.turns, "threads": 1},
        costs=costs,
    )


if __name__ == "__main__":
    main()
