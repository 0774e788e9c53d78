"""Splits of queries and products: shares, stability from day to day, and leaks."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfusion.importers.items import ImportLog, Judgement, Query
from mmfusion.importers.splits import (
    derived_query_id,
    normalised_query,
    split_named,
    split_products,
    split_queries,
    split_queries_by_product,
    warn_of_leaks,
)

WORDS = st.text("ab İßﬁé\t", min_size=1, max_size=6).filter(str.strip)
SPLITS = st.sampled_from([None, "train", "val", "test"])
QUERIES = st.lists(st.tuples(WORDS, SPLITS), max_size=30).map(
    lambda rows: [Query(str(at), text, split) for at, (text, split) in enumerate(rows)]
)
UNSPLIT = st.lists(WORDS, max_size=40).map(lambda texts: [Query(str(at), text) for at, text in enumerate(texts)])


def numbered(count: int, split: str | None = None) -> list[Query]:
    return [Query(f"{split}{at}", f"{split} lamp {at}", split) for at in range(count)]


def shares(queries: list[Query]) -> Counter[str | None]:
    return Counter(query.split for query in queries)


@given(st.text())
def test_normalised_text_stays_as_it_is(text: str) -> None:
    assert normalised_query(normalised_query(text)) == normalised_query(text)


def test_one_text_in_other_writing_is_one_query() -> None:
    assert normalised_query("  Ｒed\u00a0\tCUP ") == "red cup"
    assert normalised_query("Caf\u0065\u0301") == normalised_query("CAFÉ")
    assert derived_query_id("Red  cup") == derived_query_id("red cup") != derived_query_id("red cups")


def test_names_of_splits() -> None:
    assert [split_named(name) for name in ("Train", "dev", "validation", " valid", "test", "fold 1", "")] == [
        "train",
        "val",
        "val",
        "val",
        "test",
        None,
        None,
    ]


@given(UNSPLIT, st.integers(0, 3))
def test_drawn_splits(queries: list[Query], seed: int) -> None:
    done = split_queries(queries, log=ImportLog(), seed=seed)
    assert [query._replace(split=None) for query in done] == queries
    splits: dict[str, set[str | None]] = defaultdict(set)
    for query in done:
        splits[normalised_query(query.text)].add(query.split)
    assert all(len(found) == 1 for found in splits.values())
    counts = Counter(split for (split,) in splits.values())
    if len(splits) >= 3:
        assert counts["val"] == counts["test"] == max(round(len(splits) / 10), 1)
        assert counts["train"] >= 1
    # Neither order nor repetition matters.
    again = split_queries([*reversed(queries), *queries], log=ImportLog(), seed=seed)
    assert {query.text: query.split for query in again} == {query.text: query.split for query in done}


def test_another_seed_draws_other_queries() -> None:
    found = [split_queries(numbered(50), log=ImportLog(), seed=seed) for seed in (0, 1)]
    assert found[0] != found[1]
    assert shares(found[0]) == shares(found[1]) == {"train": 40, "val": 5, "test": 5}


@given(UNSPLIT, UNSPLIT)
def test_tomorrow_keeps_the_splits_of_today(today: list[Query], new: list[Query]) -> None:
    before = split_queries(today, log=ImportLog())
    # Ids, order and writing may change.
    later = [Query(f"new {query.query_id}", query.text.upper().lower()) for query in [*new, *reversed(today)]]
    after = split_queries(later, log=ImportLog(), previous=before)
    kept = {normalised_query(query.text): query.split for query in before}
    for query in after:
        assert query.split == kept.get(normalised_query(query.text), query.split)


def test_shares_hold_while_queries_are_added() -> None:
    done: list[Query] = []
    for count in (1, 2, 3, 10, 40, 41, 400):
        done = split_queries(numbered(count), log=ImportLog(), previous=done)
    assert shares(done) == {"train": 320, "val": 40, "test": 40}


def test_each_split_has_a_query_again_where_train_is_gone() -> None:
    before = [Query("1", "a", "test"), Query("2", "b", "test")]
    after = split_queries([Query("1", "a"), Query("2", "b"), Query("3", "c")], log=ImportLog(), previous=before)
    assert [query.split for query in after] == ["test", "test", "train"]


@given(QUERIES)
def test_given_splits_are_kept_but_for_val_out_of_train(queries: list[Query]) -> None:
    done = split_queries(queries, log=ImportLog())
    moved = [(old, new) for old, new in zip(queries, done, strict=True) if old.split not in (None, new.split)]
    assert all((old.split, new.split) == ("train", "val") for old, new in moved)
    if any(query.split == "val" for query in queries):
        assert not moved
    assert all(query.split for query in done)


def test_val_is_a_tenth_of_train_where_only_val_is_missing() -> None:
    queries = numbered(30, "train") + numbered(5, "test")
    done = split_queries(queries, log=ImportLog())
    assert shares(done) == {"train": 27, "val": 3, "test": 5}
    # Tomorrow these are val again, and one of the new queries.
    more = split_queries(numbered(40, "train") + numbered(5, "test"), log=ImportLog(), previous=done)
    assert shares(more) == {"train": 36, "val": 4, "test": 5}
    val = {query.text for query in more if query.split == "val"}
    assert val > {query.text for query in done if query.split == "val"}


def test_train_stays_where_it_is_to_stay_or_is_very_small() -> None:
    queries = numbered(30, "train") + numbered(5, "test")
    assert shares(split_queries(queries, log=ImportLog(), val_from_train=False)) == {"train": 30, "test": 5}
    assert shares(split_queries(numbered(2, "train"), log=ImportLog())) == {"train": 2}


def test_a_text_of_train_and_test_is_named_and_not_drawn_for_val() -> None:
    queries = [Query("1", "Blue mug", "train"), Query("2", "blue  mug", "test"), Query("3", "lid", "train")]
    queries += [Query("4", "tray", "train"), Query("5", "pan", "train")]
    log = ImportLog()
    done = split_queries(queries, log=log)
    assert [query.split for query in done[:2]] == ["train", "test"]
    assert shares(done)["val"] == 1
    assert log.warnings == [
        "1 query text is in more than one split, which makes results look too good: 'blue mug' (train and test)."
    ]


def test_only_test_queries() -> None:
    log = ImportLog()
    assert shares(split_queries(numbered(5, "test"), log=log)) == {"test": 5}
    assert "none to train on" in log.warnings[0]
    empty = ImportLog()
    assert split_queries([], log=empty) == []
    assert empty.warnings == []


def test_a_text_without_split_follows_the_file() -> None:
    queries = [Query("1", "cup", "test"), Query("2", "Cup"), Query("3", "pot", "train"), Query("4", "pan", "val")]
    assert [query.split for query in split_queries(queries, log=ImportLog())] == ["test", "test", "train", "val"]


def test_leaks_are_counted_and_the_first_ones_named() -> None:
    log = ImportLog()
    warn_of_leaks("product group", [(f"g{at}", split) for at in range(5) for split in ("train", None, "val")], log)
    assert log.warnings == [
        "5 product groups are in more than one split, which makes results look too good: "
        "'g0' (train and val), 'g1' (train and val), 'g2' (train and val) and 2 more."
    ]


@given(st.dictionaries(st.text(max_size=3), st.sampled_from("uvwxyz")), st.data())
def test_products_of_a_group_are_in_one_split(groups: dict[str, str], data: st.DataObject) -> None:
    done = split_products(groups)
    assert done.keys() == groups.keys()
    assert len({(groups[product], split) for product, split in done.items()}) == len(set(groups.values()))
    if len(set(groups.values())) >= 3:
        assert set(done.values()) == {"train", "val", "test"}
    more = groups | data.draw(st.dictionaries(st.text(max_size=3), st.sampled_from("xyzabc")))
    later = split_products({**more, **groups}, previous=done)
    assert {product: later[product] for product in done} == done


def test_queries_follow_their_best_products() -> None:
    products = {"t1": "train", "t2": "train", "v": "val", "x": "test"}
    queries = [Query("1", "red", "test"), Query("2", "RED"), Query("3", "blue"), Query("4", "grey"), Query("5", "pink")]
    judgements = [
        Judgement("1", "x", 1),
        Judgement("2", "t1", 3),
        Judgement("3", "t2", 0),
        Judgement("3", "v", 2),
        Judgement("3", "gone", 3),
        Judgement("5", "gone", 3),
    ]
    log = ImportLog()
    done, kept = split_queries_by_product(queries, judgements, products, log=log)
    assert [(query.query_id, query.split) for query in done] == [("1", "train"), ("2", "train"), ("3", "val")]
    assert kept == [Judgement("2", "t1", 3), Judgement("3", "v", 2)]
    assert log.left_out == {
        "query without a judged product": 2,
        "judgement of a product in another split than its query's": 4,
    }


@pytest.mark.parametrize("seed", [0, 7])
def test_queries_of_many_products_are_in_all_splits(seed: int) -> None:
    products = split_products({str(at): str(at) for at in range(1000)}, seed=seed)
    queries = [Query(str(at), f"query {at}") for at in range(500)]
    judgements = [Judgement(str(at), str((at * 7 + step) % 1000), 1) for at in range(500) for step in range(30)]
    done, kept = split_queries_by_product(queries, judgements, products, log=ImportLog(), seed=seed)
    counts = shares(done)
    # By most products nearly all would be in train; drawn, about 50 each are not.
    assert counts["val"] > 25
    assert counts["test"] > 25
    splits = {query.query_id: query.split for query in done}
    assert all(products[one.product_id] == splits[one.query_id] for one in kept)
    assert {one.query_id for one in kept} == splits.keys()
