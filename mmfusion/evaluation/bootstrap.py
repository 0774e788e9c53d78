"""How much of a difference between two evaluations could be the luck of the queries."""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from mmfusion.evaluation.evaluation import Evaluation, check_alike

_CHUNK = 4_000_000


@dataclass(frozen=True)
class PairedDifference:
    """Difference of a mean metric, `first` minus `second`, with its paired bootstrap interval.

    Attributes:
        metric: Name of the metric.
        first: Mean of the first evaluation over the shared queries, in [0, 1].
        second: Mean of the second one.
        difference: first - second.
        low: Lower end of the interval.
        high: Upper end of the interval.
        confidence: Share of resampled differences inside the interval.
        num_queries: Queries that both define the metric for.
        num_resamples: Bootstrap samples drawn.
        seed: Seed of the draws.
    """

    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    confidence: float
    num_queries: int
    num_resamples: int
    seed: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return (
            f"{self.metric}: {100 * self.difference:+.1f} points, {100 * self.confidence:g} % interval "
            f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}] over {self.num_queries} queries"
        )


def paired_bootstrap(
    first: Evaluation,
    second: Evaluation,
    metric: str,
    *,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    where: tuple[str, str] | None = None,
) -> PairedDifference:
    """Resamples queries with replacement and looks at the difference of the means (percentile interval).

    Both evaluations are resampled with the same queries, so that what makes a query hard for both cancels out. The
    interval speaks of other queries of this kind; it knows nothing of another training seed.

    Args:
        first: An evaluation.
        second: Another one of the same queries, pool and relevant grade; the order of its queries does not matter.
        metric: A column of both per-query tables, for example "recall@100".
        num_resamples: Bootstrap samples, at least 1.
        confidence: In (0, 1).
        seed: The same seed gives the same interval.
        where: A sliced query column and the value that it must have, e.g. ("kind", "visual"); None: all queries.

    Returns:
        The difference first - second and its interval.

    Raises:
        ValueError: The evaluations differ in queries, pool or relevant grade, lack the metric, or define it for no
            query.
    """
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"num_resamples={num_resamples}, confidence={confidence}; pass at least 1 and a share in (0, 1)"
        )
    values = _paired_values(first, second, metric, where)
    differences = values[:, 0] - values[:, 1]
    rng = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    step = max(1, _CHUNK // len(differences))
    for start in range(0, num_resamples, step):
        draws = rng.integers(len(differences), size=(min(step, num_resamples - start), len(differences)))
        means[start : start + step] = differences[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    mean_first, mean_second = values.mean(axis=0)
    return PairedDifference(
        metric=metric,
        first=float(mean_first),
        second=float(mean_second),
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        confidence=confidence,
        num_queries=len(differences),
        num_resamples=num_resamples,
        seed=seed,
    )


def _paired_values(first: Evaluation, second: Evaluation, metric: str, where: tuple[str, str] | None) -> np.ndarray:
    """Float64 [Q, 2], the metric of both for each query that defines it, in the first one's order."""
    check_alike([first, second], ("pool", "num_products", "relevant_grade", "gain"))
    ours, theirs = (_by_query(evaluation, metric, where) for evaluation in (first, second))
    if only := sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(
            f"{first.name!r} and {second.name!r} were evaluated on different queries: {len(only)} are in one only, "
            f"for example {only[0]!r}; evaluate both on the same queries"
        )
    pairs = [(value, theirs[query]) for query, value in ours.items() if None not in (value, theirs[query])]
    if not pairs:
        raise ValueError(f"{metric!r} is defined for no query of {first.name!r} and {second.name!r}")
    return np.array(pairs, dtype=np.float64)


def _by_query(evaluation: Evaluation, metric: str, where: tuple[str, str] | None) -> dict[str, float | None]:
    if metric not in evaluation.means:
        raise ValueError(f"{evaluation.name!r} has no metric {metric!r}; it has {', '.join(evaluation.means)}")
    table = evaluation.per_query
    if where is not None:
        if where[0] not in table.column_names:
            raise ValueError(
                f"{evaluation.name!r} was not sliced by {where[0]!r}; it has columns {', '.join(table.column_names)}"
            )
        table = table.filter(pc.equal(table[where[0]], where[1]))
    return dict(zip(table["query_id"].to_pylist(), table[metric].to_pylist(), strict=True))
