"""A lowest score that separates what queries ask for from what they do not, measured on judged queries."""

from dataclasses import dataclass

import numpy as np

from mmfusion.retrieval.ranking import RankingError
from mmfusion.retrieval.vectors import BoolArray, FloatArray

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
        relevant_grade: Lowest grade that counts as relevant.
        split: Split of the queries, and of the products that competed.
    """

    min_score: float
    precision: float
    recall: float
    hits: int
    queries: int
    places: int
    relevant_grade: int
    split: str

    def __str__(self) -> str:
        return (
            f"score {self.min_score:.3f}: {self.precision:.1%} of the {self.hits:,} hits at or above it have at least "
            f"grade {self.relevant_grade}, and {self.recall:.1%} of the hits that have it are there ({self.queries} "
            f"{self.split} queries, first {self.places} hits over the {self.split} products; an unjudged product "
            "counts as wrong)"
        )


def lowest_score(scores: FloatArray, relevant: BoolArray, precision: float) -> tuple[float, float, float, int]:
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
