"""Slices by variants as a table whose colour is the gain over the first variant."""

from collections.abc import Sequence

from mmfusion.evaluation import Evaluation
from mmfusion.evaluation.tables import metric_title, percent
from mmfusion.report.ablation import points
from mmfusion.report.html import Html, foreign, join, table, tag

SHADES = 5
_Key = tuple[str, str, str]


def heat_map(variants: Sequence[Evaluation], metric: str) -> Html:
    """Rows are all queries, query slices and product slices that define the metric; columns are variants.

    A cell holds the value in per cent and, in points, its difference to the first variant; its shade is that
    difference in proportion to the largest one of the table.
    """
    values = {key: [_value(variant, key, metric) for variant in variants] for key in _keys(variants)}
    values = {key: row for key, row in values.items() if any(value is not None for value in row)}
    differences = [value - row[0] for row in values.values() for value in row if None not in (value, row[0])]  # type: ignore[operator]
    largest = max((abs(difference) for difference in differences), default=0.0)
    rows: list[list[str]] = []
    for key, row in values.items():
        cells = [_cell(value, row[0], largest, is_first=place == 0) for place, value in enumerate(row)]
        rows.append([_name(key, variants), *cells])
    header = ["Slice", *(foreign(variant.name) for variant in variants)]
    return table(header, rows, caption=f"{metric_title(metric)} in per cent, by slice")


def legend() -> Html:
    """What the shades mean."""
    shades = [
        tag("span", class_=f"key {shade}") for shade in [_shade(step, SHADES) for step in range(-SHADES, SHADES + 1)]
    ]
    return tag("p", "Shade: below the first variant ", *shades, " above it.", class_="legend")


def _keys(variants: Sequence[Evaluation]) -> list[_Key]:
    parts = [(part.table, part.column, part.value) for variant in variants for part in variant.slices]
    return list(dict.fromkeys([("all", "", ""), *parts]))


def _value(variant: Evaluation, key: _Key, metric: str) -> float | None:
    if key[0] == "all":
        return variant.means.get(metric)
    part = variant.part(*key)
    return None if part is None else part.metrics.get(metric)


def _name(key: _Key, variants: Sequence[Evaluation]) -> Html:
    kind, column, value = key
    if kind == "all":
        return join("all queries ", _count(variants[0].num_queries))
    part = next(part for variant in variants if (part := variant.part(*key)) is not None)
    what = "products with " if kind == "product" else ""
    return join(what, foreign(f"{column} = {value}", 80), " ", _count(part.num_queries))


def _count(number: int) -> Html:
    return tag("span", f"{number:,} {'query' if number == 1 else 'queries'}", class_="count")


def _cell(value: float | None, first: float | None, largest: float, *, is_first: bool) -> Html:
    if value is None:
        return tag("td", "–")
    if is_first or first is None:
        return tag("td", percent(value), class_="value")
    difference = value - first
    number = 0 if largest == 0 else round(SHADES * difference / largest)
    spread = tag("span", points(difference), class_="spread")
    return tag("td", join(percent(value), " ", spread), class_=f"value {_shade(number, SHADES)}")


def _shade(number: int, count: int) -> str:
    number = max(-count, min(count, number))
    return "even" if number == 0 else f"{'up' if number > 0 else 'down'}{abs(number)}"
