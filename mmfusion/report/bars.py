"""Where the bars of a figure are, in per cent of its width, so that it grows with the page while its text does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmfusion.evaluation.comparison import Compared
from mmfusion.evaluation.tables import interval, metric_title, percent, points


@dataclass(frozen=True)
class Scale:
    """Axis from `low` to `high` in per cent or points, with marks every `step`."""

    low: float
    high: float
    step: float

    @classmethod
    def around(cls, values: Sequence[float]) -> Scale:
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


def value_bars(names: Sequence[str], compared: Sequence[Compared]) -> dict[str, Any]:
    """Each variant's mean; its whisker is the interval of the gain over the first variant, which a line marks.

    Args:
        names: Of the variants.
        compared: Each in one metric over all queries, with the first variant as its reference.
    """
    metric, first = metric_title(compared[0].metric), 100 * (compared[0].mean or 0.0)
    bars = []
    for name, found in zip(names, compared, strict=True):
        gain, label = found.reference, f"{name}: {metric} {percent(found.mean)}"
        bars.append(
            {
                "name": name,
                "number": percent(found.mean),
                "value": 100 * (found.mean or 0.0),
                "whisker": None if gain is None else (first + 100 * gain.low, first + 100 * gain.high),
                "label": label if gain is None else f"{label}; against {names[0]} {_minus(interval(gain))} points",
            }
        )
    caption = (
        f"{metric} in per cent. Whisker: 95 % interval of the difference to the first variant, drawn from its value "
        "(dashed line)."
    )
    # No mean exceeds 100, though the end of a whisker, which is first + difference, may by a little.
    return _figure(caption, bars, first, 100.0, "{:g}")


def gain_bars(names: Sequence[str], compared: Sequence[Compared]) -> dict[str, Any]:
    """Each variant's difference to the one before it, with its interval; arguments as of `value_bars`."""
    bars = [
        {
            "name": name,
            "number": _minus(points(gain.difference)),
            "value": 100 * gain.difference,
            "whisker": (100 * gain.low, 100 * gain.high),
            "label": f"{name} against the variant before it: {_minus(interval(gain))} points",
        }
        for name, found in zip(names, compared, strict=True)
        if (gain := found.before) is not None
    ]
    caption = f"{metric_title(compared[0].metric)}: points gained over the variant before. Whisker: 95 % interval."
    return _figure(caption, bars, 0.0, math.inf, "{:+g}")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _figure(caption: str, bars: list[dict[str, Any]], reference: float, most: float, mark: str) -> dict[str, Any]:
    ends = [end for bar in bars for end in (bar["value"], *(bar["whisker"] or ()))]
    scale = Scale.around([min(most, end) for end in ends])
    for bar in bars:
        left, right = sorted((scale.place(0.0), scale.place(bar["value"])))
        bar |= {"left": left, "width": round(right - left, 3)}
        # An end beyond the axis is drawn at its edge, so that a narrow page does not scroll sideways.
        bar["whisker"] = bar["whisker"] and [min(max(scale.place(end), -1.0), 101.0) for end in bar["whisker"]]
    marks = [(scale.place(value), mark.format(round(value, 6)) if value else "0") for value in scale.marks()]
    return {"caption": caption, "bars": bars, "marks": marks, "reference": scale.place(reference)}
