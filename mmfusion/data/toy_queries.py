"""The queries of the toy catalogue and their grades: synthetic by construction, no person asked or judged.

A query asks for a silhouette and one to three facts. Its grades follow from the facts of the products: 3 = all that
was asked, 1 = the right silhouette and all asked facts but one (only where two facts or more were asked, otherwise
every product of the type would be graded). A query is judged over the products of its own split.

Combinations are held out: a quarter of all combinations of a silhouette with what a query asks to *see* (or, for
queries that ask for nothing visible, to read) belongs to val and test; no train query asks for one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mmfusion.data.toy_products import Product, choose
from mmfusion.data.toy_words import BRANDS, COLOURS, PATTERNS, SILHOUETTES, TEXT_FACTS, VISIBLE_FACTS, phrases

GRADE_ALL: Final = 3
GRADE_ALL_BUT_ONE: Final = 1
QUERIES_PER_PRODUCT: Final = 0.6
QUERY_SHARES: Final = {"train": 0.8, "val": 0.03, "test": 0.17}
MAX_QUERIES: Final = 20_000
MAX_NEAR_MISSES: Final = 200

_STREAM_HOLD_OUT: Final = 4
_STREAM_QUERIES: Final = 5
_STREAM_NEAR_MISSES: Final = 6
_FACTS: Final = (*VISIBLE_FACTS, *TEXT_FACTS)

# Per kind: which facts are asked. The more specific ones come more often: they have fewer relevant products.
QUESTIONS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "visual": (("colour", "pattern"), ("colour", "pattern"), ("colour",), ("pattern",)),
    "textual": (("brand",), ("brand", "material"), ("material",)),
    "mixed": (("brand", "colour", "pattern"), ("brand", "colour"), ("brand", "pattern"), ("material", "colour")),
}
KIND_SHARES: Final = {"visual": 0.4, "textual": 0.2, "mixed": 0.4}

Combination = tuple[str, ...]


@dataclass(frozen=True)
class Query:
    """One query: its words and what they ask for.

    Attributes:
        query_id: Unique in the catalogue.
        text: Lower case, unique in its split.
        kind: ``visual``, ``textual`` or ``mixed``.
        split: ``train``, ``val`` or ``test``.
        silhouette: The type asked for.
        facts: Value by fact name, what else is asked for.
    """

    query_id: str
    text: str
    kind: str
    split: str
    silhouette: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Judgements:
    """Graded pairs.

    Attributes:
        query: Positions in the queries given, int64 [n].
        product: Positions in the products given, int64 [n].
        grade: int64 [n], 1 or 3.
    """

    query: np.ndarray
    product: np.ndarray
    grade: np.ndarray


def combination(silhouette: str, facts: Mapping[str, str]) -> Combination:
    """What holding out goes by: the silhouette with the visible facts asked for, or with the text facts if none is."""
    names = [fact for fact in VISIBLE_FACTS if fact in facts] or [fact for fact in TEXT_FACTS if fact in facts]
    return (silhouette, *(f"{fact}={facts[fact]}" for fact in names))


def make_queries(products: Sequence[Product], splits: Sequence[str], seed: int) -> list[Query]:
    """Makes the queries of all splits, train first.

    About `QUERIES_PER_PRODUCT` times as many as products, at most `MAX_QUERIES`, fewer where a split has no more
    combinations of its own. Every query is made from a product of its split, so that this product has grade 3.

    Args:
        products: The catalogue's products.
        splits: The split of each.
        seed: Seed of the catalogue.

    Raises:
        ValueError: A split has no product.
    """
    total = min(QUERIES_PER_PRODUCT * len(products), MAX_QUERIES)
    members = {split: [p for p, s in zip(products, splits, strict=True) if s == split] for split in QUERY_SHARES}
    for split, own in members.items():
        if not own:
            raise ValueError(f"split {split!r} has no product among {len(products)}; make a catalogue of 40 or more")
    owners = hold_out(members, seed)
    queries: list[Query] = []
    for stream, (split, share) in enumerate(QUERY_SHARES.items()):
        rng = np.random.default_rng([_STREAM_QUERIES, seed, stream])
        queries += _ask(rng, members[split], split, owners, max(3, round(total * share)))
    return queries


def hold_out(members: Mapping[str, Sequence[Product]], seed: int) -> dict[Combination, str]:
    """Gives every combination to the one split that may ask for it: 75 % train, 4 % val, 21 % test.

    Args:
        members: Products by split. The first product of val and of test always gets combinations of its own, so that
            the smallest catalogue has val and test queries of every kind.
        seed: Seed of the catalogue.

    Returns:
        Split by combination.
    """
    rng = np.random.default_rng([_STREAM_HOLD_OUT, seed])
    combinations = _all_combinations()
    draws = rng.random(len(combinations)).tolist()
    owners = {
        each: "train" if draw < 0.75 else "val" if draw < 0.79 else "test"
        for each, draw in zip(combinations, draws, strict=True)
    }
    for split in ("val", "test"):
        first = members[split][0]
        for asked in (("colour", "pattern"), ("brand",)):
            owners[combination(first.silhouette, {fact: first.facts[fact] for fact in asked})] = split
    return owners


def _all_combinations() -> list[Combination]:
    values: dict[str, Sequence[str]] = {"colour": tuple(COLOURS), "pattern": tuple(PATTERNS), "brand": BRANDS}
    found: list[Combination] = []
    asked: tuple[tuple[str, ...], ...] = (
        ("colour",),
        ("pattern",),
        VISIBLE_FACTS,
        ("brand",),
        ("material",),
        TEXT_FACTS,
    )
    for silhouette, kind in SILHOUETTES.items():
        values["material"] = kind.materials
        for names in asked:
            for chosen in itertools.product(*(values[name] for name in names)):
                found.append(combination(silhouette, dict(zip(names, chosen, strict=True))))
    return found


def _ask(
    rng: np.random.Generator, own: Sequence[Product], split: str, owners: Mapping[Combination, str], count: int
) -> list[Query]:
    """About ``count`` queries of one split, no two with the same text."""
    queries: list[Query] = []
    texts: set[str] = set()
    for kind, share in KIND_SHARES.items():
        wanted = len(queries) + max(1, round(count * share))
        for attempt in range(30 * wanted):
            if len(queries) == wanted:
                break
            # The first question is the one for which `hold_out` sets a combination of the first product aside.
            product = choose(rng, own) if attempt else own[0]
            asked = choose(rng, QUESTIONS[kind]) if attempt else QUESTIONS[kind][0]
            if any(fact not in product.facts for fact in asked):
                continue
            facts = {fact: product.facts[fact] for fact in asked}
            text = _phrase(rng, product.silhouette, facts)
            if owners[combination(product.silhouette, facts)] == split and text not in texts:
                texts.add(text)
                queries.append(Query(f"{split}-{len(queries):06d}", text, kind, split, product.silhouette, facts))
    return queries


def _phrase(rng: np.random.Generator, silhouette: str, facts: Mapping[str, str]) -> str:
    """Words for the facts, each before the noun (7 in 10) or after it, in any order."""
    before: list[str] = []
    after: list[str] = []
    for fact, value in facts.items():
        phrase = choose(rng, phrases(fact, value))
        if rng.random() < 0.7:
            before.append(phrase.before)
        else:
            after.append(phrase.after)
    noun = choose(rng, SILHOUETTES[silhouette].names)
    first = [before[int(position)] for position in rng.permutation(len(before))]
    last = [after[int(position)] for position in rng.permutation(len(after))]
    return " ".join([*first, noun, *last])


def judge(queries: Sequence[Query], products: Sequence[Product], splits: Sequence[str], seed: int) -> Judgements:
    """Grades the products of each query's split.

    Grade 3 is complete. Of the products with grade 1 a query keeps at most `MAX_NEAR_MISSES`, chosen at random, so
    that the judgements of 100,000 products stay in the millions; in a catalogue of less than about 30,000 products no
    val or test query has more.

    Args:
        queries: From `make_queries`.
        products: The catalogue's products.
        splits: The split of each product.
        seed: Seed of the catalogue.

    Returns:
        Judgements in the order of the queries, products ascending within a query.
    """
    codes = {fact: {value: code for code, value in enumerate(_values(fact))} for fact in _FACTS}
    # A product without a material gets -1, which no query asks for.
    table = np.array([[codes[f].get(p.facts.get(f, ""), -1) for f in _FACTS] for p in products], dtype=np.int16)
    groups: dict[tuple[str, str], list[int]] = {}
    for row, (product, split) in enumerate(zip(products, splits, strict=True)):
        groups.setdefault((split, product.silhouette), []).append(row)
    pools = {key: np.array(rows, dtype=np.int64) for key, rows in groups.items()}
    tables = {key: table[rows] for key, rows in pools.items()}
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for position, query in enumerate(queries):
        key = (query.split, query.silhouette)
        columns = [_FACTS.index(fact) for fact in query.facts]
        asked = np.array([codes[fact][value] for fact, value in query.facts.items()], dtype=np.int16)
        grade = _grades((tables[key][:, columns] == asked).sum(axis=1), len(columns))
        _limit_near_misses(grade, np.random.default_rng([_STREAM_NEAR_MISSES, seed, position]))
        judged = np.flatnonzero(grade)
        found.append((pools[key][judged], grade[judged]))
    lengths = [len(rows) for rows, _ in found]
    return Judgements(
        np.repeat(np.arange(len(found), dtype=np.int64), lengths),
        np.concatenate([rows for rows, _ in found]),
        np.concatenate([grades for _, grades in found]),
    )


def _values(fact: str) -> Sequence[str]:
    if fact == "material":
        return sorted({material for kind in SILHOUETTES.values() for material in kind.materials})
    return BRANDS if fact == "brand" else tuple(COLOURS if fact == "colour" else PATTERNS)


def _grades(matches: np.ndarray, asked: int) -> np.ndarray:
    """Grades [n] int64 from the number of matching facts [n] of products that have the right silhouette."""
    grade = np.where(matches == asked, GRADE_ALL, 0).astype(np.int64)
    if asked > 1:
        grade[matches == asked - 1] = GRADE_ALL_BUT_ONE
    return grade


def _limit_near_misses(grade: np.ndarray, rng: np.random.Generator) -> None:
    near = np.flatnonzero(grade == GRADE_ALL_BUT_ONE)
    if len(near) > MAX_NEAR_MISSES:
        grade[rng.permutation(near)[MAX_NEAR_MISSES:]] = 0
