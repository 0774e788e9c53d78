"""Rankings by vectors, words and both, against a slow twin that ranks everything."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmfusion.lexical import query_words, tokenize
from mmfusion.retrieval import Hit, ProductIndex, Ranking, RankingError
from mmfusion.retrieval import ranking as rankings

WORDS = ["red", "blue", "dress", "mug", "cotton", "floral", "shirt", "summer"]
QUERIES = ["red dress", "blue", "mug teapot mug", "!?"]
COUNT = 120


def vectors(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def products(count: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    sales = [None if value == 3 else float(value) for value in rng.integers(0, 40, count)]
    return pa.table(
        {
            "title": [" ".join(rng.choice(WORDS, rng.integers(0, 4))) for _ in range(count)],
            "tags": [
                [str(word) for word in rng.choice(WORDS, 2)] if rng.random() < 0.3 else None for _ in range(count)
            ],
            "sales": pa.array(sales, pa.float64()),
            "in_stock": rng.random(count) < 0.5,
            "group": [None if name == "-" else str(name) for name in rng.choice([*"abcdefgh", "-", " "], count)],
        }
    )


def built(count: int = COUNT, **arguments: Any) -> ProductIndex:
    ids = [f"p{row}" for row in range(count)]
    options = {"model_fingerprint": "m", "metadata": products(count), "lexical": ["title", "tags"], **arguments}
    return ProductIndex.build(vectors(count), ids, **options)


def changed(**arguments: Any) -> ProductIndex:
    """An index of the same products that was made in three steps."""
    ids, table = [f"p{row}" for row in range(COUNT)], products(COUNT)
    index = ProductIndex.build(
        vectors(COUNT, seed=5), ids, model_fingerprint="m", metadata=products(COUNT, 5), lexical=["title", "tags"]
    )
    late = [*range(40), *range(90, COUNT)]
    index.delete([ids[row] for row in range(30, 60)])
    index.update(vectors(COUNT)[40:90], ids[40:90], model_fingerprint="m", metadata=table.slice(40, 50), **arguments)
    index.update(
        vectors(COUNT)[late], [ids[row] for row in late], model_fingerprint="m", metadata=table.take(late), **arguments
    )
    return index


def bm25_shares(query: str, texts: list[list[str]]) -> list[float]:
    mean, most, shares = sum(map(len, texts)) / len(texts), 0.0, [0.0] * len(texts)
    for word in query_words(query):
        there = sum(word in text for text in texts)
        weight = math.log(1 + (len(texts) - there + 0.5) / (there + 0.5))
        most += weight
        for row, text in enumerate(texts):
            count = text.count(word)
            shares[row] += weight * count / (count + 1.2 * (0.25 + 0.75 * len(text) / mean))
    return [share / most if most else 0.0 for share in shares]


def slowly(query: np.ndarray, text: str, k: int, ranking: Ranking, cheap: bool) -> list[tuple[str, float]]:
    """The hits by ranking all products, one after the other."""
    table = products(COUNT).to_pylist()
    inner = (vectors(COUNT) @ query).astype(float)
    shares = bm25_shares(text, [tokenize(" ".join([row["title"], *(row["tags"] or [])])) for row in table])
    allowed = [
        row for row in range(COUNT) if not cheap or (table[row]["sales"] is not None and table[row]["sales"] < 30)
    ]
    by_id = sorted(allowed, key=lambda row: f"p{row}", reverse=True)

    def ordered(scores: Any) -> list[int]:
        return sorted(by_id, key=lambda row: np.float32(scores[row]), reverse=True)

    worded = [row for row in ordered(shares) if shares[row] > 0]
    if ranking.mode == "vectors":
        scores = dict(enumerate(inner))
    elif ranking.mode == "words":
        scores = {row: shares[row] for row in worded}
    elif ranking.weight is None:
        places = [{row: place for place, row in enumerate(rows, 1)} for rows in (ordered(inner), worded)]
        scores = {row: 61 / 2 * sum(1 / (60 + one[row]) for one in places if row in one) for row in allowed}
    else:
        scores = {row: ranking.weight * inner[row] + (1 - ranking.weight) * shares[row] for row in allowed}
    bounded = shares if ranking.mode == "words" else inner
    lowest = -2.0 if ranking.min_score is None else float(ranking.min_score)
    boosted = {}
    for row in by_id:
        if row in scores and bounded[row] >= lowest:
            boosted[row] = scores[row]
            for name, weight in ranking.boosts.items():
                values = [float(one[name]) for one in table if one[name] is not None]
                if table[row][name] is not None:
                    below = sum(value < float(table[row][name]) for value in values)
                    boosted[row] += weight * below / (len(values) - 1)
    best = sorted(boosted, key=lambda row: round(boosted[row], 7), reverse=True)
    if ranking.group_by is not None:
        seen: set[Any] = set()
        names = [table[row]["group"] for row in best]
        keys = [(name or "").strip() or row for name, row in zip(names, best, strict=True)]
        best = [row for row, key in zip(best, keys, strict=True) if not (key in seen or seen.add(key))]  # type: ignore[func-returns-value]
    return [(f"p{row}", boosted[row]) for row in best[:k]]


RANKINGS: list[dict[str, Any]] = [
    {"group_by": "group"},
    {"boosts": {"sales": 0.2}},
    {"min_score": 0.3},
    {"group_by": "group", "boosts": {"sales": 0.1, "in_stock": 0.3}, "min_score": -0.2},
    {"mode": "words"},
    {"mode": "words", "group_by": "group", "boosts": {"sales": 0.5}, "min_score": 0.2},
    {"mode": "hybrid"},
    {"mode": "hybrid", "group_by": "group", "boosts": {"sales": 0.1}, "min_score": 0.0},
    {"mode": "hybrid", "weight": 0.4},
    {"mode": "hybrid", "weight": 0.0},
    {"mode": "hybrid", "weight": 1.0, "min_score": 0.1},
    {
        "mode": "hybrid",
        "weight": 0.7,
        "group_by": "group",
        "boosts": {"sales": 0.3, "in_stock": 0.05},
        "min_score": -0.1,
    },
]


@pytest.mark.parametrize("options", RANKINGS, ids=str)
@pytest.mark.parametrize("make", [built, changed])
def test_a_ranking_is_that_of_all_products_one_by_one(
    make: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few that lists have to grow.
    monkeypatch.setattr(rankings, "FIRST_DEPTH", 4)
    monkeypatch.setattr(rankings, "FUSED_DEPTH", 4 if "weight" in options else 1000)
    index, ranking = make(), Ranking(**options)
    queries = vectors(len(QUERIES), seed=1)
    for cheap in (False, True):
        filter = [[("sales", "<", 30)], [("sales", "<", 30), ("title", "!=", "")]] if cheap else None
        for k in (3, COUNT):
            found = index.search(queries, k, filter=filter, ranking=ranking, texts=QUERIES)
            for hits, query, text in zip(found, queries, QUERIES, strict=True):
                assert_same(hits, slowly(query, text, k, ranking, cheap))
    with pytest.raises(RankingError, match="no index of words") if "mode" in options else no_error():
        make_without_words().search(queries, 1, ranking=ranking, texts=QUERIES)


def make_without_words() -> ProductIndex:
    return built(lexical=False)


class no_error:  # noqa: N801
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def assert_same(hits: list[Hit], expected: list[tuple[str, float]]) -> None:
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=2e-6)
    assert [hit.product_id for hit in hits] == [name for name, _ in expected]
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
