"""The one place that formats numbers and writes tables: for terminals, Markdown pages, model cards and HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from mmfusion.evaluation.bootstrap import PairedDifference, paired_bootstrap
from mmfusion.evaluation.comparison import Ablation, Row
from mmfusion.evaluation.evaluation import METRICS, Evaluation, Slice, check_alike
from mmfusion.model import VIEWS
from mmfusion.pages import escape_cell, page_environment, text_table

Cell = str | int | float | PairedDifference | None
"""Of a table: text and counts as they are, a share in per cent, a difference with its interval, None undefined."""


def metric_title(metric: str) -> str:
    """A metric's name as readers know it: "recall@100" -> "Recall@100"."""
    return metric.replace("recall", "Recall").replace("ndcg", "nDCG")


def percent(value: float | None, undefined: str = "–") -> str:
    """A share as per cent with one decimal."""
    return undefined if value is None else f"{100 * value:.1f}"


def points(difference: float) -> str:
    """A signed difference in points with one decimal; what rounds to zero carries no sign."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def interval(found: PairedDifference) -> str:
    """A difference in points with its interval, such as "+6.1 [+4.2, +8.0]"."""
    return f"{points(found.difference)} [{points(found.low)}, {points(found.high)}]"


def format_cell(cell: Cell, undefined: str = "–") -> str:
    """A cell as text, whatever it holds."""
    if isinstance(cell, PairedDifference):
        return interval(cell)
    return percent(cell, undefined) if cell is None or isinstance(cell, float) else str(cell)


def markdown_table(rows: Sequence[Sequence[Cell]], *, aligned: bool = False) -> str:
    """A Markdown table; the first row is its head, the first column is aligned left and all others right.

    Args:
        rows: Cells, the same number in each row.
        aligned: Pads cells to equal widths and writes "-" for what is undefined, to be read in a terminal as well.
    """
    undefined = "-" if aligned else "–"
    return text_table([[format_cell(cell, undefined) for cell in row] for row in rows], aligned=aligned)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# ---------------------------------------------------------------- evaluations


def results_table(
    evaluations: Sequence[Evaluation], *, slice_by: str = "kind", metrics: Sequence[str] = METRICS
) -> str:
    """Compares evaluations of the same queries over the same pool.

    Args:
        evaluations: At least one; rows of the table in this order.
        slice_by: Query column whose values become columns next to "all". A column that was not sliced adds none.
        metrics: Metrics of a cell, in per cent.

    Returns:
        An aligned Markdown table.

    Raises:
        ValueError: There is no evaluation; one lacks a metric; or they differ in pool, queries, relevant grade or gain.
    """
    check_alike(evaluations)
    for evaluation in evaluations:
        for metric in metrics:
            if metric not in evaluation.means:
                raise ValueError(f"{evaluation.name!r} has no metric {metric!r}; it has {', '.join(evaluation.means)}")
    parts = sorted({part for evaluation in evaluations for part in evaluation.query_parts(slice_by)})
    rows: list[list[Cell]] = [[" / ".join(map(metric_title, metrics)), "all", *(value for _, value in parts)]]
    for evaluation in evaluations:
        known = evaluation.query_parts(slice_by)
        cells = [
            " / ".join(percent(evaluation.value(metric, where), "-") for metric in metrics)
            if where is None or where in known
            else None
            for where in (None, *parts)
        ]
        rows.append([evaluation.name, *cells])
    return markdown_table(rows, aligned=True)


def format_table(evaluations: Sequence[Evaluation], *, slice_by: str = "kind", metrics: Sequence[str] = METRICS) -> str:
    """`results_table`, and below it the conditions that the numbers hold for."""
    return f"{results_table(evaluations, slice_by=slice_by, metrics=metrics)}\n\n{evaluations[0].conditions()}\n"


def product_slices_table(evaluations: Sequence[Evaluation], *, metric: str = "recall@100") -> str:
    """Markdown table of a metric over relevant products with a value, per cent; empty if there is no product slice."""
    check_alike(evaluations)
    parts = [(part.column, part.value) for e in evaluations for part in e.slices if part.table == "product"]
    rows: list[list[Cell]] = [
        [f"{metric_title(metric)} over relevant products with", *(evaluation.name for evaluation in evaluations)]
    ]
    for column, value in dict.fromkeys(parts):
        found = [evaluation.part("product", column, value) for evaluation in evaluations]
        rows.append([f"{column}={value}", *(None if own is None else own.metrics.get(metric) for own in found)])
    return markdown_table(rows, aligned=True) if parts else ""


def format_comparison(evaluations: Sequence[Evaluation], *, slice_by: str = "kind") -> str:
    """Markdown: a table, product slices, and differences with 95 % paired bootstrap intervals over queries.

    Args:
        evaluations: At least one, in the order of the ablation; each is compared with the one before, and the last with
            each, also on every value of `slice_by`.
        slice_by: Query column.

    Raises:
        ValueError: They differ in queries, pool, relevant grade or gain.
    """
    *others, last = evaluations
    lines = [_difference_line(after, before) for before, after in zip(others, evaluations[1:-1], strict=False)]
    wheres = [None, *sorted(last.query_parts(slice_by))]
    lines += [_difference_line(last, other, where) for other in others for where in wheres]
    products = product_slices_table(evaluations)
    parts = [format_table(evaluations, slice_by=slice_by), f"{products}\n" if products else "", "\n".join(lines)]
    return "\n".join(part for part in parts if part) + "\n"


def _difference_line(first: Evaluation, second: Evaluation, where: tuple[str, str] | None = None) -> str:
    pairs = [paired_bootstrap(first, second, metric, where=where) for metric in METRICS]
    among = "" if where is None else f", {where[0]} {where[1]}"
    return f"- {first.name} against {second.name}{among}: {'; '.join(map(str, pairs))}"


def all_parts(evaluation: Evaluation) -> list[Slice]:
    """The overall means as a slice of the table "all", then every slice."""
    return [Slice("all", "", "", evaluation.num_queries, evaluation.means), *evaluation.slices]


def slice_title(part: Slice) -> str:
    """A slice in words: "all", "kind=visual" or "products with sparse=True"."""
    named = f"{part.column}={part.value}"
    return {"all": "all", "query": named}.get(part.table, f"products with {named}")


def evaluation_page(evaluation: Evaluation) -> str:
    """One evaluation as a Markdown page: overall numbers and every slice, in per cent, under their conditions."""
    metrics = list(evaluation.means)
    rows: list[list[Cell]] = [["slice", "queries", *map(metric_title, metrics)]]
    rows += [[slice_title(p), p.num_queries, *map(p.metrics.get, metrics)] for p in all_parts(evaluation)]
    lines = [f"# {evaluation.name}", f"{evaluation.conditions()}.", markdown_table(rows, aligned=True)]
    if any(part.table == "product" for part in evaluation.slices):
        lines.append(
            "A product slice is Recall over each query's relevant products with that value; nDCG has no such parts."
        )
    return "\n\n".join(lines) + "\n"


def slices_csv(evaluation: Evaluation) -> str:
    """Overall numbers and slices as CSV, metrics in [0, 1], empty where undefined."""
    metrics = list(evaluation.means)
    rows = [[p.table, p.column, p.value, p.num_queries, *map(p.metrics.get, metrics)] for p in all_parts(evaluation)]
    return csv_text([["table", "column", "value", "num_queries", *metrics], *rows])


def router_weights_table(evaluations: Sequence[Evaluation]) -> str:
    """Markdown table of the weights in per cent, means over the evaluations (other seeds); empty without a router."""
    routed = [found for e in evaluations if (found := e.provenance.get("router_weights"))]
    rows: list[list[Cell]] = [["queries", *VIEWS]]
    for name in routed[0] if routed else ():
        rows.append([name, *(float(np.mean([found[name][view] for found in routed])) for view in VIEWS)])
    return markdown_table(rows) if routed else ""


# ---------------------------------------------------------------- variants of an ablation


def ablation_table(rows: Sequence[Row], *, claims: bool) -> str:
    """Markdown table of all variants: means, differences to the one before and to text only, and their order.

    Args:
        rows: Of an ablation.
        claims: Whether to say of each variant that it stands where the claim sees it; otherwise only exceptions are
            named, and seeds are listed rather than counted.
    """
    header = ["variant", "seeds"]
    for metric in METRICS:
        header += [metric_title(metric), "against the one before", "against text only"]
    table: list[list[Cell]] = [[*header, "compared with", "order"]]
    for row in rows:
        title = f"{row.name}: {row.title}" if row.title else row.name
        if row.not_run:
            blank = ["not run"] * 6 if claims else ["–"] * 6
            table.append([title, None, *blank, None if claims else row.before, f"not run: {row.not_run}"])
            continue
        seeds = str(len(row.seeds)) if claims else ", ".join(map(str, row.seeds))
        cells: list[Cell] = [title, seeds if row.seeds else "none needed"]
        for found in row.overall():
            cells += [found.mean, found.before, found.reference]
        table.append([*cells, row.before, _order(row, claims)])
    return markdown_table(table)


def _order(row: Row, claims: bool) -> str:
    wrong, unsure = (", ".join(map(metric_title, metrics)) for metrics in (row.out_of_order(), row.not_separated()))
    if wrong:
        return f"**out of order**: {wrong}"
    unsure = f"interval holds zero: {unsure}" if unsure else ""
    if not claims or row.before is None:
        return unsure or "–"
    if row.expected == "either":
        return "no order claimed"
    return f"in order; {unsure}" if unsure else "in order"


def differences_table(
    corner: str, rows: Mapping[str, Callable[[str, tuple[str, str]], Cell]], parts: Sequence[tuple[str, str]]
) -> str:
    """Markdown table of one cell for each part of the queries and each metric.

    Args:
        corner: Head of the first column.
        rows: By name, a function from a metric and a part (column, value) to the cell.
        parts: Columns and values of query slices.
    """
    wanted = [(metric, part) for part in parts for metric in METRICS]
    head = [corner, *(f"{value}, {metric_title(metric)}" for metric, (_, value) in wanted)]
    return markdown_table(
        [head, *([name, *(cell(metric, part) for metric, part in wanted)] for name, cell in rows.items())]
    )


def seeds_table(rows: Sequence[Row]) -> str:
    """Markdown table of the metrics of each variant seed by seed; empty if no seed was run."""
    seeds = sorted({seed for row in rows for seed in row.seeds})
    table: list[list[Cell]] = [[" / ".join(map(metric_title, METRICS)), *(f"seed {seed}" for seed in seeds)]]
    for row in rows:
        if row.seeds:
            by_seed = [found.by_seed for found in row.overall()]
            table.append([row.name, *(" / ".join(percent(v.get(str(seed))) for v in by_seed) for seed in seeds)])
    return markdown_table(table) if seeds else ""


def perturbed_table(ablation: Ablation) -> str:
    """Markdown table of the means of variants over perturbed inputs, each below those over unchanged ones."""
    rows = {row.name: row for row in ablation.rows}
    found = {(part["variant"], part["perturbation"]): part["means"] for part in ablation.perturbed}
    for name, _ in list(found):
        compared = rows[name].overall() if name in rows else ()
        found[name, ""] = {one.metric: one.mean for one in compared}
    table: list[list[Cell]] = [["variant, perturbation", *map(metric_title, METRICS)]]
    for name, perturbation in sorted(found):
        means = found[name, perturbation]
        table.append([f"{name}, {perturbation or 'as they are'}", *map(means.get, METRICS)])
    return markdown_table(table)


def ablation_csv(rows: Sequence[Row], perturbed: Sequence[dict[str, Any]]) -> str:
    """All numbers in [0, 1], one in a row: means over seeds with their intervals, single seeds, and perturbed means."""
    ends = [f"{part}_{end}" for part in ("before", "text_only") for end in ("difference", "low", "high")]
    table: list[list[object]] = [
        [*("variant", "perturbation", "column", "value", "metric", "seed", "mean", "status", "before"), *ends]
    ]
    for row in rows:
        if row.not_run:
            table.append([row.name, "none", "", "", "", "", "", f"not run: {row.not_run}", row.before])
        for found in row.compared:
            cells = [row.name, "none", found.column, found.value, found.metric]
            wrong = not found.column and found.metric in row.out_of_order()
            gains = (found.before, found.reference)
            intervals = [
                number for gain in gains for number in ((gain.difference, gain.low, gain.high) if gain else [None] * 3)
            ]
            status = "out of order" if wrong else "run"
            table.append([*cells, "mean", found.mean, status, row.before, *intervals])
            table += [[*cells, seed, value, "run"] for seed, value in found.by_seed.items()]
    for part in perturbed:
        cells = [part["variant"], part["perturbation"], "", ""]
        table += [[*cells, metric, "mean", value, "run"] for metric, value in part["means"].items()]
    return csv_text([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row] for row in table)


# ---------------------------------------------------------------- pages


def template_environment(folder: Path, *, html: bool = False) -> jinja2.Environment:
    """`page_environment` with the formats of this module as filters."""
    environment = page_environment(folder, html=html)
    filters: list[Callable[..., Any]] = [metric_title, percent, points, interval, format_cell, escape_cell]
    environment.filters.update({found.__name__: found for found in filters})
    return environment
