"""Grades from clicks: pure functions of counts, and `grade`, which applies one of them to a log.

Which method is best depends on how shoppers look at a page, which a log does not tell; docs/judgements.md has the
simulation that the defaults were chosen by.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.clicks import COUNTS, ClickLog
from mmfusion.importers.judgements import Judgements
from mmfusion.importers.text_rows import Reject

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Signal = Literal["orders", "clicks"]
Method = Literal["funnel", "rate", "coec", "sdbn", "linear", "pbm"]

# Observations that a prior counts for.
PRIOR_STRENGTH = 10.0


def funnel(clicks: IntArray, add_to_cart: IntArray, purchases: IntArray) -> IntArray:
    """3 where a product was bought at least once, 2 put into a cart, 1 clicked, 0 only shown.

    Source: the order of signals by their robustness in Karmaker Santu, Sondhi and Zhai, SIGIR 2017 (arXiv:1903.04263).

    Args:
        clicks: int64 [n], at least 0, and so are the others.
        add_to_cart: int64 [n].
        purchases: int64 [n].

    Returns:
        Grades, int64 [n], 0 to 3.

    >>> funnel(np.array([9, 5, 1, 0]), np.array([2, 1, 0, 0]), np.array([1, 0, 0, 0]))
    array([3, 2, 1, 0])
    """
    return np.select([purchases > 0, add_to_cart > 0, clicks > 0], [3, 2, 1], 0)


def smoothed_rate(successes: npt.ArrayLike, trials: npt.ArrayLike, strength: float = PRIOR_STRENGTH) -> FloatArray:
    """Rates drawn towards the rate of all: the mean of a Beta posterior.

    The prior is Beta(m s, (1 - m) s) with m the rate over all pairs. Successes above the trials are cut to them.

    Args:
        successes: Numbers [n], at least 0.
        trials: Numbers [n], at least 0.
        strength: s, the trials that the prior counts for; 0: plain rates, 0 without a trial.

    Returns:
        float64 [n] in [0, 1].

    >>> smoothed_rate([1, 30], [2, 98], strength=0).round(2)
    array([0.5 , 0.31])
    >>> smoothed_rate([1, 30], [2, 98], strength=10).round(2)
    array([0.34, 0.31])
    """
    trials = np.asarray(trials, np.float64)
    successes = np.minimum(np.asarray(successes, np.float64), trials)
    mean = successes.sum() / max(trials.sum(), 1.0)
    # 1e-12 keeps 0 / 0 at 0.
    return (successes + mean * strength) / np.maximum(trials + strength, 1e-12)


def relative_grades(query: IntArray, score: FloatArray) -> IntArray:
    """Scores as grades: a query's best product has 3, and the others their share of its score, rounded to thirds.

    Args:
        query: int64 [n], the query of each score.
        score: float64 [n], at least 0.

    Returns:
        Grades, int64 [n], 0 to 3; all 0 for a query whose scores are 0.

    >>> relative_grades(np.array([0, 0, 0, 1]), np.array([0.3, 0.2, 0.01, 0.0]))
    array([3, 2, 0, 0])
    """
    best = pd.Series(score).groupby(query).transform("max").to_numpy()
    return np.floor(3 * score / np.where(best > 0, best, 1.0) + 0.5).astype(np.int64)


def coec(position: IntArray, clicks: IntArray, impressions: IntArray, pair: IntArray) -> FloatArray:
    """Clicks over expected clicks: those that the mean product would have got at the same positions.

    Source: Zhang and Jones, WWW 2007; a method of OpenSearch's Search Relevance Workbench. It takes the mean product
    of each position for equally good, so that a good ranker's first places look like any other.

    Args:
        position: int64 [n] from 1, of each cell (a pair at a position).
        clicks: int64 [n]; those above the impressions are cut to them.
        impressions: int64 [n].
        pair: int64 [n] from 0, the pair that each cell belongs to.

    Returns:
        float64 [pairs], 1 for the mean; 0 where no click was expected.
    """
    clicks = np.minimum(clicks, impressions)
    cells = pd.DataFrame({"position": position, "clicks": clicks, "impressions": impressions})
    of_position = cells.groupby("position").transform("sum")
    expected = impressions * of_position["clicks"] / of_position["impressions"].clip(lower=1)
    sums = np.bincount(pair, expected)
    return np.divide(np.bincount(pair, clicks), sums, out=np.zeros(len(sums)), where=sums > 0)


class Sdbn(NamedTuple):
    """Counts of the simplified dynamic Bayesian network, by pair.

    Attributes:
        query: int64 [pairs].
        product: int64 [pairs].
        examined: int64 [pairs], sessions that looked at the product: it was above the last click, or was it.
        clicked: int64 [pairs], sessions that clicked it.
        last: int64 [pairs], sessions whose last click it was.
    """

    query: IntArray
    product: IntArray
    examined: IntArray
    clicked: IntArray
    last: IntArray


def sdbn(sessions: pd.DataFrame) -> Sdbn:
    """Counts of a user who reads from the top and stops when content.

    Attractiveness is clicked / examined and satisfaction last / clicked; their product is the relevance. Sessions
    without a click say nothing of what was examined. Source: Chapelle and Zhang, "A dynamic Bayesian network click
    model for web search ranking", WWW 2009, algorithm 1 (gamma = 1).

    Args:
        sessions: `ClickLog.sessions`; "last" is the lowest clicked position.
    """
    clicked = sessions[sessions["clicked"]]
    last = clicked.groupby(["session", "query"])["position"].max().rename("end").reset_index()
    seen = sessions.merge(last, on=["session", "query"])
    seen = seen[seen["position"] <= seen["end"]]
    seen = seen.assign(last=seen["clicked"] & (seen["position"] == seen["end"]), examined=1)
    sums = seen.groupby(["query", "product"], as_index=False)[["examined", "clicked", "last"]].sum()
    return Sdbn(*(sums[name].to_numpy(np.int64) for name in Sdbn._fields))


def linear(position: FloatArray, deepest: float) -> IntArray:
    """101 - position, in four bands of equal width over the positions of the log: the first quarter has 3.

    Source: the linear weighting of Marqo-GS-10M and GCL (arXiv:2404.08535). It repeats the ranker that made the log.

    Args:
        position: float64 [n], mean position of each pair, from 1.
        deepest: The log's last position.

    Returns:
        Grades, int64 [n], 0 to 3.
    """
    return np.clip(np.floor(4 * (1 - (position - 0.5) / max(deepest, 1.0))), 0, 3).astype(np.int64)


_OF_BEST = "over the best of the query: from 5/6 on 3, from 1/2 on 2, from 1/6 on 1, else 0"
RULES: dict[str, str] = {
    "funnel": "3 bought, 2 put into the cart, 1 clicked, 0 only shown, each where it happened at least once "
    "(Karmaker Santu et al., SIGIR 2017)",
    "rate": "{signal} per impression, with a Beta prior of {strength:g} impressions at the mean rate, " + _OF_BEST,
    "coec": "clicks over expected clicks at the same positions (Zhang and Jones, WWW 2007), " + _OF_BEST,
    "sdbn": "clicks over examinations up to the last click of a session (Chapelle and Zhang, WWW 2009), with a Beta "
    "prior of {strength:g} sessions, " + _OF_BEST,
    "linear": "101 - position (GS-10M, arXiv:2404.08535), in four bands over positions 1 to {deepest:g}: 3, 2, 1, 0",
}


def grade(
    log: ClickLog,
    method: str | None = None,
    *,
    min_impressions: int = 20,
    signal: Signal | None = None,
    reject: Reject | None = None,
) -> Judgements:
    """Grades from 0 to 3 for the queries and products of a log.

    Args:
        log: From `read_clicks`.
        method: One of `RULES`; None: "sdbn" for logs with sessions, else "funnel".
        min_impressions: A pair that was shown more rarely (in fewer sessions, where the log has some) has no grade,
            whatever happened to it, and does not enter the mean of any position; of no effect on logs that do not say
            what was shown. With 1 every pair counts.
        signal: What counts as success. "orders": purchases and carts, too. "clicks": clicks alone. Default: "orders"
            where the log has purchases or carts.
        reject: Gets file, line and reason of each pair that is left out.

    Raises:
        CatalogueError: The method is unknown or needs what the log lacks, or no pair is left.
    """
    method = method or ("sdbn" if log.has_sessions else "funnel")
    _check(log, method)
    counts, strength = dict(log.counts), PRIOR_STRENGTH
    cells = log.cells
    keys = ["query", "product"]
    shown = cells.groupby(keys)["impressions"].transform("sum")
    rare = (shown < min_impressions) & log.has_impressions
    if rare.any():
        few = cells[rare].drop_duplicates(keys)
        counts[f"below min_impressions={min_impressions}"] = len(few)
        for row in few.itertuples() if reject else ():
            pair = f"{log.queries[row.query]!r} / {log.products[row.product]!r}"
            reject(log.files[row.file], row.line, f"below min_impressions={min_impressions}: {pair}")  # type: ignore[misc]
    cells = cells[~rare].reset_index(drop=True)
    if cells.empty:
        raise CatalogueError(
            f"no pair of query and product was shown {min_impressions} times (most: {shown.max()})",
            ", ".join(log.files),
            f"Lower it: --min_impressions {max(1, int(shown.max()))}.",
        )
    weighted = cells.assign(
        place=cells["position"] * cells["impressions"].clip(lower=1), weight=cells["impressions"].clip(lower=1)
    )
    pairs = weighted.groupby(keys, as_index=False, sort=False)[[*COUNTS, "place", "weight"]].sum()
    query, product = pairs["query"].to_numpy(), pairs["product"].to_numpy()
    if signal is None:
        signal = "orders" if pairs[["add_to_cart", "purchases"]].to_numpy().any() else "clicks"
    success = pairs["purchases" if signal == "orders" else "clicks"].to_numpy()
    deepest = float(cells["position"].max())
    if method == "funnel":
        bought = int(signal == "orders")
        grades = funnel(pairs["clicks"].to_numpy(), *(pairs[name].to_numpy() * bought for name in COUNTS[2:]))
    elif method == "rate":
        grades = relative_grades(query, smoothed_rate(success, pairs["impressions"], strength))
    elif method == "coec":
        at = cells.groupby(keys, sort=False).ngroup().to_numpy()
        position, clicks, impressions = (cells[name].to_numpy() for name in ("position", "clicks", "impressions"))
        grades = relative_grades(query, coec(position, clicks, impressions, at))
    elif method == "linear":
        grades = linear((pairs["place"] / pairs["weight"]).to_numpy(), deepest)
    else:
        found = sdbn(log.sessions.merge(pairs[keys], on=keys))  # type: ignore[union-attr]
        query, product = found.query, found.product
        grades = relative_grades(query, smoothed_rate(found.clicked, found.examined, strength))
        if len(query) < len(pairs):
            counts["never examined"] = len(pairs) - len(query)
    judged = dict.fromkeys(query.tolist())
    counts["queries without a judgement"] = len(log.queries) - len(judged)
    rows = [
        (log.queries[q], log.products[p], g)
        for q, p, g in zip(query.tolist(), product.tolist(), grades.tolist(), strict=True)
    ]
    rule = RULES[method].format(signal="orders" if signal == "orders" else "clicks", strength=strength, deepest=deepest)
    return Judgements(
        [log.queries[q] for q in judged], rows, f"{method}: {rule}", list(log.warnings), counts, method=method
    )


def _check(log: ClickLog, method: str) -> None:
    place, remedy = "--grades", f"Use one of {', '.join(RULES)}."
    if method not in RULES:
        raise CatalogueError(f"method {method!r} is unknown", place, remedy)
    if method == "sdbn" and not log.has_sessions:
        raise CatalogueError(
            "sdbn needs sessions, and the log has none", place, "Use funnel or rate, or pass a session log."
        )
    if method in ("coec", "linear", "sdbn") and not log.has_positions:
        raise CatalogueError(
            f"{method} needs the position of every product that was shown", place, "Use funnel or rate."
        )
    if method in ("rate", "coec", "sdbn") and not log.has_impressions:
        raise CatalogueError(f"{method} needs to know what was shown, and the log does not say", place, "Use funnel.")
