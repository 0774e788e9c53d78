"""Splits of queries and products: kept where files give them, drawn by text or by product where they do not."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from mmfusion.importers.items import ImportLog, Judgement, Query, Split

_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "dev": "val",
    "valid": "val",
    "validation": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
}
_MOST_NAMED = 3


def split_named(name: str) -> Split | None:
    """The split that a file means by a name, e.g. "dev" or "Validation"; None if it is not one."""
    return _NAMES.get(name.strip().lower())


def split_of_file(name: str) -> Split | None:
    """The split that the name of a file (without its folders) says, e.g. "train-00000-of-00002.parquet"."""
    words = re.findall(r"[a-z]+", name.replace("\\", "/").rpartition("/")[2].lower())
    return next((split for word in reversed(words) if (split := split_named(word))), None)


def normalised_query(text: str) -> str:
    """Text by which queries are the same: NFKC, lower case, white space collapsed."""
    if not text.isascii():
        # Once more, as lower case of a composed letter may be two.
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    return " ".join(text.lower().split())


def derived_query_id(text: str) -> str:
    """Id of a query of a file without query ids: the same for the same text in every file and on every day."""
    return "q" + hashlib.blake2b(normalised_query(text).encode(), digest_size=8).hexdigest()


def split_queries(
    queries: Sequence[Query],
    *,
    log: ImportLog,
    previous: Iterable[Query] = (),
    seed: int = 0,
    val_from_train: bool = True,
) -> list[Query]:
    """Gives every query a split; queries of the same normalised text get the same one.

    Splits of the file are kept. Texts without one keep that of `previous`; new ones are drawn, so that a tenth of the
    texts is val, a tenth test, and each split has a text where there are three. Where the file has train queries but no
    val queries, a tenth of the texts that are in train alone becomes val. What is drawn depends on the texts and the
    seed, not on the order.

    Args:
        queries: Queries of the file, perhaps without a split.
        log: Gets a warning that names texts in several splits of the file, and one if no query is left to train on.
        previous: Queries of an earlier import.
        seed: Other seeds draw other queries.
        val_from_train: Whether train queries of the file may become val.

    Returns:
        The queries in their order.
    """
    texts = [normalised_query(query.text) for query in queries]
    before = {normalised_query(query.text): query.split for query in previous if query.split}
    given: dict[str, list[Split]] = defaultdict(list)
    for text, query in zip(texts, queries, strict=True):
        if query.split is not None:
            given[text].append(query.split)
    drawn = _draw({text for text in texts if text not in given}, before, seed)
    has_val = any("val" in splits for splits in given.values()) or "val" in drawn.values()
    train = {text for text, splits in given.items() if set(splits) == {"train"}}
    val = set() if has_val or not val_from_train else _val_of(train, before, seed)
    warn_of_leaks("query text", ((text, split) for text, splits in given.items() for split in splits), log)

    def split_of(text: str, own: Split | None) -> Split:
        if text in val:
            return "val"
        # A text with and without a split in the file is trained on rather than tested.
        return own or drawn.get(text) or ("train" if "train" in given[text] else given[text][0])

    done = [query._replace(split=split_of(text, query.split)) for text, query in zip(texts, queries, strict=True)]
    if done and not any(query.split == "train" for query in done):
        log.warn("All queries are for validation or test, as the files say: there is none to train on.")
    return done


def split_products(
    groups: Mapping[str, str], *, previous: Mapping[str, str] | None = None, seed: int = 0
) -> dict[str, Split]:
    """Draws a split for every product, the same for all products of a group.

    Args:
        groups: Group by product id; of a product without one, its own id.
        previous: Split by product id of an earlier import, which a group keeps.
        seed: Other seeds draw other groups.

    Returns:
        Split by product id: 80 % of the groups are train, 10 % val, 10 % test.
    """
    before = {group: previous[product] for product, group in groups.items() if product in previous} if previous else {}
    drawn = _draw(set(groups.values()), before, seed)
    return {product: drawn[group] for product, group in groups.items()}


def split_queries_by_product(
    queries: Sequence[Query],
    judgements: Sequence[Judgement],
    products: Mapping[str, Split],
    *,
    log: ImportLog,
    seed: int = 0,
) -> tuple[list[Query], list[Judgement]]:
    """Gives each query the split of a product that it is judged for, and keeps the judgements within that split.

    It is the product of the best grade; of several, one is drawn, so that queries with many products are not all in
    the largest split. Queries of one text stay together.

    Args:
        queries: Queries; splits that they have are replaced.
        judgements: Grades of pairs.
        products: Split by product id, e.g. of `split_products`.
        log: Counts queries that nothing is judged for, and judgements of products in another split.
        seed: Other seeds draw other products.

    Returns:
        The queries with a split, and the judgements that are left, in their order.
    """
    text_of = {query.query_id: normalised_query(query.text) for query in queries}
    best: dict[str, tuple[int, bytes, Split]] = {}
    for query_id, product_id, grade in judgements:
        if query_id in text_of and product_id in products:
            text = text_of[query_id]
            if text not in best or grade >= best[text][0]:
                mine = (grade, _at_random(seed, f"{text}\n{product_id}"), products[product_id])
                best[text] = max(best.get(text, mine), mine)
    split_of = {query_id: best[text][2] for query_id, text in text_of.items() if text in best}
    kept = [query._replace(split=split_of[query.query_id]) for query in queries if query.query_id in split_of]
    inside = [one for one in judgements if products.get(one.product_id, "") == split_of.get(one.query_id)]
    for reason, count in (
        ("query without a judged product", len(queries) - len(kept)),
        ("judgement of a product in another split than its query's", len(judgements) - len(inside)),
    ):
        if count:
            log.leave_out(reason, count)
    return kept, inside


def warn_of_leaks(what: str, splits: Iterable[tuple[str, str | None]], log: ImportLog) -> None:
    """Warns of values that are in more than one split, naming the first of them.

    Args:
        what: What the values are: "query text" or "product group".
        splits: Pairs of value and split; those without a split do not count.
        log: Gets the warning.
    """
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for value, split in splits:
        if split is not None:
            found[value][split] = None
    leaks = [f"{value!r} ({' and '.join(names)})" for value, names in found.items() if len(names) > 1]
    if leaks:
        more = f" and {len(leaks) - _MOST_NAMED:,} more" if len(leaks) > _MOST_NAMED else ""
        count = f"{len(leaks):,} {what}s are" if len(leaks) > 1 else f"1 {what} is"
        named = ", ".join(leaks[:_MOST_NAMED])
        log.warn(f"{count} in more than one split, which makes results look too good: {named}{more}.")


def _draw(keys: Collection[str], before: Mapping[str, str | None], seed: int) -> dict[str, Split]:
    """A split for each key: the one before, or such that a tenth each is val and test."""
    kept = {key: split for key in keys if (split := split_named(before.get(key) or ""))}
    new = _shuffled((key for key in keys if key not in kept), seed)
    counts = Counter(kept.values())
    # Of very few keys the first is there to train on, the second to test.
    names: list[Split] = [] if counts["train"] else ["train"]
    names.extend(["test"] * (_tenth(keys) - counts["test"]))
    names.extend(["val"] * (_tenth(keys) - counts["val"]))
    return kept | dict(zip(new, names + ["train"] * len(new), strict=False))


def _val_of(train: Collection[str], before: Mapping[str, str | None], seed: int) -> set[str]:
    """A tenth of the texts of train to be val, those first that were val before."""
    # Training compares at least two.
    if len(train) < 3:
        return set()
    kept = {text for text in train if before.get(text) == "val"}
    new = _shuffled((text for text in train if text not in kept), seed)
    return kept | set(new[: max(_tenth(train) - len(kept), 0)])


def _tenth(keys: Collection[str]) -> int:
    return max(round(len(keys) / 10), 1)


def _shuffled(keys: Iterable[str], seed: int) -> list[str]:
    return sorted(keys, key=lambda key: _at_random(seed, key))


def _at_random(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{key}".encode(), digest_size=8).digest()
