"""The ablation: every variant's metrics with paired intervals against the variant before it and against the first."""

from dataclasses import dataclass

from mmfusion.evaluation import Evaluation, PairedDifference, paired_bootstrap, tables
from mmfusion.evaluation.tables import metric_title, percent
from mmfusion.report.html import Html, foreign, join, table, tag


@dataclass(frozen=True)
class Step:
    """One variant in one metric.

    Attributes:
        name: Name of the variant.
        value: Mean in [0, 1]; None where no query defines the metric.
        before: Difference to the variant before it; None for the first variant.
        first: Difference to the first variant; None for the first variant.
    """

    name: str
    value: float | None
    before: PairedDifference | None
    first: PairedDifference | None


def climb(variants: list[Evaluation], metric: str, *, seed: int = 0) -> list[Step]:
    """Compares each variant with the one before it and with the first.

    Args:
        variants: At least one, of the same queries and pool.
        metric: Name of a metric that all have.
        seed: Of the bootstrap samples.
    """
    steps = []
    for place, variant in enumerate(variants):
        before = paired_bootstrap(variant, variants[place - 1], metric, seed=seed) if place else None
        # The second variant has one neighbour that is both.
        first = before if place <= 1 else paired_bootstrap(variant, variants[0], metric, seed=seed)
        steps.append(Step(variant.name, variant.means[metric], before, first))
    return steps


def ablation_table(ablations: dict[str, list[Step]]) -> Html:
    """Table of all variants; `ablations` holds the same variants by metric."""
    header, columns = ["Variant"], list(ablations.values())
    for metric in ablations:
        title = metric_title(metric)
        header += [title, f"{title} against the one before", f"{title} against the first"]
    rows = []
    for steps in zip(*columns, strict=True):
        row: list[str] = [foreign(steps[0].name)]
        for step in steps:
            row += [tag("td", percent(step.value), class_="value"), _gain(step.before), _gain(step.first)]
        rows.append(row)
    return table(header, rows, caption="Per cent; differences in points with 95 % intervals")


def interval(found: PairedDifference) -> str:
    """A difference in points with its interval, with true minus signs."""
    return tables.interval(found).replace("-", "−")


def points(difference: float) -> str:
    """A signed difference in points, with a true minus sign."""
    return tables.points(difference).replace("-", "−")


def _gain(found: PairedDifference | None) -> Html:
    if found is None:
        return tag("td", "–")
    excludes_zero = found.low > 0 or found.high < 0
    number = tag("strong", points(found.difference)) if excludes_zero else points(found.difference)
    spread = tag("span", f"[{points(found.low)}, {points(found.high)}]", class_="spread")
    return tag("td", join(number, " ", spread))
