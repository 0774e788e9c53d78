"""Words, vectors and both, on trained models of one or several seeds; by hand: python tests/benchmarks/hybrid.py --help

`--set NAME CATALOGUE BASE [BASE …]` names a catalogue and the models that were trained on it, one for each seed. Each
is evaluated with `mmfusion evaluate --hybrid true`, unless OUTPUT/NAME/seed<number> holds its results already. Then a
lowest score is calibrated on the val queries of the first set with its first model, and measured on its test queries
and on queries that no product of it answers. Last, CPU milliseconds of one search of 100 hits by each mode, over the
titles and test queries of the last set with random unit vectors; modes take turns.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from row_files import machine

from mmfusion import Catalogue, Retriever
from mmfusion.commands import evaluate
from mmfusion.evaluation import Evaluation
from mmfusion.evaluation.comparison import average, difference
from mmfusion.evaluation.evaluate import pool_rows
from mmfusion.evaluation.evaluation import METRICS
from mmfusion.evaluation.tables import markdown_table, metric_title, percent
from mmfusion.retrieval import Calibration, ProductIndex, Ranking, RankingError, calibrate

ROWS = {
    "words": ("words", ".words"),
    "vectors": ("vectors", ""),
    "both, by reciprocal rank": ("rrf", ".rrf"),
    "both, by a weight": ("hybrid", ".hybrid"),
}
PARTS = ["quality", "lowest_score", "cost"]
TITLES = {"quality": "Quality on", "lowest_score": "A lowest score", "cost": "What a search costs"}
INTRODUCTION = (
    "Queries are synthetic and judgements are derived from attributes of the retailer; no human judged them. Three "
    "sellers in four name neither colour nor pattern in the title, so that words find little of what visual queries "
    "ask for. The weight of vectors is chosen on val queries alone. Models of `fpi` are *gated* of seeds 0 to 2 in "
    "`model_cards/ablations/fpi-claims.md`; that of `fpi_44k` is [the one of the audit](audit.md#another-catalogue)."
)
PRECISIONS = (0.7, 0.8, 0.9)
# What a shop of clothes, shoes and accessories does not sell.
NONSENSE = (
    "usb c charging cable 2 m",
    "garden hose 20 m",
    "organic basmati rice 5 kg",
    "cordless drill 18 v",
    "dog food senior",
    "inkjet printer cartridge black",
    "how do I return an order",
    "qwertz uiop asdf",
    "winter tyres 205 55 r16",
    "toothpaste mint",
    "piano lessons for beginners",
    "42",
)
DIMENSION, PLACES, QUERIES, ROUNDS = 384, 100, 100, 5


def evaluated(folder: Path, catalogue: str, base: str) -> dict[str, Evaluation]:
    """Results by row of the table; those that are there are not made again."""
    if not list(folder.glob("*.hybrid.json")):
        evaluate.main(evaluate.Config(catalogue=catalogue, base=base, output=str(folder), name="vectors", hybrid=True))
    name = next(folder.glob("*.hybrid.json")).name.removesuffix(".hybrid.json")
    return {row: Evaluation.load(folder, name + ending) for row, (_, ending) in ROWS.items()}


def quality(folder: Path, catalogue: str, bases: list[str]) -> str:
    """Means over seeds by kind of query, and differences to vectors and to words with paired intervals."""
    if not bases:
        return f"Not measured: no model that was trained on {Path(catalogue).name} was named."
    results = [evaluated(folder / f"seed{seed}", catalogue, base) for seed, base in enumerate(bases)]
    by_row = {row: {seed: one[row] for seed, one in enumerate(results)} for row in ROWS}
    means = {row: average(found, row) for row, found in by_row.items()}
    wheres = [None, *sorted(means["vectors"].query_parts("kind"))]
    heads = ["all" if where is None else where[1] for where in wheres]
    table: list[list[Any]] = [[" / ".join(map(metric_title, METRICS)), *heads]]
    for row, mean in means.items():
        cells = [" / ".join(percent(mean.value(metric, where)) for metric in METRICS) for where in wheres]
        table.append([row, *cells])
    differences: list[list[Any]] = [["difference in points", "", *heads]]
    pairs = [(both, one) for both in [*ROWS][2:] for one in ("vectors", "words")]
    for both, one in pairs:
        for metric in METRICS:
            cells = [difference(by_row[both], by_row[one], metric, where) for where in wheres]
            differences.append([f"{both}, against {one}", metric_title(metric), *cells])
    weights = ", ".join(str(one["both, by a weight"].provenance["ranking"]["weight"]) for one in results)
    chosen = f"Weight of vectors, chosen on val by nDCG@10, by seed: {weights}. {means['vectors'].conditions()}."
    chosen += f" {len(results)} seed(s); intervals are over queries."
    return "\n\n".join([markdown_table(table), markdown_table(differences), chosen])


def lowest_scores(source: str, base: str) -> str:
    """Scores calibrated on val, and what they do on test queries and on nonsense."""
    catalogue = Catalogue.load(source)
    retriever = Retriever.from_pretrained(base)
    parts = {split: pool_rows(catalogue, split, "split") for split in ("val", "test")}
    grades: dict[str, dict[tuple[str, str], int]] = {}
    searchers, queries = {}, {}
    for split, (query_rows, product_rows) in parts.items():
        judged = catalogue.qrels.restrict(query_rows, product_rows)
        names = zip(catalogue.query_ids[judged.query], catalogue.product_ids[judged.product], strict=True)
        grades[split] = dict(zip(names, judged.grade.tolist(), strict=True))
        texts = catalogue.query_texts(query_rows)
        queries[split] = dict(zip(catalogue.query_ids[query_rows].tolist(), texts, strict=True))
        products = [catalogue.product(row) for row in product_rows]
        searchers[split] = retriever.index([{**one, "attributes": None} for one in products], show_progress_bar=True)
    rows: list[list[Any]] = [
        [
            *(
                "precision asked for",
                "min_score",
                "precision on val",
                "precision on test",
                "relevant hits kept on test",
            ),
            *("test queries without a hit", "nonsense queries without a hit"),
        ]
    ]
    for precision in PRECISIONS:
        try:
            found: Calibration = calibrate(searchers["val"], queries["val"], grades["val"], precision)
        except RankingError as error:
            rows.append([f"{precision:g}", str(error), *[None] * 5])
            continue
        every = searchers["test"].search([*queries["test"].values()], PLACES)
        right = [
            [(hit.score >= found.min_score, grades["test"].get((name, hit.product_id), 0) > 0) for hit in hits]
            for name, hits in zip(queries["test"], every, strict=True)
        ]
        shown = [good for hits in right for above, good in hits if above]
        kept = sum(shown) / sum(good for hits in right for _, good in hits)
        silent = sum(not any(above for above, _ in hits) for hits in right)
        answered = searchers["test"].search(list(NONSENSE), 1, min_score=found.min_score)
        nothing = sum(not hits for hits in answered)
        cells = [f"{found.min_score:.3f}", found.precision, sum(shown) / len(shown), kept]
        rows.append([f"{precision:g}", *cells, f"{silent} of {len(right)}", f"{nothing} of {len(NONSENSE)}"])
    return markdown_table(rows)


def costs(source: str) -> str:
    """CPU milliseconds of one search of 100 hits, by mode."""
    catalogue = Catalogue.load(source, photos=False)
    rng = np.random.default_rng(0)
    titles = catalogue.titles(range(len(catalogue.products)))
    groups = [f"g{row // 4}" for row in range(len(titles))]
    table = pa.table({"title": titles, "group": groups, "sales": rng.permutation(len(titles))})

    def unit(count: int) -> np.ndarray:
        drawn = rng.normal(size=(count, DIMENSION)).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    index = ProductIndex.build(
        unit(len(titles)), list(catalogue.product_ids), model_fingerprint="drawn", metadata=table, lexical=["title"]
    )
    texts = catalogue.query_texts(catalogue.judged_queries("test")[:QUERIES])
    vectors = unit(len(texts))
    both: dict[str, Any] = {"mode": "hybrid", "weight": 0.5}
    modes: dict[str, Ranking] = {
        "vectors": Ranking(),
        "words": Ranking(mode="words"),
        "both, by reciprocal rank": Ranking(mode="hybrid"),
        "both, by a weight": Ranking(**both),
        "both, by a weight, in groups, with a boost": Ranking(**both, group_by="group", boosts={"sales": 0.05}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for ask in range(-1, ROUNDS):
        for name, ranking in modes.items():
            asked = zip(vectors[:, None], texts, strict=True)
            taken = [
                cpu_seconds(partial(index.search, vector, PLACES, ranking=ranking, texts=[text]))
                for vector, text in asked
            ]
            # The first round builds what is built once.
            seconds[name] += taken if ask >= 0 else []
    rows: list[list[Any]] = [["mode", "median, ms of CPU", "95 %, ms of CPU"]]
    for name, taken in seconds.items():
        rows.append([name, f"{1000 * statistics.median(taken):.2f}", f"{1000 * float(np.quantile(taken, 0.95)):.2f}"])
    return f"{markdown_table(rows)}\n\n{len(titles):,} products, vectors of {DIMENSION} components in a Flat index."


def cpu_seconds(call: Callable[[], Any]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", action="append", required=True, dest="sets", metavar="WORD")
    parser.add_argument("--output", type=Path, required=True, help="folder for results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; the rest is kept")
    parser.add_argument("--page", type=Path, help="Markdown page to write of all that was measured")
    options = parser.parse_args()
    steps: dict[str, tuple[str, Callable[[], str]]] = {
        f"quality_{name}": (
            "quality",
            partial(
                lambda name, catalogue, bases: quality(options.output / name, catalogue, bases), name, catalogue, bases
            ),
        )
        for name, catalogue, *bases in options.sets
    }
    steps["lowest_score"] = ("lowest_score", lambda: lowest_scores(*options.sets[0][1:3]))
    steps["cost"] = ("cost", lambda: costs(options.sets[-1][1]))
    sections = []
    for name, (part, step) in steps.items():
        done = options.output / f"{name}.md"
        if part in options.parts and not done.exists():
            on = machine()
            text = step()
            threads = os.environ.get("OMP_NUM_THREADS", "as many as cores")
            where = f"{on['cores']} cores, {on['processor']}, load {on['load_at_start']} at start; threads: {threads}."
            done.write_text(f"{text}\n\n{where}\n", "utf-8")
        if done.exists():
            sections.append(
                f"## {TITLES[part]}{name.removeprefix(part).replace('_', ' ', 1)}\n\n{done.read_text('utf-8')}"
            )
            print(sections[-1], flush=True)
    if options.page is not None:
        sets = " ".join(
            f"--set {name} data/{name} {' '.join(Path(base).name for base in b)}" for name, _, *b in options.sets
        )
        command = f"python tests/benchmarks/hybrid.py {sets} --output outputs/hybrid"
        head = f"# Words, vectors and both\n\n```bash\n{command}\n```\n\n{INTRODUCTION}\n\n"
        options.page.write_text(head + "\n".join(sections), "utf-8")


if __name__ == "__main__":
    main()
