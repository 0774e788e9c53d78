"""Batches: deterministic, disjoint over ranks, from train judgements only, bucketed, resumable."""

import numpy as np
import pytest

from mmfusion.data.qrels import Qrels
from mmfusion.data.sampler import PairSampler, RowSampler


def qrels(queries: int = 40) -> Qrels:
    rng = np.random.default_rng(0)
    rows = [(q, p, int(rng.choice([1, 3]))) for q in range(queries) for p in rng.choice(60, 4, replace=False)]
    return Qrels(*(np.array(column) for column in zip(*rows, strict=True)))


LENGTHS = np.random.default_rng(1).integers(1, 100, 60)


def sampler(**options: int) -> PairSampler:
    return PairSampler(qrels(), LENGTHS, **{"batch_size": 4, "seed": 5, **options})


def test_every_pair_is_a_best_match_and_every_query_comes_once_an_epoch() -> None:
    judged, seen = qrels(), []
    for pair in sampler():
        for query, product in zip(pair.queries, pair.products, strict=True):
            products, grades = judged.for_query(query)
            assert grades[list(products).index(product)] == grades.max()
            seen.append(query)
    assert sorted(seen) == list(range(40))


def test_epochs_differ_and_repeat() -> None:
    one = sampler()
    first = np.concatenate([pair.queries for pair in one])
    one.set_epoch(1)
    second = np.concatenate([pair.queries for pair in one])
    again = sampler()
    again.set_epoch(1)
    assert (first != second).any()
    assert (second == np.concatenate([pair.queries for pair in again])).all()


def test_two_ranks_share_the_batches_of_one_of_twice_the_size() -> None:
    whole = list(sampler(batch_size=8))
    parts = [list(sampler(batch_size=4, num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 5
    for pair, first, second in zip(whole, *parts, strict=True):
        assert (pair.queries == np.concatenate([first.queries, second.queries])).all()
        assert (pair.products == np.concatenate([first.products, second.products])).all()


def test_further_products_come_from_the_pool_and_are_shared_out_over_ranks() -> None:
    pool = np.arange(100, 130)
    options = {"pool": pool, "seed": 5}
    whole = list(PairSampler(qrels(), LENGTHS, batch_size=8, extra_products=6, **options))
    parts = [
        list(PairSampler(qrels(), LENGTHS, batch_size=4, extra_products=3, num_replicas=2, rank=rank, **options))
        for rank in (0, 1)
    ]
    plain = list(PairSampler(qrels(), LENGTHS, batch_size=8, **options))
    for pair, first, second, bare in zip(whole, *parts, plain, strict=True):
        assert (pair.queries == bare.queries).all() and (pair.products[:8] == bare.products).all()
        further = pair.products[8:]
        assert len(set(further)) == 6 and set(further) <= set(pool)
        assert (further == np.concatenate([first.products[4:], second.products[4:]])).all()
    assert len({tuple(pair.products[8:]) for pair in whole}) == len(whole)


def test_a_batch_resumed_in_mid_epoch_has_the_same_further_products() -> None:
    one, resumed = sampler(extra_products=7), sampler(extra_products=7)
    resumed.start_batch = 3
    for pair, again in zip(list(one)[3:], resumed, strict=True):
        assert (pair.products == again.products).all()


def test_no_more_further_products_than_the_pool_holds_and_not_fewer_than_none() -> None:
    assert (
        len(next(iter(PairSampler(qrels(), LENGTHS, batch_size=4, seed=0, pool=np.arange(3), extra_products=9)))[1])
        == 7
    )
    with pytest.raises(ValueError, match="extra_products is -1"):
        sampler(extra_products=-1)


def test_batches_hold_products_of_similar_length() -> None:
    bucketed = [np.ptp(LENGTHS[pair.products]) for pair in sampler()]
    random = [np.ptp(LENGTHS[np.random.default_rng(seed).integers(0, 60, 4)]) for seed in range(50)]
    assert np.mean(bucketed) < 0.5 * np.mean(random)


def test_starts_in_the_middle_once() -> None:
    one = sampler()
    whole = [list(pair.queries) for pair in one]
    one.start_batch = 6
    assert [list(pair.queries) for pair in one] == whole[6:]
    assert [list(pair.queries) for pair in one] == whole


def test_a_batch_of_one_and_too_few_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size is 1; give at least 2"):
        sampler(batch_size=1)
    with pytest.raises(ValueError, match=r"40 queries.*64 x 1 rank.*smaller batch_size"):
        sampler(batch_size=64)


def test_row_sampler_covers_all_rows_once_over_ranks_shortest_first() -> None:
    rows = np.arange(3, 40)
    ranks = [list(RowSampler(rows, LENGTHS, batch_size=5, num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert sorted(np.concatenate([*ranks[0], *ranks[1]])) == list(rows)
    lengths = LENGTHS[np.concatenate(list(RowSampler(rows, LENGTHS, batch_size=5)))]
    assert (np.diff(lengths) >= 0).all()


@pytest.mark.parametrize(("rows", "ranks"), [(9, 2), (9, 4), (5, 4), (4, 4), (3, 1)])
def test_each_rank_validates_although_there_are_fewer_batches_than_ranks(rows: int, ranks: int) -> None:
    given = np.arange(rows)
    samplers = [RowSampler(given, None, batch_size=8, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    assert all(len(sampler) >= 1 for sampler in samplers)
    assert sorted(np.concatenate([batch for sampler in samplers for batch in sampler]).tolist()) == given.tolist()


def test_fewer_rows_than_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="3 queries or products to validate on for 4 ranks"):
        RowSampler(np.arange(3), None, batch_size=8, num_replicas=4)
