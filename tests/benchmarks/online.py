"""What a query costs, from text to its 100 best products; by hand: python tests/benchmarks/online.py --help

Two comparisons, both on one machine and with the same threads. First the whole way (tokens, vector, FAISS, hits) for a
text-only and a fused model of equal dimension, and for the text-only one loaded a second time: the control says what
the machine's noise alone does to the ratio. Then the vector alone by PyTorch and by ONNX Runtime, one query at a time
and in batches. Each query goes through all ways in an order that is drawn anew, several times. A ratio is that of the
medians over queries of each query's median over rounds, with a 95 % interval from resampling queries in pairs.

Without embeddings the indexes hold random unit vectors: search takes as long as with real ones, and hits mean nothing.
"""

import argparse
import gc
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import faiss
import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from row_files import machine, write_row

from mmfusion.embedding import EmbeddedCatalogue
from mmfusion.evaluation.tables import markdown_table as table
from mmfusion.onnx import OnnxQueryTower, export_query_tower
from mmfusion.retrieval import ProductIndex, Searcher
from mmfusion.retrieval.query_tower import load_query_tower
from mmfusion.retriever import Retriever

PLACES, RESAMPLES, WARM_UP, FEWEST_BATCHES = 100, 10_000, 20, 40
TEXT_ONLY, FUSED, CONTROL = "text only", "fused", "text only, again"
PYTORCH, ONNX = "PyTorch", "ONNX Runtime"

Texts = list[str]
Times = dict[str, np.ndarray]


@dataclass(frozen=True)
class Ratio:
    """`first` / `second` of medians in milliseconds, with the ends of its 95 % interval."""

    what: str
    first: str
    second: str
    first_ms: float
    second_ms: float
    ratio: float
    low: float
    high: float


def interleave(ways: dict[str, Callable[[Texts], Any]], batches: Sequence[Texts], rounds: int, seed: int) -> Times:
    """Milliseconds (rounds, batches) of each way: every batch goes through all of them in an order of its own."""
    rng, names = np.random.default_rng(seed), list(ways)
    for name in names:
        for batch in batches[:WARM_UP]:
            ways[name](batch)
    times = {name: np.empty((rounds, len(batches))) for name in names}
    for turn in range(rounds):
        gc.collect()
        for place in rng.permutation(len(batches)):
            for name in rng.permutation(names):
                start = perf_counter_ns()
                ways[name](batches[place])
                times[name][turn, place] = (perf_counter_ns() - start) / 1e6
    return times


def ratio_of_medians(what: str, times: Times, first: str, second: str, seed: int = 0) -> Ratio:
    """The ratio with its paired bootstrap interval over queries (or batches)."""
    own = {name: np.median(times[name], axis=0) for name in (first, second)}
    draws = np.random.default_rng(seed).integers(len(own[first]), size=(RESAMPLES, len(own[first])))
    resampled = np.median(own[first][draws], axis=1) / np.median(own[second][draws], axis=1)
    medians = [float(np.median(own[name])) for name in (first, second)]
    low, high = (float(end) for end in np.quantile(resampled, [0.025, 0.975]))
    return Ratio(what, first, second, *medians, medians[0] / medians[1], low, high)


