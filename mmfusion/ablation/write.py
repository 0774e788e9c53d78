"""Writes an ablation as CSV and PNG, and as the Markdown page that holds the rest."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mmfusion.ablation.collect import Results, average
from mmfusion.ablation.compare import Compared, Row
from mmfusion.ablation.draw import draw_ablation
from mmfusion.evaluation import PairedDifference

_COLUMNS = ("variant", "perturbation", "column", "value", "metric", "seed", "mean", "status")
_DIFFERENCES = tuple(f"{part}_{end}" for part in ("before", "text_only") for end in ("difference", "low", "high"))


def write_ablation(folder: Path, split: str, rows: Sequence[Row], results: Results, markdown: str) -> list[Path]:
    """Writes `ablation.<split>.md`, `.csv` and `.png`, and the evaluation of each variant averaged over its seeds.

    Args:
        folder: Output folder; the averaged evaluations go to `<split>/mean`, where recipes/report.py can read them.
        split: Queries that the ablation is about.
        rows: The table.
        results: Evaluations by variant and perturbation.
        markdown: The page.

    Returns:
        The three files.
    """
    for (variant, perturbation), by_seed in results.items():
        name = variant if perturbation == "none" else f"{variant}.{perturbation}"
        average(by_seed, name).save(folder / split / "mean")
    paths = [folder / f"ablation.{split}{ending}" for ending in (".md", ".csv", ".png")]
    paths[0].write_text(markdown, "utf-8")
    paths[1].write_text(ablation_csv(rows, results), "utf-8")
    draw_ablation(rows, paths[2])
    return paths


def ablation_csv(rows: Sequence[Row], results: Results) -> str:
    """All numbers in [0, 1], one in a row: means over seeds with their intervals, single seeds, and perturbed means."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, "before", *_DIFFERENCES])
    for row in rows:
        status = row.not_run or "run"
        if row.mean is None:
            writer.writerow(
                [row.variant.name, "none", "", "", "", "", "", f"not run: {status}", row.variant.before or ""]
            )
        for found in row.compared:
            cells = [row.variant.name, "none", found.column, found.value, found.metric]
            order = "out of order" if not found.column and found.metric in row.out_of_order() else status
            writer.writerow([*cells, "mean", _number(found.mean), order, row.before or "", *_ends(found)])
            for seed, value in found.by_seed.items():
                if seed is not None:
                    writer.writerow([*cells, seed, _number(value), status])
    for (variant, perturbation), by_seed in results.items():
        if perturbation != "none":
            for metric, value in average(by_seed, variant).means.items():
                writer.writerow([variant, perturbation, "", "", metric, "mean", _number(value), "run"])
    return text.getvalue()


def _ends(found: Compared) -> list[str]:
    return [*_interval(found.before), *_interval(found.text_only)]


def _interval(found: PairedDifference | None) -> list[str]:
    return ["", "", ""] if found is None else [_number(found.difference), _number(found.low), _number(found.high)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
