"""The ablation as bars with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfusion.ablation.compare import METRICS, Row
from mmfusion.ablation.variants import TEXT_ONLY
from mmfusion.evaluation.numbers import metric_title


def draw_ablation(rows: Sequence[Row], path: Path) -> None:
    """Draws one panel for each metric: a bar for each variant, a dot for each of its seeds, a whisker for its interval.

    The whisker is the 95 % interval of the difference to text only, drawn from the value of text only (dashed line).

    Args:
        rows: The table.
        path: PNG file.
    """
    # Figure without pyplot: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.8 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for axes, metric in zip(panels, METRICS, strict=True):
        _panel(axes, rows, metric)
    panels[0].set_yticks(range(len(rows)), [row.variant.name for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(
        "Whisker: 95 % interval of the difference to text only, over queries. Dots: seeds. "
        "Orange: out of order against the variant before.",
        fontsize=9,
    )
    figure.savefig(path, dpi=120)


def _panel(axes: Any, rows: Sequence[Row], metric: str) -> None:
    reference = next((row.get(metric).mean for row in rows if row.variant.name == TEXT_ONLY and row.mean), None)
    if reference is not None:
        axes.axvline(100 * reference, color="grey", linestyle="--", linewidth=1)
    for place, row in enumerate(rows):
        found = row.get(metric) if row.mean else None
        if found is None or found.mean is None:
            axes.text(1, place, "not run", va="center", fontsize=8, color="grey")
            continue
        wrong = metric in row.out_of_order()
        axes.barh(place, 100 * found.mean, 0.6, color="tab:orange" if wrong else "tab:blue", alpha=0.55)
        gain, end = found.text_only, 100 * found.mean
        if gain is not None and reference is not None:
            low, high = 100 * (reference + gain.low), 100 * (reference + gain.high)
            axes.plot([low, high], [place, place], color="black", linewidth=1.5, marker="|", markersize=7)
            end = max(end, high)
        dots = [100 * value for seed, value in found.by_seed.items() if seed is not None and value is not None]
        axes.plot(dots, [place] * len(dots), "o", color="black", markersize=2.5)
        axes.text(max([end, *dots]) + 1.5, place, f"{100 * found.mean:.1f}", va="center", fontsize=8)
    axes.set_xlim(0, 112)
    axes.set_xlabel(f"{metric_title(metric)}, per cent")
    axes.spines[["top", "right"]].set_visible(False)
