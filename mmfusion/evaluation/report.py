"""Evaluations as Markdown, CSV and a bar chart."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mmfusion.evaluation.evaluation import CONDITIONS, Evaluation
from mmfusion.evaluation.numbers import metric_title, percent
from mmfusion.evaluation.slices import Slice

_MAX_BARS = 24


def format_table(
    evaluations: Sequence[Evaluation],
    *,
    slice_by: str = "kind",
    metrics: Sequence[str] = ("recall@100", "ndcg@10"),
) -> str:
    """Compare evaluations of the same queries over the same pool.

    Args:
        evaluations: at least one; rows of the table in this order.
        slice_by: query column whose values become columns, beside "all". A column that was not sliced adds none.
        metrics: metrics of a cell, in per cent.

    Returns:
        An aligned Markdown table, below it the conditions that the numbers hold for.

    Raises:
        ValueError: no evaluation; a metric that one lacks; or they differ in pool, queries, relevant grade or gain.
    """
    first = _check_comparable(evaluations)
    values = sorted({part.value for e in evaluations for part in _query_parts(e, slice_by)})
    header = ["", "all", *values]
    rows = [header]
    for evaluation in evaluations:
        by_value = {part.value: part.metrics for part in _query_parts(evaluation, slice_by)}
        cells = [_cell(evaluation.means, metrics, evaluation.name)]
        cells += [_cell(by_value[value], metrics, evaluation.name) if value in by_value else "-" for value in values]
        rows.append([evaluation.name, *cells])
    rows[0][0] = " / ".join(metric_title(metric) for metric in metrics)
    return f"{_markdown_table(rows)}\n\n{first.conditions()}\n"


def format_product_slices(evaluations: Sequence[Evaluation], *, metric: str = "recall@100") -> str:
    """Markdown table of a metric over relevant products with a value, per cent; empty if there is no product slice."""
    _check_comparable(evaluations)
    rows = [[f"{metric_title(metric)} over relevant products with", *(evaluation.name for evaluation in evaluations)]]
    parts = [(part.column, part.value) for e in evaluations for part in e.slices if part.table == "product"]
    for column, value in dict.fromkeys(parts):
        found = [evaluation.part("product", column, value) for evaluation in evaluations]
        rows.append(
            [f"{column}={value}", *("-" if own is None else _percent(own.metrics.get(metric)) for own in found)]
        )
    return f"{_markdown_table(rows)}\n" if len(rows) > 1 else ""


def markdown(evaluation: Evaluation) -> str:
    """One evaluation as a Markdown page: overall numbers and every slice, in per cent, under their conditions."""
    metrics = list(evaluation.means)
    rows = [["slice", "queries", *map(metric_title, metrics)]]
    rows.append(["all", str(evaluation.num_queries), *(_percent(evaluation.means[metric]) for metric in metrics)])
    for part in evaluation.slices:
        rows.append([_slice_name(part), str(part.num_queries), *(_percent(part.metrics.get(m)) for m in metrics)])
    lines = [f"# {evaluation.name}", evaluation.conditions() + ".", _markdown_table(rows)]
    if any(part.table == "product" for part in evaluation.slices):
        lines.append(
            "A product slice is Recall over each query's relevant products with that value; nDCG has no such parts."
        )
    return "\n\n".join(lines) + "\n"


def slices_csv(evaluation: Evaluation) -> str:
    """Overall numbers and slices as CSV, metrics in [0, 1], empty where undefined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = list(evaluation.means)
    writer.writerow(["table", "column", "value", "num_queries", *metrics])
    overall = Slice("all", "", "", evaluation.num_queries, evaluation.means)
    for part in [overall, *evaluation.slices]:
        numbers = [part.metrics.get(metric) for metric in metrics]
        writer.writerow(
            [part.table, part.column, part.value, part.num_queries, *("" if n is None else n for n in numbers)]
        )
    return text.getvalue()


def draw_bars(evaluation: Evaluation, path: str | Path) -> None:
    """Draw overall numbers and slices as horizontal bars into a PNG; with many slices the first 24, and it says so."""
    # Figure without pyplot: no global state, no display, safe in a training process.
    from matplotlib.figure import Figure

    parts = [Slice("all", "", "", evaluation.num_queries, evaluation.means), *evaluation.slices]
    shown = parts[:_MAX_BARS]
    metrics = list(evaluation.means)
    height = 0.8 / len(metrics)
    figure = Figure(figsize=(8, 1.6 + 0.24 * len(metrics) * len(shown)), layout="constrained")
    axes = figure.subplots()
    for index, metric in enumerate(metrics):
        numbers = [(place, part.metrics.get(metric)) for place, part in enumerate(shown)]
        known = [(place + index * height, 100 * number) for place, number in numbers if number is not None]
        bars = axes.barh([y for y, _ in known], [x for _, x in known], height, label=metric_title(metric))
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_yticks(
        [place + 0.4 - height / 2 for place in range(len(shown))],
        [f"{_plain(_slice_name(part))} (n={part.num_queries})" for part in shown],
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("per cent")
    left_out = f", first {len(shown)} of {len(parts)} rows" if len(shown) < len(parts) else ""
    labels = f"\nlabels: {_plain(evaluation.label_source)}" if evaluation.label_source else ""
    axes.set_title(
        f"{_plain(evaluation.name)}\npool: {evaluation.pool}, {evaluation.num_products} products, relevant: grade >= "
        f"{evaluation.relevant_grade}, gain = grade{left_out}{labels}",
        fontsize=9,
        wrap=True,
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(metrics), frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def _check_comparable(evaluations: Sequence[Evaluation]) -> Evaluation:
    if not evaluations:
        raise ValueError("no evaluation to tabulate; pass at least one")
    first = evaluations[0]
    for other in evaluations[1:]:
        for name in CONDITIONS:
            if getattr(first, name) != getattr(other, name):
                raise ValueError(
                    f"{first.name!r} has {name}={getattr(first, name)!r} but {other.name!r} has "
                    f"{name}={getattr(other, name)!r}: their numbers cannot stand in one table; evaluate both alike"
                )
    return first


def _query_parts(evaluation: Evaluation, column: str) -> list[Slice]:
    return [part for part in evaluation.slices if part.table == "query" and part.column == column]


def _cell(numbers: dict[str, float | None], metrics: Sequence[str], name: str) -> str:
    for metric in metrics:
        if metric not in numbers:
            raise ValueError(f"{name!r} has no metric {metric!r}; it has {', '.join(numbers)}")
    return " / ".join(_percent(numbers[metric]) for metric in metrics)


def _percent(number: float | None) -> str:
    return percent(number, undefined="-")


def _slice_name(part: Slice) -> str:
    if part.table == "all":
        return "all"
    return f"{part.column}={part.value}" if part.table == "query" else f"products with {part.column}={part.value}"


def _plain(text: str) -> str:
    """Text that matplotlib draws as it is: a pair of dollar signs would start a formula."""
    return text.replace("$", r"\$")


def _markdown_table(rows: list[list[str]]) -> str:
    rows = [[" ".join(cell.replace("|", r"\|").split()) for cell in row] for row in rows]
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
