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
from mmfusion.importers.row_batches import Reject

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Signal = Literal["orders", "clicks"]
Method = Literal["funnel", "pbm", "rate", "coec", "sdbn", "linear"]

# Shares of the best score of a query from which on a product has grade 1, 2 and 3.
SHARES = (0.1, 0.3, 0.7)
# Impressions, and expected clicks, that the priors of `grade` count for.
PRIOR_STRENGTH, PRIOR_CLICKS = 10.0, 1.0


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
    shown = np.asarray(trials, np.float64)
    cut = np.minimum(np.asarray(successes, np.float64), shown)
    mean = cut.sum() / max(shown.sum(), 1.0)
    # 1e-12 keeps 0 / 0 at 0.
    return (cut + mean * strength) / np.maximum(shown + strength, 1e-12)


def relative_grades(query: IntArray, score: FloatArray, successes: npt.ArrayLike) -> IntArray:
    """Scores as grades by their share of the best score of the query: from 0.7 on 3, from 0.3 on 2, from 0.1 on 1.

    A product without a success has 0, whatever a prior makes of it: else one that was rarely shown would be better than
    one that was often passed over.

    Args:
        query: int64 [n], the query of each score.
        score: float64 [n], at least 0.
        successes: Numbers [n], at least 0.

    Returns:
        Grades, int64 [n], 0 to 3; all 0 for a query without a success.

    >>> relative_grades(np.array([0, 0, 0, 1]), np.array([0.4, 0.2, 0.1, 0.1]), np.array([4, 2, 0, 0]))
    array([3, 2, 0, 0])
    """
    score = np.where(np.asarray(successes) > 0, score, 0.0)
    best = pd.Series(score).groupby(query).transform("max").to_numpy()
    return np.digitize(score / np.where(best > 0, best, 1.0), SHARES)


def position_based_model(
    position: IntArray,
    clicks: IntArray,
    impressions: IntArray,
    pair: IntArray,
    strength: float = PRIOR_STRENGTH,
    steps: int = 50,
) -> tuple[FloatArray, FloatArray]:
    """Attractiveness of pairs and examination of positions, whose product is the chance of a click.

    Estimated by expectation maximisation from 1 / sqrt(position) on, with a Beta prior on the attractiveness whose mean
    is that of all pairs. Pairs that move between positions tell the two apart; where none does, the prior leans towards
    equally good products at all positions.

    Source: the position-based model of Craswell et al., WSDM 2008; its estimation as in Chuklin, Markov and de Rijke,
    "Click Models for Web Search", 2015, chapter 4. The prior and the start are ours.

    Args:
        position: int64 [n] from 1, of each cell (a pair at a position).
        clicks: int64 [n]; those above the impressions are cut to them.
        impressions: int64 [n].
        pair: int64 [n] from 0, the pair that each cell belongs to.
        strength: Impressions that the prior counts for.
        steps: Of the estimation.

    Returns:
        Attractiveness, float64 [pairs] in (0, 1), and examination, float64 [last position + 1] in (0, 1]; place 0 of
        the latter is not used.
    """
    clicks = np.minimum(clicks, impressions)
    missed = impressions - clicks
    of_pair, of_position = np.bincount(pair, impressions), np.bincount(position, impressions)
    examination = 1 / np.sqrt(np.maximum(np.arange(len(of_position)), 1))
    attractiveness = np.full(len(of_pair), 0.2)
    for _ in range(steps):
        seen, liked = examination[position], attractiveness[pair]
        mean = min(clicks.sum() / max((impressions * seen).sum(), 1e-12), 0.99)
        # A product that was not clicked was liked and not seen, or seen and not liked, or neither.
        neither = missed / np.maximum(1 - seen * liked, 1e-12)
        liked_at_all = np.bincount(pair, clicks + neither * liked * (1 - seen))
        attractiveness = (liked_at_all + mean * strength) / (of_pair + strength)
        seen_at_all = np.bincount(position, clicks + neither * seen * (1 - liked))
        examination = np.clip(seen_at_all / np.maximum(of_position, 1e-12), 1e-4, 1)
    return attractiveness, examination


