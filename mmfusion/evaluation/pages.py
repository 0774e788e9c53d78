"""Files to look at: the page and the picture of an evaluation, and the picture of an ablation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfusion.evaluation.comparison import REFERENCE, Compared, Row
from mmfusion.evaluation.evaluation import METRICS, Evaluation
from mmfusion.evaluation.tables import all_parts, evaluation_page, metric_title, slice_title, slices_csv

_MAX_BARS = 24


def write_evaluation(evaluation: Evaluation, folder: str | Path, name: str | None = None) -> list[Path]:
    """Saves an evaluation, and next to it `<name>.slices.csv`, `<name>.md` and `<name>.png`.

    Args:
        evaluation: What to write.
        folder: Where to write; files of the same name are replaced.
        name: Stem of the files, by default the evaluation's name.

    Returns:
        The files written.

    Raises:
        ValueError: The name is empty or would leave the folder.
    """
    saved = evaluation.save(folder, name)
    table, page, picture = (saved[0].with_suffix(ending) for ending in (".slices.csv", ".md", ".png"))
    table.write_text(slices_csv(evaluation), "utf-8")
    page.write_text(evaluation_page(evaluation), "utf-8")
    draw_evaluation(evaluation, picture)
    return [*saved, table, page, picture]


def draw_evaluation(evaluation: Evaluation, path: str | Path) -> None:
    """Draws overall numbers and slices as horizontal bars into a PNG; with many slices the first 24, and it says so."""
    # Figure without pyplot: no global state, no display, safe in a training process.
    from matplotlib.figure import Figure

    parts = all_parts(evaluation)
    shown, metrics = parts[:_MAX_BARS], list(evaluation.means)
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
        [f"{_plain(slice_title(part))} (n={part.num_queries})" for part in shown],
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


def draw_ablation(rows: Sequence[Row], path: Path) -> None:
    """Draws one panel for each metric: a bar for each variant, a dot for each of its seeds, a whisker for its interval.

    The whisker is the 95 % interval of the difference to text only, drawn from the value of text only (dashed line).

    Args:
        rows: Of the ablation.
        path: PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.8 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for axes, metric in zip(panels, METRICS, strict=True):
        found = next((row.get(metric) for row in rows if row.name == REFERENCE), None)
        level = None if found is None else found.mean
        if level is not None:
            axes.axvline(100 * level, color="grey", linestyle="--", linewidth=1)
        for place, row in enumerate(rows):
            _draw_variant(axes, place, row.get(metric), level, metric in row.out_of_order())
        axes.set_xlim(0, 112)
        axes.set_xlabel(f"{metric_title(metric)}, per cent")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [row.name for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(
        "Whisker: 95 % interval of the difference to text only, over queries. Dots: seeds. "
        "Orange: out of order against the variant before.",
        fontsize=9,
    )
    figure.savefig(path, dpi=120)


def _draw_variant(axes: Any, place: int, found: Compared | None, reference: float | None, wrong: bool) -> None:
    if found is None or found.mean is None:
        axes.text(1, place, "not run", va="center", fontsize=8, color="grey")
        return
    axes.barh(place, 100 * found.mean, 0.6, color="tab:orange" if wrong else "tab:blue", alpha=0.55)
    ends = [100 * value for value in found.by_seed.values() if value is not None]
    axes.plot(ends, [place] * len(ends), "o", color="black", markersize=2.5)
    if found.reference is not None and reference is not None:
        whisker = [100 * (reference + end) for end in (found.reference.low, found.reference.high)]
        axes.plot(whisker, [place, place], color="black", linewidth=1.5, marker="|", markersize=7)
        ends.append(whisker[1])
    axes.text(max([100 * found.mean, *ends]) + 1.5, place, f"{100 * found.mean:.1f}", va="center", fontsize=8)


def _plain(text: str) -> str:
    """Text that matplotlib draws as it is: a pair of dollar signs would start a formula."""
    return text.replace("$", r"\$")
