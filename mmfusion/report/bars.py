"""Bars with intervals as inline SVG that grows with the page while its text keeps its size."""

import math
from dataclasses import dataclass

from mmfusion.evaluation.tables import metric_title, percent
from mmfusion.report.ablation import Step, interval, points
from mmfusion.report.html import Html, foreign, join, tag

_HEIGHT = 26


@dataclass(frozen=True)
class Scale:
    """Axis from `low` to `high` in per cent or points, with marks every `step`."""

    low: float
    high: float
    step: float

    @classmethod
    def around(cls, values: list[float]) -> "Scale":
        """The smallest axis with 3 to 7 round marks that holds zero and all values."""
        low, high = min([0.0, *values]), max([0.0, *values])
        high = 1.0 if high - low < 0.1 else high
        span = high - low
        magnitude = 10.0 ** math.floor(math.log10(span / 4))
        step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if span / (factor * magnitude) <= 5)
        return cls(math.floor(low / step) * step, math.ceil(high / step) * step or step, step)

    def place(self, value: float) -> float:
        """Place of a value on the axis, from 0 to 100."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def marks(self) -> list[float]:
        return [self.low + number * self.step for number in range(round((self.high - self.low) / self.step) + 1)]


def value_bars(steps: list[Step], metric: str) -> Html:
    """Each variant's mean; its whisker is the interval of the gain over the first variant, which a line marks."""
    first = 100 * (steps[0].value or 0.0)
    spreads = [None if s.first is None else (first + 100 * s.first.low, first + 100 * s.first.high) for s in steps]
    values = [100 * (step.value or 0.0) for step in steps]
    # No mean exceeds 100, though the end of a whisker, which is first + difference, may by a little.
    scale = Scale.around(
        [min(100.0, end) for end in [*values, *(end for spread in spreads if spread for end in spread)]]
    )
    rows = [
        _row(
            step.name,
            percent(step.value),
            _bar(scale, value, spread, reference=first, label=_value_label(step, metric, steps[0].name)),
        )
        for step, value, spread in zip(steps, values, spreads, strict=True)
    ]
    caption = (
        f"{metric_title(metric)} in per cent. Whisker: 95 % interval of the difference to the first variant, "
        "drawn from its value (dashed line)."
    )
    return _figure(caption, rows, scale, signed=False)


def gain_bars(steps: list[Step], metric: str) -> Html:
    """Each variant's difference to the one before it, with its interval."""
    found = [(step.name, step.before) for step in steps if step.before is not None]
    ends = [100 * end for _, gain in found for end in (gain.low, gain.high, gain.difference)]
    scale = Scale.around(ends)
    rows = []
    for name, gain in found:
        label = f"{name} against the variant before it: {interval(gain)} points"
        spread = (100 * gain.low, 100 * gain.high)
        bar = _bar(scale, 100 * gain.difference, spread, reference=0.0, label=label)
        rows.append(_row(name, points(gain.difference), bar))
    caption = f"{metric_title(metric)}: points gained over the variant before. Whisker: 95 % interval."
    return _figure(caption, rows, scale, signed=True)


def _value_label(step: Step, metric: str, first: str) -> str:
    label = f"{step.name}: {metric_title(metric)} {percent(step.value)}"
    return label if step.first is None else f"{label}; against {first} {interval(step.first)} points"


def _figure(caption: str, rows: list[Html], scale: Scale, *, signed: bool) -> Html:
    axis = tag("div", tag("span"), _axis(scale, signed), tag("span"), class_="bar axis")
    return tag("figure", tag("figcaption", caption), *rows, axis, class_="plot")


def _row(name: str, number: str, bar: Html) -> Html:
    return tag(
        "div", tag("span", foreign(name), class_="name"), bar, tag("span", number, class_="number"), class_="bar"
    )


def _bar(scale: Scale, value: float, spread: tuple[float, float] | None, *, reference: float, label: str) -> Html:
    left, right = sorted((scale.place(0.0), scale.place(value)))
    parts = [_line(scale.place(mark), 0, _HEIGHT, "grid") for mark in scale.marks()]
    parts.append(tag("rect", x=f"{left}%", y=5, width=f"{round(right - left, 3)}%", height=16, class_="fill"))
    parts.append(_line(scale.place(reference), 0, _HEIGHT, "reference"))
    if spread is not None:
        # An end beyond the axis is drawn at its edge, so that a narrow page does not scroll sideways.
        low, high = (min(max(scale.place(end), -1.0), 101.0) for end in spread)
        parts.append(tag("line", x1=f"{low}%", x2=f"{high}%", y1=13, y2=13, class_="whisker"))
        parts += [_line(end, 8, 18, "whisker") for end in (low, high)]
    return tag("svg", *parts, width="100%", height=_HEIGHT, role="img", aria_label=label)


def _axis(scale: Scale, signed: bool) -> Html:
    texts = []
    for mark in scale.marks():
        place = scale.place(mark)
        anchor = "start" if place <= 0 else "end" if place >= 100 else "middle"
        text = f"{mark:+g}".replace("-", "−").replace("+0", "0") if signed and mark == 0 else _mark(mark, signed)
        texts.append(tag("text", text, x=f"{place}%", y=13, text_anchor=anchor))
    return tag("svg", *texts, width="100%", height=18, aria_hidden="true")


def _mark(mark: float, signed: bool) -> str:
    text = f"{round(mark, 6):+g}" if signed and mark else f"{round(mark, 6):g}"
    return text.replace("-", "−")


def _line(place: float, top: int, bottom: int, class_: str) -> Html:
    return tag("line", x1=f"{place}%", x2=f"{place}%", y1=top, y2=bottom, class_=class_)


def plots(ablations: dict[str, list[Step]]) -> Html:
    """All figures of all metrics."""
    figures = []
    for metric, steps in ablations.items():
        figures.append(value_bars(steps, metric))
        if len(steps) > 1:
            figures.append(gain_bars(steps, metric))
    return tag("div", join(*figures), class_="plots")