def build_index(
    products: pa.Table, encoder: Retriever, embeddings: Path | None, factory: str, seed: int
) -> ProductIndex:
    """An index of the products' stored vectors, or of random ones of the same width."""
    fingerprint, weights = encoder.fingerprint, np.full((len(products), 2), 0.5, np.float32)
    vectors: Any = None
    if embeddings is None:
        vectors = np.random.default_rng(seed).standard_normal((len(products), encoder.dimension), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    else:
        stored = EmbeddedCatalogue.open(embeddings)
        ids = products.column("product_id").combine_chunks()
        products = products.take(pc.index_in(stored.column("product_id"), value_set=ids))
        fingerprint, weights = stored.manifest.provenance.model_fingerprint, stored.modality_weights()
        vectors = stored.vectors()
    return ProductIndex.build(
        vectors,
        products.column("product_id").to_pylist(),
        model_fingerprint=fingerprint,
        metadata=products.drop_columns(["product_id"]),
        modality_weights=weights,
        factory=factory,
    )


def draw_batches(texts: Texts, size: int, seed: int) -> list[Texts]:
    """Every text by itself, or batches of different texts: as many as there are texts for, and enough to resample."""
    if size == 1:
        return [[text] for text in texts]
    rng = np.random.default_rng(seed)
    return [rng.choice(texts, size, replace=False).tolist() for _ in range(max(FEWEST_BATCHES, len(texts) // size))]


def measure_search(options: argparse.Namespace, queries: Texts, products: pa.Table) -> tuple[Times, list[Ratio]]:
    """The whole way with both models, and the control."""
    given = {TEXT_ONLY: options.text_only, FUSED: options.fused, CONTROL: options.text_only}
    encoders = {name: Retriever(*load_query_tower(folder)) for name, folder in given.items()}
    sizes = {name: encoder.dimension for name, encoder in encoders.items()}
    if len(set(sizes.values())) > 1:
        raise SystemExit(f"the models have vectors of different dimensions: {sizes}; give two of equal dimension")
    stored = dict(zip((TEXT_ONLY, FUSED), options.embeddings or (None, None), strict=True))
    stored[CONTROL] = stored[TEXT_ONLY]
    searchers = {
        name: Searcher(encoder, build_index(products, encoder, stored[name], options.factory, options.seed))
        for name, encoder in encoders.items()
    }
    ways = {name: lambda texts, own=own: own.search(texts, PLACES) for name, own in searchers.items()}
    times = interleave(ways, draw_batches(queries, 1, options.seed), options.rounds, options.seed)
    what = f"query → top-{PLACES}"
    return times, [ratio_of_medians(what, times, name, TEXT_ONLY) for name in (FUSED, CONTROL)]


def measure_encoders(options: argparse.Namespace, queries: Texts) -> tuple[dict[str, Times], list[Ratio]]:
    """PyTorch beside ONNX Runtime, for the query tower of the fused model."""
    model, processor = load_query_tower(options.fused)
    export_query_tower(model, processor, options.output / "onnx")
    exported = OnnxQueryTower.load(options.output / "onnx", threads=options.threads)
    ways = {ONNX: exported.encode_queries, PYTORCH: Retriever(model, processor).encode_queries}
    times, ratios = {}, []
    for size in options.batch_sizes:
        what = f"text → vector, batch {size}"
        times[what] = interleave(ways, draw_batches(queries, size, options.seed), options.rounds, options.seed)
        ratios.append(ratio_of_medians(what, times[what], ONNX, PYTORCH))
    return times, ratios


def as_markdown(ratios: Sequence[Ratio], times: dict[str, Times], facts: dict[str, Any]) -> str:
    """The command, what was measured on, the ratios, and the spread of all calls."""
    head = ["", "ratio of", "first, ms", "second, ms", "ratio of medians", "95 % interval"]
    rows = [
        [
            *(one.what, f"{one.first} / {one.second}", f"{one.first_ms:.2f}", f"{one.second_ms:.2f}"),
            *(f"{one.ratio:.3f}", f"[{one.low:.3f}, {one.high:.3f}]"),
        ]
        for one in ratios
    ]
    spread = [
        [what, name, *(f"{value:.2f}" for value in np.percentile(values, [50, 90, 99]))]
        for what, own in times.items()
        for name, values in own.items()
    ]
    measured_on = ", ".join(f"{name} {value}" for name, value in facts.items())
    command = shlex.join(["python", "tests/benchmarks/online.py", *sys.argv[1:]])
    tables = [table([head, *rows]), table([["", "way", "p50, ms", "p90, ms", "p99, ms"], *spread])]
    return "\n\n".join(
        ["# What a query costs", f"`{command}`", f"{measured_on}.", *tables, "![share of calls by time](online.png)"]
    )


def draw(times: dict[str, Times], path: Path) -> None:
    """One panel for each comparison: the share of calls that took at most so long."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(times), 3.6), layout="constrained")
    for axes, (what, own) in zip(np.atleast_1d(figure.subplots(1, len(times))), times.items(), strict=True):
        for name, values in own.items():
            axes.ecdf(values.ravel(), label=name, linestyle="--" if name == CONTROL else "-")
        lows, highs = zip(*(np.percentile(values, [0, 99]) for values in own.values()), strict=True)
        axes.set(title=what, xscale="log", xlim=(min(lows), max(highs)), xlabel="milliseconds (log), up to p99")
        for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            ticks("{x:g}")
        axes.tick_params(axis="x", which="both", labelsize=8, labelrotation=45)
        axes.legend(fontsize=8, loc="lower right")
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    figure.get_axes()[0].set_ylabel("share of calls")
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text_only", required=True, help="folder of the text-only model")
    parser.add_argument("--fused", required=True, help="folder of the fused model, of the same dimension")
    parser.add_argument("--catalogue", type=Path, required=True, help="folder that products and queries come from")
    parser.add_argument("--embeddings", type=Path, nargs=2, help="folders of embed.py, of text only and fused")
    parser.add_argument("--products", type=int, help="first products of the catalogue; default: all")
    parser.add_argument("--factory", default="Flat", help="FAISS factory string")
    parser.add_argument("--queries", type=int, default=320, help="drawn from the catalogue")
    parser.add_argument("--rounds", type=int, default=7, help="times that each query is sent through each way")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, ONNX Runtime and FAISS")
    parser.add_argument("--output", type=Path, default=Path("outputs/online"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.embeddings and options.products:
        parser.error("--products cuts random vectors; stored embeddings are taken whole")
    return options


def read_catalogue(folder: Path, count: int | None) -> tuple[pa.Table, Texts]:
    """Products without their photos, and the texts of all queries."""
    names = [name for name in pq.read_schema(folder / "products.parquet").names if name != "image"]
    products = pq.read_table(folder / "products.parquet", columns=names)[:count]
    return products, pq.read_table(folder / "queries.parquet", columns=["query"]).column("query").to_pylist()


def load_averages() -> str:
    return " ".join(f"{load:.1f}" for load in os.getloadavg())


def main() -> None:
    options, measured_on = parse(), machine()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    products, texts = read_catalogue(options.catalogue, options.products)
    queries = np.random.default_rng(options.seed).permutation(texts)[: options.queries].tolist()
    facts = {
        "products": len(products),
        "vectors": "embedded" if options.embeddings else "random",
        "index": options.factory,
        **{name: getattr(options, name) for name in ("queries", "rounds", "threads", "seed")},
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "load before": load_averages(),
    }
    whole, ratios = measure_search(options, queries, products)
    alone, more = measure_encoders(options, queries)
    facts["load after"] = load_averages()
    times, ratios = {f"query → top-{PLACES}": whole, **alone}, [*ratios, *more]
    text = as_markdown(ratios, times, facts)
    (options.output / "online.md").write_text(text + "\n", "utf-8")
    raw = {what: {name: values.round(4).tolist() for name, values in own.items()} for what, own in times.items()}
    record = {"facts": facts, "ratios": [asdict(one) for one in ratios], "milliseconds": raw}
    (options.output / "online.json").write_text(json.dumps(record) + "\n", "utf-8")
    draw(times, options.output / "online.png")
    parts = {
        "fused / text only, clock": (whole, FUSED, TEXT_ONLY),
        "the control: text only, again / text only, clock": (whole, CONTROL, TEXT_ONLY),
        "ONNX Runtime / PyTorch, one query, clock": (alone.get("text → vector, batch 1", {}), ONNX, PYTORCH),
    }
    write_row(
        options.output,
        10,
        what=f"query → top-{PLACES}, {len(products):,} products, {options.factory}; text → vector",
        beside="a text-only model of equal dimension; PyTorch",
        target={name: 0.7 if ONNX in name else 1.02 for name in parts if "control" not in name},
        # One ratio for each round: of the medians over queries.
        ratios={
            name: np.median(of[first], axis=1) / np.median(of[second], axis=1)
            for name, (of, first, second) in parts.items()
            if of
        },
        packages=("torch", "onnxruntime", "faiss-cpu", "transformers"),
        measured_on=measured_on,
        settings={key: facts[key] for key in ("products", "vectors", "queries", "rounds", "threads", "seed")},
        intervals=[asdict(one) for one in ratios],
    )
    print(text)


if __name__ == "__main__":
    main()
