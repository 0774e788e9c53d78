"""Which queries a report shows: those where two models differ most, both ways, and random ones."""

from dataclasses import dataclass

import numpy as np

from mmfusion.report.ranking import Ranking

METRIC = "ndcg@10"
MAX_KINDS = 12
_NO_KIND = "all"


@dataclass(frozen=True)
class Chosen:
    """One chosen query: its place in the rankings, and why it was chosen."""

    place: int
    reason: str


@dataclass(frozen=True)
class Kind:
    """The queries of one kind.

    Attributes:
        name: Value of the column `kind`; "all" where the catalogue has none.
        better: Queries whose nDCG@10 is higher with the second model.
        equal: Queries where it is the same.
        worse: Queries where it is lower.
        chosen: The queries to show, those with the largest gain first, then the largest loss, then random ones.
    """

    name: str
    better: int
    equal: int
    worse: int
    chosen: list[Chosen]


def choose(first: Ranking, second: Ranking, queries_per_kind: int, *, seed: int) -> list[Kind]:
    """Chooses queries of each kind by the difference of nDCG@10, second model minus first.

    A third of the places (rounded up) goes to the largest gains, a third to the largest losses, the rest to queries
    drawn from the others; a place for which there is no gain or no loss is drawn too. Equal differences are ordered
    by query id. Only queries that have something to find are considered. Kinds are in alphabetical order; beyond
    `MAX_KINDS`, those with the most queries are kept.

    Args:
        first: The baseline.
        second: The fusion model, over the same queries.
        queries_per_kind: At least 0.
        seed: Of the random queries.

    Raises:
        ValueError: `queries_per_kind` is negative.
    """
    if queries_per_kind < 0:
        raise ValueError(f"queries_per_kind is {queries_per_kind}; give 0 (no queries) or more")
    gains = {
        place: second_value - first_value
        for place, (first_value, second_value) in enumerate(
            zip(first.per_query[METRIC], second.per_query[METRIC], strict=True)
        )
        if first_value is not None and second_value is not None
    }
    kinds: dict[str, list[int]] = {}
    for place in gains:
        kinds.setdefault(_kind_of(first, place), []).append(place)
    kept = sorted(kinds, key=lambda name: (-len(kinds[name]), name))[:MAX_KINDS]
    ids = first.per_query["query_id"]
    return [
        _choose(name, sorted(kinds[name], key=lambda place: ids[place]), gains, queries_per_kind, [seed, number])
        for number, name in enumerate(sorted(kept))
    ]


def _choose(name: str, places: list[int], gains: dict[int, float], count: int, seed: list[int]) -> Kind:
    by_gain = sorted(places, key=lambda place: -gains[place])
    up = [place for place in by_gain if gains[place] > 0]
    down = [place for place in reversed(by_gain) if gains[place] < 0]
    share = -(-count // 3)
    chosen = [Chosen(place, "largest gain") for place in up[:share]]
    chosen += [Chosen(place, "largest loss") for place in down[: min(share, count - share)]]
    taken = {choice.place for choice in chosen}
    others = [place for place in places if place not in taken]
    size = min(count - len(chosen), len(others))
    drawn = np.random.default_rng(seed).choice(others, size=size, replace=False).tolist() if size else []
    chosen += [Chosen(int(place), "drawn at random") for place in drawn]
    return Kind(name, len(up), len(places) - len(up) - len(down), len(down), chosen)


def _kind_of(ranking: Ranking, place: int) -> str:
    return str(ranking.per_query["kind"][place]) if "kind" in ranking.per_query else _NO_KIND
