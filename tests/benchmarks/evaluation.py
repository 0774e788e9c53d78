"""Row 9 of docs/benchmarks/peers.md: evaluation and exact search beside others; by hand, e.g.

    pip install ranx
    python tests/benchmarks/evaluation.py --output outputs/peers

Rankings and judgements are drawn at random, and the means of all sides must agree. All run in one process with one
thread, in turns, of which the first is not counted (it compiles ranx). A ratio is that of CPU seconds, ours over
another's, of one turn. Three parts:

ready: each side has its own input in memory, whose building is not timed: arrays of rows and Qrels here, nested
    dictionaries of ids for pytrec_eval, `Qrels` and `Run` for ranx, flat tensors for torchmetrics (which must be given
    the relevant products that were not retrieved, too, or its numbers are others).
files: from a run and judgements as TREC files, with ids as text, to the means.
search: the 100 best of a million vectors by `ProductIndex.search_rows` beside FAISS's own Flat index. Both map the same
    file: where vectors lie in memory changes FAISS's own time by up to 40 %.
"""

import argparse
import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytrec_eval
import torch
from pyarrow import csv
from row_files import machine, write_row
from torchmetrics.retrieval import RetrievalNormalizedDCG, RetrievalRecall

from mmfusion.data.qrels import Qrels
from mmfusion.evaluation import evaluate_rankings
from mmfusion.evaluation.trec_runs import read_run
from mmfusion.retrieval import ProductIndex

PLACES, PRODUCTS, JUDGED, TOP_GRADE = 100, 20_000, 50, 3
OURS = "mmfusion"
PACKAGES = ("torch", "numpy", "pytrec_eval-terrier", "ranx", "numba", "torchmetrics", "faiss-cpu")

Means = list[float]
Ways = Mapping[str, Callable[[], Any]]
Times = dict[str, dict[str, list[float]]]


def take_turns(ways: Ways, turns: int, check: Callable[[Any, Any], None]) -> Times:
    """CPU and clock seconds of each way, in all turns but the first; results are checked against ours."""
    # Otherwise who allocates most containers pays for looking through what earlier parts and imports left.
    gc.collect()
    gc.freeze()
    times: Times = {name: {"cpu": [], "clock": []} for name in ways}
    for turn in range(turns + 1):
        results = {}
        # To and fro, as who comes second finds memory warmer.
        for name, way in reversed(ways.items()) if turn % 2 else ways.items():
            cpu, clock = process_time(), perf_counter()
            results[name] = way()
            spent = {"cpu": process_time() - cpu, "clock": perf_counter() - clock}
            for kind, seconds in spent.items() if turn else ():
                times[name][kind].append(seconds)
        for result in results.values():
            check(results[OURS], result)
    return times


