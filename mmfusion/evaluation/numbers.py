"""How metrics and their differences are written, in every table and picture."""

from mmfusion.evaluation.bootstrap import PairedDifference


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
    return interval_of(found.difference, found.low, found.high)


def interval_of(difference: float, low: float, high: float) -> str:
    """The same of three numbers."""
    return f"{points(difference)} [{points(low)}, {points(high)}]"
