"""Variants side by side: means over seeds, and how each differs from the one before it and from a reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from mmfusion.evaluation.bootstrap import PairedDifference, paired_bootstrap
from mmfusion.evaluation.evaluation import METRICS, Evaluation, check_alike

BySeed = Mapping[int | None, Evaluation]
"""Evaluations of a variant by seed; None is the seed of a variant in which no seed plays a part."""

REFERENCE = "text_only"
"""The variant of an ablation that all others are compared with, too."""

Results = dict[tuple[str, str], dict[int | None, Evaluation]]
"""Evaluations by variant and perturbation ("none" for unchanged inputs)."""


@dataclass(frozen=True)
class Variant:
    """What one row of an ablation is about.

    Attributes:
        name: Name of its runs and results.
        title: What it is, in a few words.
        before: Name of the variant that it is compared with; None for the first.
        expected: Where the claim sees it, compared with `before`.
    """

    name: str
    title: str
    before: str | None
    expected: Literal["above", "below", "either"] = "above"


@dataclass(frozen=True)
class Compared:
    """A variant in one metric over all queries or a slice of them.

    Attributes:
        metric: Name of the metric.
        column: Query column of the slice; "" for all queries.
        value: Its value.
        mean: In [0, 1], over queries and seeds; None where undefined.
        by_seed: The same for each seed, by the seed as text.
        before: Difference to the variant before; None where there is none to compare with.
        reference: Difference to the reference (text only, or the first variant), in the same way.
    """

    metric: str
    column: str
    value: str
    mean: float | None
    by_seed: dict[str, float | None]
    before: PairedDifference | None
    reference: PairedDifference | None

    def __post_init__(self) -> None:
        for number in (self.mean, *self.by_seed.values()):
            if number is not None and not 0 <= number <= 1:
                where = f" ({self.column}={self.value})" if self.column else ""
                raise ValueError(f"{self.metric}{where} is {number} where a share in [0, 1] is expected")


@dataclass(frozen=True)
class Row:
    """A variant of an ablation, as it came out.

    Attributes:
        name: Of the variant.
        title: What it is, in a few words.
        expected: Where the claim sees it, compared with `before`.
        before: The variant that it is compared with: the one before it, or the nearest below that was run.
        not_run: Why it was not run; "" for one that was.
        seeds: Seeds that it was run with.
        compared: Over all queries first, then by slice.
    """

    name: str
    title: str
    expected: Literal["above", "below", "either"]
    before: str | None
    not_run: str = ""
    seeds: tuple[int, ...] = ()
    compared: tuple[Compared, ...] = ()

    def get(self, metric: str, column: str = "", value: str = "") -> Compared | None:
        """The comparison in a metric, over all queries unless a slice is named; None if there is none."""
        wanted = (metric, column, value)
        return next((found for found in self.compared if (found.metric, found.column, found.value) == wanted), None)

    def overall(self) -> list[Compared]:
        """The comparisons over all queries, one for each metric."""
        return [found for found in self.compared if not found.column]

    def out_of_order(self) -> list[str]:
        """Metrics in which the variant is on the wrong side of the one before it."""
        sign = {"above": 1, "below": -1, "either": 0}[self.expected]
        return [found.metric for found in self.overall() if found.before and sign * found.before.difference < 0]

    def not_separated(self) -> list[str]:
        """Metrics in which the interval against the one before it holds zero."""
        return [found.metric for found in self.overall() if found.before and not found.before.excludes_zero]


@dataclass(frozen=True)
class Ablation:
    """The numbers of an ablation over one split; its page, its picture and model cards are written from these.

    Attributes:
        split: Queries that were asked.
        rows: All variants, first variant first.
        perturbed: Means over perturbed inputs: `variant`, `perturbation` and `means` by metric.
        results: Evaluations of single seeds: `variant`, `perturbation`, `seed`, fingerprint of the `model`, and `file`,
            its path below the folder of the ablation. Only of models, not of rankings by words.
        conditions: `pool`, `num_products`, `num_queries` and `relevant_grade`; empty if nothing was measured.
        label_source: Who or what judged; "" where no result says.
        measured_with: Hardware, versions, commits and budget, each a text.
    """

    split: str
    rows: tuple[Row, ...]
    perturbed: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    label_source: str = ""
    measured_with: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the numbers as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Ablation:
        """Reads what `save` wrote.

        Raises:
            OSError: There is no such file.
            KeyError, TypeError, ValueError: A field is missing, unknown, of the wrong type or out of range.
        """
        fields = json.loads(path.read_text("utf-8"))
        return cls(**{**fields, "rows": tuple(_row(**row) for row in fields["rows"])})


def average(by_seed: BySeed, name: str) -> Evaluation:
    """One evaluation whose metrics are means over seeds, of each query, each slice and overall.

    Args:
        by_seed: At least one evaluation; all of the same queries over the same pool.
        name: Of the result.

    Raises:
        ValueError: They differ in queries, pool or relevant grade, or in where metrics are defined.
    """
    evaluations = list(by_seed.values())
    first = evaluations[0]
    check_alike(evaluations)
    tables = [evaluation.per_query.sort_by("query_id") for evaluation in evaluations]
    for other, table in zip(evaluations, tables, strict=True):
        keys = [[(p.table, p.column, p.value, p.num_queries) for p in one.slices] for one in (first, other)]
        same_queries = tables[0]["query_id"].equals(table["query_id"])
        if not same_queries or first.means.keys() != other.means.keys() or keys[0] != keys[1]:
            raise ValueError(
                f"{first.name!r} and {other.name!r} differ in queries, metrics or slices; evaluate both in the same way"
            )
    columns = {column: tables[0][column] for column in tables[0].column_names}
    for metric in first.means:
        # A metric that is undefined for a query is so for every seed: it depends on the judgements alone.
        values = np.array([table[metric].to_numpy() for table in tables], dtype=np.float64).mean(axis=0)
        columns[metric] = pa.array(values, type=pa.float64(), from_pandas=True)
    kept = ("catalogue", "split", "perturbation")
    return replace(
        first,
        name=name,
        num_queries_without_ranking=max(evaluation.num_queries_without_ranking for evaluation in evaluations),
        means=_mean([evaluation.means for evaluation in evaluations]),
        slices=[
            replace(parts[0], metrics=_mean([part.metrics for part in parts]))
            for parts in zip(*(evaluation.slices for evaluation in evaluations), strict=True)
        ],
        per_query=pa.table(columns),
        provenance={
            **{key: first.provenance[key] for key in kept if key in first.provenance},
            "seeds": [seed for seed in by_seed if seed is not None],
            "models": [evaluation.provenance.get("model") for evaluation in evaluations],
        },
    )


def difference(
    first: BySeed,
    second: BySeed,
    metric: str,
    where: tuple[str, str] | None = None,
    *,
    num_resamples: int = 10_000,
) -> PairedDifference | None:
    """Paired bootstrap over queries of two variants, whose metrics of each query are averaged over common seeds first.

    Args:
        first: Evaluations by seed. A variant without seeds is compared with all seeds of the other.
        second: Evaluations by seed.
        metric: Name of the metric.
        where: Query column and value; None for all queries.
        num_resamples: Bootstrap samples.

    Returns:
        The difference first - second; None if they share no seed.
    """
    if None not in (*first, *second):
        common = [seed for seed in first if seed in second]
        first, second = ({seed: one[seed] for seed in common} for one in (first, second))
    if not first:
        return None
    ours, theirs = (average(one, next(iter(one.values())).name) for one in (first, second))
    return paired_bootstrap(ours, theirs, metric, num_resamples=num_resamples, where=where)


def compare(
    variants: Sequence[Variant],
    results: Results,
    not_run: Mapping[str, str],
    *,
    num_resamples: int = 10_000,
) -> list[Row]:
    """One row for each variant.

    Args:
        variants: All variants, first variant first.
        results: Evaluations by variant and perturbation.
        not_run: Why variants were not run, by name; one without results and reason counts as not run yet.
        num_resamples: Bootstrap samples of each interval.
    """
    by_name = {variant.name: variant for variant in variants}
    rows: list[Row] = []
    for variant in variants:
        own = results.get((variant.name, "none"))
        row = Row(variant.name, variant.title, variant.expected, variant.before)
        if not own:
            rows.append(replace(row, not_run=not_run.get(variant.name, "not run yet")))
            continue
        before = variant.before
        while before is not None and not results.get((before, "none")):
            before = by_name[before].before
        others = [results.get((str(name), "none")) if name != variant.name else None for name in (before, REFERENCE)]
        mean = average(own, variant.name)
        compared = []
        for where in (None, *mean.query_parts()):
            for metric in METRICS:
                value = mean.value(metric, where)
                by_seed = {str(seed): one.value(metric, where) for seed, one in own.items() if seed is not None}
                against = [
                    difference(own, other, metric, where, num_resamples=num_resamples)
                    if other and value is not None
                    else None
                    for other in others
                ]
                compared.append(Compared(metric, *(where or ("", "")), value, by_seed, *against))
        seeds = tuple(seed for seed in own if seed is not None)
        rows.append(replace(row, before=before, seeds=seeds, compared=tuple(compared)))
    return rows


def compare_in_order(evaluations: Sequence[Evaluation], metric: str, *, seed: int = 0) -> list[Compared]:
    """Compares each evaluation with the one before it and with the first, over all queries.

    Args:
        evaluations: At least one, of the same queries and pool.
        metric: Name of a metric that all have.
        seed: Of the bootstrap samples.
    """
    found: list[Compared] = []
    for place, own in enumerate(evaluations):
        before = paired_bootstrap(own, evaluations[place - 1], metric, seed=seed) if place else None
        # The second one has one neighbour that is both.
        first = before if place <= 1 else paired_bootstrap(own, evaluations[0], metric, seed=seed)
        found.append(Compared(metric, "", "", own.means[metric], {}, before, first))
    return found


def _mean(metrics: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean of each metric over what defines it."""
    defined = {name: [one[name] for one in metrics if one[name] is not None] for name in metrics[0]}
    return {name: float(np.mean(values)) if values else None for name, values in defined.items()}  # type: ignore[arg-type]


def _row(compared: Sequence[Mapping[str, Any]], seeds: Sequence[int], **fields: Any) -> Row:
    parts = tuple(
        Compared(
            **{**part, **{name: part[name] and PairedDifference(**part[name]) for name in ("before", "reference")}}
        )
        for part in compared
    )
    return Row(**fields, seeds=tuple(seeds), compared=parts)