def draw(num_queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranked product rows (Q, PLACES), judged ones (Q, JUDGED), half of which are ranked, and their grades."""
    rng = np.random.default_rng(0)
    union = PLACES + JUDGED // 2
    rows = np.stack([rng.choice(PRODUCTS, union, replace=False) for _ in range(num_queries)])
    judged = rows[:, union - JUDGED :]
    return rng.permuted(rows[:, :PLACES], axis=1), judged, rng.integers(1, TOP_GRADE + 1, judged.shape)


def query_id(row: int) -> str:
    return f"q{row:06d}"


def product_id(row: int) -> str:
    return f"p{row:06d}"


def ours(ranked: np.ndarray, qrels: Qrels) -> Means:
    queries = np.arange(len(ranked))
    found = evaluate_rankings(
        ranked,
        queries,
        qrels,
        queries={"query_id": [query_id(row) for row in queries]},
        product_rows=np.arange(PRODUCTS),
        relevant_grade=TOP_GRADE,
        query_slices=(),
    ).means
    return [found[name] or 0.0 for name in ("recall@10", "recall@100", "ndcg@10")]


def by_pytrec_eval(run: Any, qrels: Any) -> Means:
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"recall.10,100", "ndcg_cut.10"}, relevance_level=TOP_GRADE)
    by_query = evaluator.evaluate(run)
    # As here, a query without a relevant product is left out of the mean of Recall.
    relevant = {query for query, judged in qrels.items() if max(judged.values()) == TOP_GRADE}
    names = {"recall_10": relevant, "recall_100": relevant, "ndcg_cut_10": qrels.keys()}
    return [float(np.mean([by_query[query][name] for query in counted])) for name, counted in names.items()]


def by_ranx(run: Any, qrels: Any) -> Means:
    import ranx

    names = [f"recall@10-l{TOP_GRADE}", f"recall@100-l{TOP_GRADE}", "ndcg@10"]
    found = ranx.evaluate(qrels, run, names, threads=1)
    return [float(found[name]) for name in names]


def by_torchmetrics(scores: torch.Tensor, grades: torch.Tensor, queries: torch.Tensor) -> Means:
    means = []
    for cut in (10, 100):
        recall = RetrievalRecall(empty_target_action="skip", top_k=cut)
        recall.update(scores, grades >= TOP_GRADE, indexes=queries)
        means.append(recall.compute().item())
    ndcg = RetrievalNormalizedDCG(top_k=10)
    ndcg.update(scores, grades, indexes=queries)
    return [*means, ndcg.compute().item()]


def ready(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[str, Callable[[], Means]]:
    """What each side does with input of its own kind."""
    ranked, judged, grades = drawn
    queries = np.arange(len(ranked))
    qrels = Qrels(np.repeat(queries, JUDGED), judged.ravel(), grades.ravel())
    run_texts = {
        query_id(query): {product_id(row): float(PLACES - place) for place, row in enumerate(rows)}
        for query, rows in enumerate(ranked.tolist())
    }
    qrels_texts = {
        query_id(query): dict(zip(map(product_id, rows), own, strict=True))
        for query, (rows, own) in enumerate(zip(judged.tolist(), grades.tolist(), strict=True))
    }
    ways = {
        OURS: lambda: ours(ranked, qrels),
        "pytrec_eval": lambda: by_pytrec_eval(run_texts, qrels_texts),
    }
    try:
        import ranx
    except ImportError:
        print("ranx is not installed and not measured")
    else:
        ranx_run, ranx_qrels = ranx.Run(run_texts), ranx.Qrels(qrels_texts)
        ways["ranx"] = lambda: by_ranx(ranx_run, ranx_qrels)
    # Half of the judged products are not ranked: they come last.
    unranked = judged[:, JUDGED // 2 :]
    flat = np.concatenate([ranked, unranked], axis=1)
    tensors = [
        torch.from_numpy(values.ravel())
        for values in (
            np.tile(np.arange(flat.shape[1], 0, -1, dtype=np.float32), len(flat)),
            qrels.grades_of(queries, flat),
            np.repeat(queries, flat.shape[1]),
        )
    ]
    return {**ways, "torchmetrics": lambda: by_torchmetrics(*tensors)}


def files(drawn: tuple[np.ndarray, np.ndarray, np.ndarray], folder: Path) -> dict[str, Callable[[], Means]]:
    """What each side does with TREC files of these rankings and judgements."""
    ranked, judged, grades = drawn
    run, qrels = folder / "run.trec", folder / "qrels.trec"
    with run.open("w") as lines:
        for query, rows in enumerate(ranked.tolist()):
            for place, row in enumerate(rows, 1):
                lines.write(f"{query_id(query)} Q0 {product_id(row)} {place} {PLACES - place} system\n")
    with qrels.open("w") as lines:
        for query, pairs in enumerate(zip(judged.tolist(), grades.tolist(), strict=True)):
            for row, grade in zip(*pairs, strict=True):
                lines.write(f"{query_id(query)} 0 {product_id(row)} {grade}\n")
    ids = [query_id(row) for row in range(len(ranked))], [product_id(row) for row in range(PRODUCTS)]

    def read_ours() -> Means:
        names = csv.ReadOptions(column_names=["query", "0", "product", "grade"], use_threads=False)
        table = csv.read_csv(qrels, names, csv.ParseOptions(delimiter=" "))
        rows = [
            pc.index_in(table[name], value_set=pa.array(known)).to_numpy()
            for name, known in zip(("query", "product"), ids, strict=True)
        ]
        return ours(read_run(run, *ids, PLACES)[1].numpy(), Qrels(*rows, table["grade"].to_numpy()))

    def read_pytrec_eval() -> Means:
        with run.open() as ranking, qrels.open() as judgements:
            return by_pytrec_eval(pytrec_eval.parse_run(ranking), pytrec_eval.parse_qrel(judgements))

    def read_ranx() -> Means:
        import ranx

        return by_ranx(ranx.Run.from_file(str(run), kind="trec"), ranx.Qrels.from_file(str(qrels), kind="trec"))

    return {OURS: read_ours, "pytrec_eval, files": read_pytrec_eval, "ranx, files": read_ranx}


def write_index(products: int, dimension: int, folder: Path) -> np.ndarray:
    """Saves an index of random vectors, and returns 64 queries that are near some of them."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((products, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = ProductIndex.build(vectors, [product_id(row) for row in range(products)], model_fingerprint="random")
    index.save(folder)
    near: np.ndarray = vectors[rng.integers(products, size=64)]
    return near + 0.1 * rng.standard_normal(near.shape, dtype=np.float32)


def searches(folder: Path, batches: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """The same searches by our index and by FAISS; a result is the scores."""
    index, flat = ProductIndex.load(folder), faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
    return {
        OURS: lambda: [index.search_rows(batch, PLACES)[0] for batch in batches],
        f"FAISS Flat, {len(batches[0])} at a time": lambda: [flat.search(batch, PLACES)[0] for batch in batches],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/peers"), help="folder of row9.json")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--products", type=int, default=1_000_000, help="vectors that are searched")
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    measured_on = machine()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    times: Times = {}
    ratios: dict[str, list[float]] = {}

    def measure(ways: Ways, part: str, tolerance: float) -> None:
        found = take_turns(ways, options.turns, lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance))
        times.update({f"{OURS} ({part})": found.pop(OURS), **found})
        for name, seconds in found.items():
            pairs = zip(times[f"{OURS} ({part})"]["cpu"], seconds["cpu"], strict=True)
            ratios[name] = [own / other for own, other in pairs]

    drawn = draw(options.queries)
    measure(ready(drawn), "ready", 1e-6)
    with TemporaryDirectory() as folder:
        measure(files(drawn, Path(folder)), "files", 1e-6)
    with TemporaryDirectory() as folder:
        queries = write_index(options.products, options.dimension, Path(folder) / "index")
        for batches in (np.split(queries[:16], 16), [queries]):
            measure(searches(Path(folder) / "index", batches), f"{len(batches[0])} at a time", 1e-4)
    path = write_row(
        options.output,
        9,
        what=f"evaluation of {options.queries:,} queries x top-{PLACES}, {JUDGED} judgements each, "
        f"{PRODUCTS:,} products; exact top-{PLACES} over {options.products:,} x {options.dimension}",
        beside="pytrec_eval, ranx (compiled), torchmetrics; FAISS Flat",
        target={name: 1.02 if name.startswith("FAISS") else 1.0 for name in ratios},
        ratios=ratios,
        packages=PACKAGES,
        measured_on=measured_on,
        settings={"turns": options.turns, "threads": 1},
        seconds=times,
    )
    for name, values in ratios.items():
        least, middle, most = np.quantile(values, [0, 0.5, 1])
        print(f"mmfusion / {name}: {middle:.3f} ({least:.3f} to {most:.3f}) of CPU seconds")
    print(path)


if __name__ == "__main__":
    main()
