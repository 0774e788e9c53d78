"""From the evaluations of single seeds to one of each variant: every query's metrics averaged over the seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from mmfusion.ablation.plan import AblationStep
from mmfusion.ablation.settings import AblationError
from mmfusion.evaluation import Evaluation, Slice
from mmfusion.evaluation.evaluation import CONDITIONS
from mmfusion.evaluation.perturb import Perturbation

BySeed = Mapping[int | None, Evaluation]
"""Evaluations of a variant by seed; None is the seed of a variant in which no seed plays a part."""

Results = dict[tuple[str, Perturbation], dict[int | None, Evaluation]]
"""Evaluations by variant and perturbation."""


def collect(finished: Iterable[AblationStep]) -> Results:
    """Reads what finished evaluation steps wrote.

    Raises:
        FileNotFoundError: A result is gone.
    """
    results: Results = {}
    for step in finished:
        if step.name:
            found = results.setdefault((step.variant, step.perturbation), {})
            found[step.seed] = Evaluation.load(step.folder, step.name)
    return results


def average(by_seed: BySeed, name: str) -> Evaluation:
    """One evaluation whose metrics are means over seeds, of each query, each slice and overall.

    Args:
        by_seed: At least one evaluation; all of the same queries over the same pool.
        name: Of the result.

    Raises:
        AblationError: They differ in queries, pool or relevant grade, or in where metrics are defined.
    """
    evaluations = list(by_seed.values())
    first = evaluations[0]
    tables = [_sorted(evaluation) for evaluation in evaluations]
    for other, table in zip(evaluations[1:], tables[1:], strict=True):
        _check_alike(first, other, tables[0], table)
    columns = {column: tables[0][column] for column in tables[0].column_names}
    for metric in first.means:
        columns[metric] = _mean_column([table[metric] for table in tables])
    return replace(
        first,
        name=name,
        num_queries_without_ranking=max(evaluation.num_queries_without_ranking for evaluation in evaluations),
        means={metric: _mean([evaluation.means[metric] for evaluation in evaluations]) for metric in first.means},
        slices=[_mean_slice(parts) for parts in zip(*(e.slices for e in evaluations), strict=True)],
        per_query=pa.table(columns),
        provenance={
            **{key: first.provenance[key] for key in ("catalogue", "split", "perturbation") if key in first.provenance},
            "seeds": [seed for seed in by_seed if seed is not None],
            "models": [evaluation.provenance.get("model") for evaluation in evaluations],
        },
    )


def common_seeds(first: BySeed, second: BySeed) -> tuple[BySeed, BySeed]:
    """Both restricted to the seeds that both have; a variant without seeds goes with all of the other.

    Raises:
        AblationError: They share no seed.
    """
    if None in first or None in second:
        return first, second
    shared = [seed for seed in first if seed in second]
    if not shared:
        raise AblationError(f"no seed is common to {sorted(map(str, first))} and {sorted(map(str, second))}")
    return {seed: first[seed] for seed in shared}, {seed: second[seed] for seed in shared}


def query_slices(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Columns and values of the query slices."""
    return [(part.column, part.value) for part in evaluation.slices if part.table == "query"]


def _sorted(evaluation: Evaluation) -> pa.Table:
    return evaluation.per_query.sort_by("query_id")


def _check_alike(first: Evaluation, other: Evaluation, ours: pa.Table, theirs: pa.Table) -> None:
    for name in CONDITIONS:
        if getattr(first, name) != getattr(other, name):
            raise AblationError(
                f"{first.name!r} has {name}={getattr(first, name)!r} but {other.name!r} has "
                f"{getattr(other, name)!r}; delete these results and run the ablation again."
            )
    if not ours["query_id"].equals(theirs["query_id"]) or first.means.keys() != other.means.keys():
        raise AblationError(
            f"{first.name!r} and {other.name!r} differ in queries or metrics; delete them and run the ablation again."
        )
    if [_key(part) for part in first.slices] != [_key(part) for part in other.slices]:
        raise AblationError(
            f"{first.name!r} and {other.name!r} differ in slices; delete them and run the ablation again."
        )


def _key(part: Slice) -> tuple[Any, ...]:
    return part.table, part.column, part.value, part.num_queries


def _mean_column(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    values = np.array([column.to_numpy() for column in columns], dtype=np.float64)
    # A metric that is undefined for a query is so for every seed: it depends on the judgements alone.
    mean = values.mean(axis=0)
    return pa.array(mean, type=pa.float64(), from_pandas=True)


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _mean_slice(parts: Sequence[Slice]) -> Slice:
    metrics = {metric: _mean([part.metrics[metric] for part in parts]) for metric in parts[0].metrics}
    return replace(parts[0], metrics=metrics)
