"""Times `evaluate_rankings` beside pytrec_eval in one run; by hand: python tests/benchmarks/evaluation.py

Rankings and judgements are drawn at random. Each side gets its own kind of input: arrays of rows here, nested
dictionaries of ids there, whose building is timed apart. The means of both must agree.
"""

import argparse
from collections.abc import Callable
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import pytrec_eval

from mmfusion.data.qrels import Qrels
from mmfusion.evaluation import Evaluation, evaluate_rankings

PLACES, PRODUCTS, JUDGED, TOP_GRADE = 100, 20_000, 50, 3
MEASURES = {"recall@10": "recall_10", "recall@100": "recall_100", "ndcg@10": "ndcg_cut_10"}

Result = TypeVar("Result")


def timed(act: Callable[[], Result], repeats: int = 1) -> tuple[float, Result]:
    """Seconds of the fastest run, and the result."""
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        result = act()
        seconds.append(perf_counter() - start)
    return min(seconds), result


def draw(num_queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranked product rows (Q, PLACES), judged ones (Q, JUDGED), half of which are ranked, and their grades."""
    rng = np.random.default_rng(0)
    union = PLACES + JUDGED // 2
    rows = np.stack([rng.choice(PRODUCTS, union, replace=False) for _ in range(num_queries)])
    judged = rows[:, union - JUDGED :]
    return rng.permuted(rows[:, :PLACES], axis=1), judged, rng.integers(1, TOP_GRADE + 1, judged.shape)


def ours(ranked: np.ndarray, judged: np.ndarray, grades: np.ndarray) -> Evaluation:
    queries = np.arange(len(ranked))
    return evaluate_rankings(
        ranked,
        queries,
        Qrels(np.repeat(queries, JUDGED), judged.ravel(), grades.ravel()),
        queries={"query_id": [str(row) for row in queries]},
        product_rows=np.arange(PRODUCTS),
        relevant_grade=TOP_GRADE,
        query_slices=(),
    )


def as_dictionaries(ranked: np.ndarray, judged: np.ndarray, grades: np.ndarray) -> tuple[Any, Any]:
    run = {
        str(query): {str(row): float(PLACES - place) for place, row in enumerate(rows)}
        for query, rows in enumerate(ranked.tolist())
    }
    pairs = zip(judged.tolist(), grades.tolist(), strict=True)
    return run, {str(query): dict(zip(map(str, own), of, strict=True)) for query, (own, of) in enumerate(pairs)}


def theirs(run: Any, qrels: Any) -> dict[str, float]:
    measures = {"recall.10,100", "ndcg_cut.10"}
    by_query = pytrec_eval.RelevanceEvaluator(qrels, measures, relevance_level=TOP_GRADE).evaluate(run)
    # As in `evaluate_rankings`, a query without a relevant product is left out of the mean of Recall.
    relevant = {query for query, judged in qrels.items() if max(judged.values()) == TOP_GRADE}
    return {
        name: float(np.mean([found[of] for query, found in by_query.items() if name[0] == "n" or query in relevant]))
        for name, of in MEASURES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the fastest counts")
    arguments = parser.parse_args()
    drawn = draw(arguments.queries)
    seconds, result = timed(lambda: ours(*drawn), arguments.repeats)
    building, (run, qrels) = timed(lambda: as_dictionaries(*drawn))
    trec_seconds, trec_means = timed(lambda: theirs(run, qrels), arguments.repeats)
    for name, mean in trec_means.items():
        np.testing.assert_allclose(result.means[name], mean, atol=1e-6, err_msg=name)
    print(f"{arguments.queries:,} queries x top {PLACES}, {JUDGED} judgements each, {PRODUCTS:,} products")
    print(f"evaluate_rankings: {seconds:.2f} s")
    print(f"pytrec_eval:       {trec_seconds:.2f} s, and {building:.2f} s to build its dictionaries")
    print(f"pytrec_eval / evaluate_rankings: {trec_seconds / seconds:.1f} x; equal means to 1e-6")


if __name__ == "__main__":
    main()
