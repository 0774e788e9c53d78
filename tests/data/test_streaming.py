"""Batches of streams: each product once, disjoint over ranks and readers, near in the files, resumable."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from mmfusion.data.loaders import ResumableLoader
from mmfusion.data.qrels import Qrels
from mmfusion.data.streaming import StreamIndex, StreamRowSampler, StreamSampler

# Row groups of all sizes, two without rows and one without a judgement; nor are products at both ends judged.
SIZES = np.array([0, 5, 17, 3, 0, 40, 8, 8, 8, 29, 1, 61, 20])
STARTS = np.concatenate([[0], np.cumsum(SIZES)])
JUDGED = np.setdiff1d(np.arange(4, 195), np.arange(65, 73))


def qrels() -> Qrels:
    rng = np.random.default_rng(0)
    rows = [(q, p, int(rng.choice([0, 1, 3]))) for p in JUDGED for q in rng.choice(50, 3, replace=False)]
    rows += [(50, p, 1) for p in JUDGED]
    return Qrels(*(np.array(column) for column in zip(*rows, strict=True)))


def sampler(epoch: int = 0, **options: int) -> StreamSampler:
    made = StreamSampler(qrels(), STARTS, **{"batch_size": 4, "shuffle_buffer": 12, "seed": 5, **options})
    made.set_epoch(epoch)
    return made


def rows_of(indices: Iterable[StreamIndex]) -> list[int]:
    return [int(row) for index in indices for row in index.batch.products]


def test_every_product_comes_once_over_ranks_and_readers_but_for_less_than_a_batch_of_each_rank() -> None:
    for ranks, readers in ((1, 1), (1, 3), (2, 1), (3, 2), (2, 5)):
        parts = [list(sampler(num_replicas=ranks, rank=rank, readers=readers)) for rank in range(ranks)]
        assert {len(part) for part in parts} == {len(JUDGED) // (4 * ranks)}
        seen = [row for part in parts for row in rows_of(part)]
        assert len(seen) == len(set(seen)) and set(seen) <= set(JUDGED)
        assert len(JUDGED) - len(seen) < 4 * ranks


def test_what_an_epoch_leaves_out_comes_in_another() -> None:
    ranks = 3
    left_out = [
        set(JUDGED) - {row for rank in range(ranks) for row in rows_of(sampler(epoch, num_replicas=ranks, rank=rank))}
        for epoch in range(8)
    ]
    assert all(left_out) and not set.intersection(*left_out)


def test_the_query_is_one_of_those_that_judge_the_product_highest_and_not_always_the_same() -> None:
    judged, drawn = qrels(), {}
    for epoch in range(4):
        for index in sampler(epoch):
            for query, product in zip(index.batch.queries, index.batch.products, strict=True):
                grades = judged.grade[judged.product == product]
                assert judged.grades([query], [product]).item() == grades.max()
                drawn.setdefault(int(product), set()).add(int(query))
    assert any(len(queries) > 1 for queries in drawn.values())


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    first = rows_of(sampler(readers=2))
    assert first == rows_of(sampler(readers=2))
    assert first != rows_of(sampler(1, readers=2)) and first != rows_of(sampler(seed=6, readers=2))


def by_reader(indices: Iterable[StreamIndex], readers: int, start: int = 0) -> list[list[StreamIndex]]:
    parts: list[list[StreamIndex]] = [[] for _ in range(readers)]
    for at, index in enumerate(indices, start):
        parts[at % readers].append(index)
    return parts


def test_each_row_group_is_read_by_one_reader_but_for_those_at_the_borders() -> None:
    ranks, readers = 2, 2
    reading = [
        [read.group for index in part for read in index.reads]
        for rank in range(ranks)
        for part in by_reader(sampler(num_replicas=ranks, rank=rank, readers=readers), readers)
    ]
    assert all(len(groups) == len(set(groups)) for groups in reading)
    wanted = len(np.unique(np.searchsorted(STARTS, JUDGED, side="right")))
    assert sum(map(len, reading)) <= wanted + ranks * readers - 1
    # The empty row groups, and the one without a judged product.
    assert not {0, 4, 6} & {group for groups in reading for group in groups}


def most_held(indices: Iterable[StreamIndex]) -> int:
    """Follows what a table holds: every product of a batch was read, is held, and is let go of."""
    held: set[int] = set()
    most = 0
    for index in indices:
        for read in index.reads:
            assert not held & set(read.rows.tolist()) and (np.diff(read.rows) > 0).all()
            assert ((read.rows >= STARTS[read.group]) & (read.rows < STARTS[read.group + 1])).all()
            held |= set(read.rows.tolist())
        most = max(most, len(held))
        assert set(index.batch.products.tolist()) <= held
        held -= set(index.batch.products.tolist())
    assert not held
    return most


@pytest.mark.parametrize("shuffle_buffer", [1, 12, 50, 10_000])
def test_a_reader_holds_no_more_than_the_buffer_a_row_group_and_a_batch(shuffle_buffer: int) -> None:
    for readers in (1, 3):
        for part in by_reader(sampler(shuffle_buffer=shuffle_buffer, readers=readers), readers):
            assert most_held(part) <= shuffle_buffer + SIZES.max() + 4


def test_the_buffer_shuffles_across_row_groups() -> None:
    def groups_per_batch(shuffle_buffer: int) -> float:
        batches = [index.batch.products for index in sampler(shuffle_buffer=shuffle_buffer)]
        return float(np.mean([len(np.unique(np.searchsorted(STARTS, rows, side="right"))) for rows in batches]))

    assert groups_per_batch(1) < groups_per_batch(12) < groups_per_batch(200)


@pytest.mark.parametrize(("readers", "start"), [(1, 7), (2, 7), (3, 8), (3, 1), (2, 0), (5, 43)])
def test_starts_in_the_middle_and_reads_only_what_is_left(readers: int, start: int) -> None:
    whole = list(sampler(readers=readers))
    resumed = sampler(readers=readers)
    resumed.start_batch = start
    rest = list(resumed)
    assert len(rest) == len(whole) - start
    for one, other in zip(whole[start:], rest, strict=True):
        assert (one.batch.products == other.batch.products).all() and (one.batch.queries == other.batch.queries).all()
        assert one.batch.crop == other.batch.crop
    # Rows that were used before are read no more.
    for part in by_reader(rest, readers, start):
        most_held(part)
    assert rows_of(resumed) == rows_of(whole)


class Reading(Dataset[Any]):
    """Says which process was asked for which row groups."""

    def __getitem__(self, index: StreamIndex) -> tuple[int, list[int]]:
        return os.getpid(), index.batch.products.tolist()


@pytest.mark.parametrize("start", [0, 5])
def test_a_loader_hands_each_reader_its_own_part(start: int) -> None:
    made = sampler(readers=3)
    loader = ResumableLoader(Reading(), sampler=made, batch_size=None, num_workers=3)
    loader.load_state_dict({"yielded": start, **made.sources})
    got = list(loader)
    processes = {process for process, _ in got}
    assert len(processes) == 3
    for part in by_reader(sampler(readers=3), 3):
        rows = set(rows_of(part))
        assert len({process for process, own in got if rows & set(own)}) == 1


def test_crops_are_drawn_per_batch_and_shared_by_ranks() -> None:
    crops = [[index.batch.crop for index in sampler(num_replicas=2, rank=rank, photo_views=4)] for rank in (0, 1)]
    assert crops[0] == crops[1] and set(crops[0]) == {0, 1, 2, 3}


def test_a_checkpoint_of_another_order_is_refused() -> None:
    loader = ResumableLoader(Reading(), sampler=sampler(readers=2), batch_size=None)
    state = {"yielded": 3, **sampler(readers=3).sources}
    with pytest.raises(ValueError, match=r"1 ranks of 3 readers.*1 ranks of 2 readers.*--shuffle_buffer"):
        loader.load_state_dict(state)
    with pytest.raises(ValueError, match=r"other streams, or with none \(none; now"):
        loader.load_state_dict({"yielded": 3})


def test_too_few_products_and_sizes_below_the_least_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"183 products with a relevant query, in 10 row groups.*64 for each of 3 rank"
    ):
        sampler(batch_size=64, num_replicas=3)
    with pytest.raises(ValueError, match="batch_size is 1; give at least 2"):
        sampler(batch_size=1)
    with pytest.raises(ValueError, match="shuffle_buffer is 0; give at least 1"):
        sampler(shuffle_buffer=0)


def row_batches(**options: int) -> Iterator[list[StreamIndex]]:
    ranks = options.get("num_replicas", 1)
    for rank in range(ranks):
        yield list(StreamRowSampler(JUDGED, STARTS, rank=rank, **{"batch_size": 7, **options}))


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_validation_covers_all_rows_once_in_order_with_as_many_batches_on_each_rank(batch_size: int) -> None:
    for ranks, readers in ((1, 1), (1, 3), (3, 2), (4, 5)):
        parts = list(row_batches(batch_size=batch_size, num_replicas=ranks, readers=readers))
        assert len({len(part) for part in parts}) == 1
        streams = [own for part in parts for own in by_reader(part, readers)]
        rows = np.concatenate([index.batch for own in streams for index in own])
        assert (rows == JUDGED).all()
        assert max(len(index.batch) for own in streams for index in own) <= max(batch_size, 2)
        for own in streams:
            groups = [read.group for index in own for read in index.reads]
            assert groups == sorted(set(groups))


def test_fewer_rows_than_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="3 queries or products to validate on for 4 ranks"):
        StreamRowSampler(JUDGED[:3], STARTS, batch_size=8, num_replicas=4)