def coec(
    position: IntArray, clicks: IntArray, impressions: IntArray, pair: IntArray, strength: float = 0.0
) -> FloatArray:
    """Clicks over expected clicks: those that the mean product would have got at the same positions.

    Source: Zhang and Jones, WWW 2007; a method of OpenSearch's Search Relevance Workbench. It takes the mean product
    of each position for equally good, so that a good ranker's first places look like any other.

    Args:
        position: int64 [n] from 1, of each cell (a pair at a position).
        clicks: int64 [n]; those above the impressions are cut to them.
        impressions: int64 [n].
        pair: int64 [n] from 0, the pair that each cell belongs to.
        strength: Expected clicks that a prior at the mean, 1, counts for.

    Returns:
        float64 [pairs], 1 for the mean; 0 where no click was expected.
    """
    clicks = np.minimum(clicks, impressions)
    cells = pd.DataFrame({"position": position, "clicks": clicks, "impressions": impressions})
    of_position = cells.groupby("position").transform("sum")
    expected = impressions * of_position["clicks"] / of_position["impressions"].clip(lower=1)
    sums = np.bincount(pair, expected) + strength
    return np.divide(np.bincount(pair, clicks) + strength, sums, out=np.zeros(len(sums)), where=sums > 0)


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


_OF_BEST = "over the best of the query: from 0.7 on 3, from 0.3 on 2, from 0.1 on 1; without any 0"
RULES: dict[str, str] = {
    "funnel": "3 bought, 2 put into the cart, 1 clicked, 0 only shown, each where it happened at least once "
    "(Karmaker Santu et al., SIGIR 2017)",
    "pbm": "attractiveness in the position-based model (Craswell et al., WSDM 2008) of {signal}, with a Beta prior of "
    "{strength:g} impressions at the mean, " + _OF_BEST,
    "rate": "{signal} per impression, with a Beta prior of {strength:g} impressions at the mean, " + _OF_BEST,
    "coec": "{signal} over those expected at the same positions (Zhang and Jones, WWW 2007), with a prior of "
    "{prior_clicks:g} at the mean, " + _OF_BEST,
    "sdbn": "clicks over examinations up to the last click of a session (Chapelle and Zhang, WWW 2009), with a Beta "
    "prior of {strength:g} sessions at the mean, " + _OF_BEST,
    "linear": "101 - position (GS-10M, arXiv:2404.08535), in four bands over positions 1 to {deepest:g}: 3, 2, 1, 0",
}
_PAIR = ["query", "product"]


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
        method: One of `RULES`. None: "pbm" where the log has positions, else "rate"; "funnel" where it does not
            say what was shown.
        min_impressions: A pair that was shown more rarely (in fewer sessions, where the log has some) has no grade,
            whatever happened to it, and does not enter the mean of any position; of no effect on logs that do not say
            what was shown. With 1 every pair counts.
        signal: What counts as success. "orders": purchases (and carts, for the funnel). "clicks": clicks alone.
            Default: "orders" for the funnel, "clicks" for all others.
        reject: Gets file, line and reason of each pair that is left out.

    Raises:
        CatalogueError: The method is unknown or needs what the log lacks, or no pair is left.
    """
    if method is None:
        method = "funnel" if not log.has_impressions else "pbm" if log.has_positions else "rate"
    signal = signal or ("orders" if method == "funnel" else "clicks")
    _check(log, method, signal)
    counts, warnings = dict(log.counts), list(log.warnings)
    cells = _often_shown(log, min_impressions, reject, counts, warnings)
    query, product, grades, rule = _graded(log, cells, method, signal)
    judged = list(dict.fromkeys(query.tolist()))
    if len(judged) < len(log.queries):
        counts["query without a judgement"] = len(log.queries) - len(judged)
    if not grades.any():
        warnings.append("all grades are 0: no pair that was shown often enough has a success")
    if min_impressions > 1 and log.has_impressions:
        rule += f"; pairs shown fewer than {min_impressions} times have no grade"
    rows = zip(query.tolist(), product.tolist(), grades.tolist(), strict=True)
    return Judgements(
        [log.queries[one] for one in judged],
        [(log.queries[q], log.products[p], one) for q, p, one in rows],
        f"{method}: {rule}",
        warnings,
        counts,
        method=method,
    )


def _check(log: ClickLog, method: str, signal: Signal) -> None:
    if method not in RULES:
        raise CatalogueError(f"method {method!r} is unknown", "--grades", f"Use one of {', '.join(RULES)}.")
    place = f"--grades {method}"
    if method == "sdbn" and not log.has_sessions:
        raise CatalogueError("the log has no sessions", place, "Use pbm or rate, or give a session log.")
    if method in ("coec", "linear", "sdbn", "pbm") and not log.has_positions:
        remedy = 'Use rate or funnel, or name the column: --columns \'{"position": "…"}\'.'
        raise CatalogueError("the log has no position for some products that were shown", place, remedy)
    if method not in ("funnel", "linear") and not log.has_impressions:
        raise CatalogueError("the log does not say what was shown", place, "Use funnel.")
    if method in ("sdbn", "linear") and signal == "orders":
        raise CatalogueError(f"{method} does not count orders", f"{place} --signal orders", "Leave out --signal.")
    if method != "funnel" and signal == "orders" and not log.cells["purchases"].any():
        raise CatalogueError("the log has no purchases", f"{place} --signal orders", "Use --signal clicks.")


def _often_shown(
    log: ClickLog, least: int, reject: Reject | None, counts: dict[str, int], warnings: list[str]
) -> pd.DataFrame:
    """Cells of the pairs that were shown often enough; the others are counted."""
    shown = log.cells.groupby(_PAIR)["impressions"].transform("sum")
    rare = (shown < least) & log.has_impressions
    few = log.cells[rare].drop_duplicates(_PAIR)
    if few.empty:
        return log.cells
    counts[f"below min_impressions={least}"] = len(few)
    for row in few.itertuples() if reject else ():
        pair = f"{log.queries[row.query]!r} / {log.products[row.product]!r}"
        reject(log.files[row.file], row.line, f"below min_impressions={least}: {pair}")  # type: ignore[misc]
    if rare.all():
        remedy = f"Lower it: --min_impressions {max(1, int(shown.max()))}."
        problem = f"no pair of query and product was shown {least} times (most: {shown.max()})"
        raise CatalogueError(problem, ", ".join(log.files), remedy)
    lost, all_clicks = int(log.cells.loc[rare, "clicks"].sum()), int(log.cells["clicks"].sum())
    if lost > all_clicks / 2:
        warnings.append(
            f"{lost:,} of {all_clicks:,} clicks are of pairs below min_impressions={least}; lower it to use them"
        )
    return log.cells[~rare].reset_index(drop=True)


def _graded(
    log: ClickLog, cells: pd.DataFrame, method: str, signal: Signal
) -> tuple[IntArray, IntArray, IntArray, str]:
    """Query, product and grade of each pair, and the rule."""
    at = cells.groupby(_PAIR, sort=False).ngroup().to_numpy()
    position, impressions = cells["position"].to_numpy(), cells["impressions"].to_numpy()
    success = cells["purchases" if signal == "orders" else "clicks"].to_numpy()
    pairs = cells.groupby(_PAIR, sort=False, as_index=False)[list(COUNTS)].sum()
    query, product = pairs["query"].to_numpy(), pairs["product"].to_numpy()
    successes = np.bincount(at, success)
    values = {"signal": signal, "strength": PRIOR_STRENGTH, "prior_clicks": PRIOR_CLICKS, "deepest": position.max()}
    rule = RULES[method].format(**values)
    if method == "funnel":
        orders = int(signal == "orders")
        grades = funnel(pairs["clicks"].to_numpy(), *(pairs[name].to_numpy() * orders for name in COUNTS[2:]))
    elif method == "linear":
        weight = np.maximum(impressions, 1)
        grades = linear(np.bincount(at, position * weight) / np.bincount(at, weight), position.max())
    elif method == "sdbn":
        found = sdbn(log.sessions.merge(pairs[_PAIR], on=_PAIR))  # type: ignore[union-attr]
        query, product = found.query, found.product
        grades = relative_grades(query, smoothed_rate(found.clicked, found.examined, PRIOR_STRENGTH), found.clicked)
    elif method == "coec":
        grades = relative_grades(query, coec(position, success, impressions, at, PRIOR_CLICKS), successes)
    elif method == "rate":
        shown = np.bincount(at, impressions)
        grades = relative_grades(query, smoothed_rate(successes, shown, PRIOR_STRENGTH), successes)
    else:
        score, examination = position_based_model(position, success, impressions, at, PRIOR_STRENGTH)
        grades = relative_grades(query, score, successes)
        looks = ", ".join(f"{one:.2f}" for one in examination[1:11] / max(examination[1:].max(), 1e-12))
        rule += f" (examination from position 1 on: {looks})"
    return query, product, grades, rule
