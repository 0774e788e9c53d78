"""A lowest score that separates what queries ask for from what they do not, measured on judged queries."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmfusion.retrieval.filters import Filter
from mmfusion.retrieval.ranking import RankingError
from mmfusion.retrieval.search import Searcher
from mmfusion.retrieval.vectors import BoolArray

PLACES = 100
# Hits that a precision is measured on, at least.
_LEAST_HITS = 20


@dataclass(frozen=True)
class Calibration:
    """A lowest score, and what hits above it are worth.

    Attributes:
        min_score: The lowest inner product that a hit may have.
        precision: Share of the hits at or above it that are relevant, of all queries together, in [0, 1].
        recall: Share of all relevant hits that are at or above it, in [0, 1].
        hits: Number of hits that the precision was measured on.
        queries: Number of queries.
        places: Hits of each query that were looked at.
    """

    min_score: float
    precision: float
    recall: float
    hits: int
    queries: int
    places: int

    def __str__(self) -> str:
        return (
            f"min_score {self.min_score:.3f}: {self.precision:.1%} of the {self.hits:,} hits at or above it are judged "
            f"relevant, and {self.recall:.1%} of the relevant hits are there ({self.queries} val queries, first "
            f"{self.places} hits of each)"
        )


def calibrate(
    searcher: Searcher,
    queries: Mapping[str, str],
    grades: Mapping[tuple[str, str], int],
    precision: float,
    *,
    filter: Filter | None = None,
) -> Calibration:
    """The lowest score at which the hits of judged queries have a precision.

    Args:
        searcher: Query tower and index.
        queries: Texts by query id.
        grades: By query id and product id. A grade above 0 is relevant; a product without one counts as wrong.
        precision: Share of relevant hits asked for, in (0, 1].
        filter: What competes, such as the products that were judged.

    Raises:
        RankingError: The precision is out of range, or no score has it over at least 20 hits; names the best.
    """
    if not 0 < precision <= 1:
        raise RankingError(f"the precision to calibrate for is {precision!r}; give a share above 0, up to 1.")
    found = searcher.search([*queries.values()], PLACES, filter=filter)
    pairs = [(hit.score, (name, hit.product_id)) for name, hits in zip(queries, found, strict=True) for hit in hits]
    scores = np.array([score for score, _ in pairs])
    relevant = np.array([grades.get(pair, 0) > 0 for _, pair in pairs], dtype=bool)
    return Calibration(*lowest_score(scores, relevant, precision), len(queries), PLACES)


def lowest_score(scores: np.ndarray, relevant: BoolArray, precision: float) -> tuple[float, float, float, int]:
    """The lowest score at which hits have a precision.

    Args:
        scores: (n,) of the hits of all queries.
        relevant: (n,) whether a hit is.
        precision: Share of relevant hits asked for, in (0, 1].

    Returns:
        The score, the precision and recall at that score, and the number of hits at or above it.

    Raises:
        RankingError: No score has that precision over at least 20 hits; names the best.
    """
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(relevant[order])
    shares = found / np.arange(1, len(order) + 1)
    # A score holds for all hits that have it, and for enough of them.
    last = np.append(np.diff(scores[order]) != 0, True) if len(order) else np.zeros(0, dtype=bool)
    possible = np.flatnonzero(last & (np.arange(1, len(order) + 1) >= _LEAST_HITS))
    good = possible[shares[possible] >= precision]
    if not len(good):
        best = f"the best is {shares[possible].max():.3f}" if len(possible) else f"there are {len(order)} hits"
        raise RankingError(
            f"no lowest score gives a precision of {precision:g} over at least {_LEAST_HITS} hits ({best}); ask for "
            "less."
        )
    at = good[-1]
    return float(scores[order[at]]), float(shares[at]), float(found[at] / found[-1]), int(at + 1)
