"""Each variant against the one before it and against text only, and whether it stands where the claim sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmfusion.ablation.collect import BySeed, Results, average, common_seeds, query_slices
from mmfusion.ablation.variants import TEXT_ONLY, Variant
from mmfusion.evaluation import Evaluation, PairedDifference, paired_bootstrap
from mmfusion.evaluation.perturb import Perturbation

METRICS = ("recall@100", "ndcg@10")
ALL = ("", "")


@dataclass(frozen=True)
class Compared:
    """A variant in one metric over all queries or a slice of them.

    Attributes:
        metric: Name of the metric.
        column: Query column of the slice; "" for all queries.
        value: Its value.
        mean: In [0, 1], over queries and seeds; None where undefined.
        by_seed: The same for each seed.
        before: Difference to `Row.before`; None where there is none to compare with.
        text_only: Difference to text only, likewise.
    """

    metric: str
    column: str
    value: str
    mean: float | None
    by_seed: dict[int | None, float | None]
    before: PairedDifference | None
    text_only: PairedDifference | None


@dataclass(frozen=True)
class Row:
    """A variant of the table.

    Attributes:
        variant: The variant.
        not_run: Why it was not run; "" for one that was.
        before: Name of the variant that it is compared with: the one before it, or the nearest below that was run.
        mean: Its evaluation, averaged over seeds; None for one that was not run.
        compared: By metric, column and value.
        seeds: Seeds that it was run with.
    """

    variant: Variant
    not_run: str = ""
    before: str | None = None
    mean: Evaluation | None = None
    compared: tuple[Compared, ...] = ()
    seeds: tuple[int, ...] = ()

    def get(self, metric: str, column: str = "", value: str = "") -> Compared:
        """The comparison in a metric, over all queries unless a slice is named.

        Raises:
            KeyError: There is none.
        """
        for found in self.compared:
            if (found.metric, found.column, found.value) == (metric, column, value):
                return found
        raise KeyError((metric, column, value))

    def out_of_order(self) -> list[str]:
        """Metrics in which the variant stands on the wrong side of the one before it."""
        return [found.metric for found in self._overall() if _sign(self.variant) * _difference(found) < 0]

    def not_separated(self) -> list[str]:
        """Metrics in which the interval against the one before it holds zero."""
        return [
            found.metric for found in self._overall() if found.before and found.before.low <= 0 <= found.before.high
        ]

    def _overall(self) -> list[Compared]:
        return [found for found in self.compared if not found.column]


def compare(
    variants: Sequence[Variant], results: Results, not_run: dict[str, str], *, num_resamples: int = 10_000
) -> list[Row]:
    """One row for each variant.

    Args:
        variants: All variants, first variant first.
        results: Evaluations by variant and perturbation.
        not_run: Why variants were not run, by name; one without results and reason counts as not run yet.
        num_resamples: Bootstrap samples of each interval.
    """
    rows: list[Row] = []
    for variant in variants:
        own = results.get((variant.name, "none"))
        if not own:
            rows.append(Row(variant, not_run.get(variant.name, "not run yet")))
            continue
        before = _nearest(variant, variants, results)
        mean = average(own, variant.name)
        compared = [
            _compared(own, mean, where, metric, results, before, num_resamples)
            for where in (ALL, *query_slices(mean))
            for metric in METRICS
        ]
        seeds = tuple(seed for seed in own if seed is not None)
        rows.append(Row(variant, "", before, mean, tuple(compared), seeds))
    return rows


def difference(
    first: BySeed,
    second: BySeed,
    metric: str,
    where: tuple[str, str] = ALL,
    *,
    num_resamples: int = 10_000,
) -> PairedDifference:
    """Paired bootstrap over queries of two variants, whose metrics of each query are averaged over common seeds first.

    Args:
        first: Evaluations by seed.
        second: Evaluations by seed.
        metric: Name of the metric.
        where: Query column and value; `ALL` for all queries.
        num_resamples: Bootstrap samples.
    """
    first, second = common_seeds(first, second)
    ours, theirs = (average(one, next(iter(one.values())).name) for one in (first, second))
    part = None if where == ALL else where
    return paired_bootstrap(ours, theirs, metric, num_resamples=num_resamples, where=part)


def perturbed_differences(
    results: Results, pairs: Sequence[tuple[tuple[str, Perturbation], tuple[str, Perturbation]]]
) -> list[tuple[tuple[str, Perturbation], tuple[str, Perturbation], dict[str, PairedDifference]]]:
    """Differences of those pairs of variant and perturbation of which both were evaluated, by metric."""
    return [
        (first, second, {metric: difference(results[first], results[second], metric) for metric in METRICS})
        for first, second in pairs
        if first in results and second in results
    ]


def _compared(
    own: BySeed,
    mean: Evaluation,
    where: tuple[str, str],
    metric: str,
    results: Results,
    before: str | None,
    num_resamples: int,
) -> Compared:
    value = _value(mean, where, metric)

    def against(name: str | None) -> PairedDifference | None:
        other = results.get((name, "none")) if name is not None else None
        if value is None or not other or other is own or (None not in {*own, *other} and not {*own} & {*other}):
            return None
        return difference(own, other, metric, where, num_resamples=num_resamples)

    return Compared(
        metric,
        *where,
        value,
        {seed: _value(evaluation, where, metric) for seed, evaluation in own.items()},
        against(before),
        against(TEXT_ONLY),
    )


def _value(evaluation: Evaluation, where: tuple[str, str], metric: str) -> float | None:
    if where == ALL:
        return evaluation.means[metric]
    part = evaluation.part("query", *where)
    return None if part is None else part.metrics[metric]


def _nearest(variant: Variant, variants: Sequence[Variant], results: Results) -> str | None:
    by_name = {found.name: found for found in variants}
    name = variant.before
    while name is not None and not results.get((name, "none")):
        name = by_name[name].before
    return name


def _sign(variant: Variant) -> int:
    return {"above": 1, "below": -1, "either": 0}[variant.expected]


def _difference(found: Compared) -> float:
    return 0.0 if found.before is None else found.before.difference
