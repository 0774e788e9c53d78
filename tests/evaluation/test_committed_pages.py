"""The committed pages and cards come out of the same numbers with the same text, but for words that were renamed."""

import csv
import re
from pathlib import Path

import pytest

from mmfusion.ablation import AblationSettings
from mmfusion.ablation.variants import all_variants
from mmfusion.evaluation import PairedDifference
from mmfusion.evaluation.comparison import Ablation, Compared, Row
from mmfusion.evaluation.tables import ablation_table, differences_table, perturbed_table, seeds_table

PAGES = Path(__file__).resolve().parents[2] / "model_cards"
FUSIONS = ("image_only", "weighted_mean", "bilinear", "moe", "cross_attention", "gated")


def difference(cells: dict[str, str], part: str) -> PairedDifference | None:
    ends = [cells[f"{part}_{end}"] for end in ("difference", "low", "high")]
    if not all(ends):
        return None
    found, low, high = map(float, ends)
    return PairedDifference(cells["metric"], 0.0, 0.0, found, low, high, 0.95, 0, 0, 0)


def numbers(name: str) -> Ablation:
    """What the CSV of a committed ablation says, as the data that pages are written from today."""
    with (PAGES / "ablations" / f"{name}.csv").open(newline="") as file:
        table = [{key: value or "" for key, value in cells.items()} for cells in csv.DictReader(file)]
    rows = []
    for variant in all_variants(AblationSettings(output=Path("out"), fusions=FUSIONS)):
        own = [cells for cells in table if (cells["variant"], cells["perturbation"]) == (variant.name, "none")]
        means = [cells for cells in own if cells["seed"] == "mean"]
        if not means:
            reason = own[0]["status"].removeprefix("not run: ")
            rows.append(Row(variant.name, variant.title, variant.expected, own[0]["before"], reason))
            continue
        compared = []
        for cells in means:
            part = [cells[key] for key in ("metric", "column", "value")]
            same = [one for one in own if [one[key] for key in ("metric", "column", "value")] == part]
            by_seed = {one["seed"]: float(one["mean"]) for one in same if one["seed"] != "mean"}
            gains = [difference(cells, end) for end in ("before", "text_only")]
            compared.append(Compared(*part, float(cells["mean"]), by_seed, *gains))
        seeds = tuple(int(seed) for seed in compared[0].by_seed)
        before = means[0]["before"] or None
        rows.append(Row(variant.name, variant.title, variant.expected, before, "", seeds, tuple(compared)))
    perturbed: dict[tuple[str, str], dict[str, float]] = {}
    for cells in table:
        if cells["perturbation"] != "none":
            means_of = perturbed.setdefault((cells["variant"], cells["perturbation"]), {})
            means_of[cells["metric"]] = float(cells["mean"])
    named = [{"variant": key[0], "perturbation": key[1], "means": means} for key, means in perturbed.items()]
    return Ablation("test", tuple(rows), perturbed=named)


def committed(page: str) -> str:
    """A committed page in today's words."""
    return re.sub(r"\brung", "variant", (PAGES / page).read_text("utf-8"))


@pytest.mark.parametrize("name", ["fpi", "fpi_44k", "fpi-128x96", "fpi-claims"])
def test_tables_of_an_ablation_are_those_of_its_committed_page(name: str) -> None:
    ablation, page = numbers(name), committed(f"ablations/{name}.md")
    assert ablation_table(ablation.rows, claims=True) in page
    assert seeds_table(ablation.rows) in page
    kinds = [("kind", "mixed"), ("kind", "textual"), ("kind", "visual")]
    shown = {row.name: row for row in ablation.rows if row.compared and row.name not in ("bm25", "text_only")}
    cells = {
        name: lambda metric, part, row=row: (found := row.get(metric, *part)) and found.reference
        for name, row in shown.items()
    }
    assert differences_table("against text only", cells, kinds) in page


@pytest.mark.parametrize("name", ["fpi", "fpi_44k"])
def test_tables_of_an_ablation_are_those_of_its_committed_card(name: str) -> None:
    ablation, card = numbers(name), committed(f"{name}-ablation.md")
    assert ablation_table(ablation.rows, claims=False) in card
    assert not ablation.perturbed or perturbed_table(ablation) in card
