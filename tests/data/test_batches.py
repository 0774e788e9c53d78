"""What holds of the batches of any catalogue: drawn by hypothesis."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfusion.data.pair_batches import pair_batches
from mmfusion.data.qrels import Qrels
from mmfusion.data.sampler import PairSampler

PRODUCTS = 30


@st.composite
def catalogues(draw: st.DrawFn) -> dict[str, Any]:
    """Judgements of 12 to 40 queries over 30 products, with keys of two kinds and groups, both with missing values."""
    queries = draw(st.integers(12, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    judged = [(q, p, int(rng.choice([1, 3]))) for q in range(queries) for p in rng.choice(PRODUCTS, 4, replace=False)]
    return {
        "qrels": Qrels(*(np.array(column) for column in zip(*judged, strict=True))),
        "lengths": rng.integers(0, 50, PRODUCTS),
        "seed": draw(st.integers(0, 3)),
        "keys": rng.integers(-1, draw(st.integers(6, 40)), (PRODUCTS, 2)),
        "groups": rng.integers(-1, draw(st.integers(1, 4)), PRODUCTS),
        "negatives": ByQuery(rng),
        "negatives_per_query": draw(st.integers(0, 2)),
        "extra_products": draw(st.integers(0, 3)),
        "pool": np.arange(PRODUCTS),
    }


class ByQuery:
    """Up to three negatives of each query."""

    digest = "drawn"

    def __init__(self, rng: np.random.Generator) -> None:
        self.products = rng.integers(0, PRODUCTS, (40, 3))
        self.count = rng.integers(0, 4, 40)

    def of(self, query: int) -> np.ndarray:
        return self.products[query, : self.count[query]]


def sampler(catalogue: dict[str, Any], **options: Any) -> PairSampler:
    return PairSampler(**{**catalogue, "batch_size": 4, **options})


def duplicates(rows: np.ndarray, keys: np.ndarray) -> bool:
    columns = [rows, *keys[rows].T]
    present = [column[column >= 0] for column in columns]
    return any(len(np.unique(column)) < len(column) for column in present)


@settings(deadline=None, max_examples=60)
@given(catalogues(), st.integers(0, 5))
def test_no_product_and_no_key_comes_twice_in_a_global_batch_and_no_query_twice_in_an_epoch(
    catalogue: dict[str, Any], epoch: int
) -> None:
    try:
        one = sampler(catalogue)
    except ValueError as refusal:
        assert "without duplicates" in str(refusal)
        return
    one.set_epoch(epoch)
    batches = list(one)
    assert len(batches) == len(one)
    for batch in batches:
        assert len(batch.queries) == 4
        assert not duplicates(batch.products, catalogue["keys"])
    seen = np.concatenate([batch.queries for batch in batches]) if batches else np.empty(0)
    assert len(np.unique(seen)) == len(seen)


@settings(deadline=None, max_examples=60)
@given(catalogues())
def test_every_query_comes_once_an_epoch_in_groups_or_not(catalogue: dict[str, Any]) -> None:
    for groups in (None, catalogue["groups"]):
        batches = list(sampler(catalogue, keys=None, groups=groups))
        seen = np.concatenate([batch.queries for batch in batches])
        queries = len(np.unique(catalogue["qrels"].query))
        assert len(np.unique(seen)) == len(seen) == queries // 4 * 4


@settings(deadline=None, max_examples=60)
@given(catalogues(), st.booleans())
def test_two_ranks_of_n_see_what_one_of_twice_as_many_sees(catalogue: dict[str, Any], alike: bool) -> None:
    options = {"keys": catalogue["keys"] if alike else None}
    extra = catalogue["extra_products"]
    try:
        whole = list(sampler(catalogue, batch_size=8, **{**options, "extra_products": 2 * extra}))
    except ValueError:
        return
    ranks = [list(sampler(catalogue, num_replicas=2, rank=rank, **options)) for rank in (0, 1)]
    assert len(whole) == len(ranks[0]) == len(ranks[1])
    for pair, *parts in zip(whole, *ranks, strict=True):
        assert (pair.queries == np.concatenate([part.queries for part in parts])).all()
        assert (pair.products[:8] == np.concatenate([part.products[:4] for part in parts])).all()
        further = np.concatenate([part.products[4:] for part in parts])
        # One rank may have one product more where the pool runs out.
        assert (pair.products[8 : 8 + len(further)] == further).all() and len(pair.products) - 8 - len(further) <= 1
        assert len(parts[0].products) == len(parts[1].products)


@settings(deadline=None, max_examples=60)
@given(catalogues(), st.integers(0, 4), st.integers(0, 3), st.booleans())
def test_an_epoch_that_goes_on_in_the_middle_is_the_rest_of_the_whole(
    catalogue: dict[str, Any], start: int, epoch: int, alike: bool
) -> None:
    options = {"keys": catalogue["keys"] if alike else None}
    try:
        one, resumed = sampler(catalogue, **options), sampler(catalogue, **options)
    except ValueError:
        return
    one.set_epoch(epoch), resumed.set_epoch(epoch)
    resumed.start_batch = start
    rest = list(one)[start:]
    for pair, again in zip(rest, list(resumed), strict=True):
        assert (pair.queries == again.queries).all() and (pair.products == again.products).all()


@settings(deadline=None, max_examples=60)
@given(catalogues())
def test_batches_are_of_one_group_as_far_as_groups_fill_them(catalogue: dict[str, Any]) -> None:
    groups = catalogue["groups"]
    one = sampler(catalogue, keys=None, negatives=None, negatives_per_query=0, extra_products=0)
    pairs = np.concatenate([batch.products for batch in one.epoch_batches()])
    of_one = [len(np.unique(groups[batch.products])) == 1 for batch in one.epoch_batches()]
    full = sum(int(count) // 4 for count in np.unique(groups[pairs], return_counts=True)[1])
    assert sum(of_one) >= full - len(np.unique(groups))
    assert all(of_one) or len(of_one) - sum(of_one) <= len(np.unique(groups))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(-1, 8), min_size=1, max_size=60), st.integers(2, 6))
def test_pairs_left_out_for_their_title_would_not_fill_another_batch(titles: list[int], size: int) -> None:
    keys = np.array(titles)[:, None]
    rows = np.arange(len(titles))
    batches = pair_batches(rows, np.zeros(len(rows), dtype=np.int64), size, keys=keys)
    left = np.setdiff1d(rows, np.concatenate([np.empty(0, dtype=np.int64), *batches]))
    assert sum(map(len, batches)) + len(left) == len(rows)
    different = len(np.unique(keys[left][keys[left] >= 0])) + int((keys[left] < 0).sum())
    assert different < size


def test_a_pair_waits_for_the_next_batch_that_lacks_its_title() -> None:
    keys = np.array([[7], [7], [1], [7], [2], [3]])
    batches = pair_batches(np.arange(6), np.zeros(6, dtype=np.int64), 2, keys=keys)
    assert [batch.tolist() for batch in batches] == [[0, 2], [1, 4], [3, 5]]


def test_groups_fill_batches_by_themselves_and_what_is_left_is_mixed_in_the_order_of_groups() -> None:
    groups = np.array([5, 6, 5, 6, 6, 5, 7, 6, 5, 7])
    batches = pair_batches(np.arange(10), np.zeros(10, dtype=np.int64), 3, groups=groups)
    assert [groups[batch].tolist() for batch in batches] == [[5, 5, 5], [6, 6, 6], [5, 6, 7]]


def test_mined_negatives_of_a_query_come_first_and_random_products_fill_up() -> None:
    qrels = Qrels(np.arange(8), np.arange(8), np.full(8, 3))

    class Mined:
        digest = "mined"

        def of(self, query: int) -> np.ndarray:
            return np.array([10 + query, 20 + query]) if query != 3 else np.empty(0, dtype=np.int64)

    one = PairSampler(
        qrels,
        np.zeros(40, dtype=np.int64),
        batch_size=4,
        seed=1,
        pool=np.arange(40),
        negatives=Mined(),
        negatives_per_query=2,
    )
    for batch in one:
        own = {row for query in batch.queries.tolist() if query != 3 for row in (10 + query, 20 + query)}
        assert set(batch.products[4 : 4 + len(own)].tolist()) == own
        assert len(batch.products) == len(np.unique(batch.products)) == 12


def test_a_catalogue_that_is_too_much_alike_and_a_negative_number_are_refused() -> None:
    qrels = Qrels(np.arange(8), np.arange(8), np.full(8, 3))
    lengths, keys = np.zeros(8, dtype=np.int64), np.zeros((8, 1), dtype=np.int64)
    with pytest.raises(ValueError, match=r"8 train queries do not fill one global batch of 4 x 1.*fewer kinds"):
        PairSampler(qrels, lengths, batch_size=4, seed=0, keys=keys)
    with pytest.raises(ValueError, match="negatives_per_query is -1"):
        PairSampler(qrels, lengths, batch_size=4, seed=0, negatives_per_query=-1)
