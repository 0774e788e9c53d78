"""Qrels: look-ups agree with a plain dictionary, and bad judgements are refused."""

import pickle
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfusion.data.qrels import DuplicateJudgementError, Qrels

PAIRS = st.dictionaries(st.tuples(st.integers(0, 9), st.integers(0, 9)), st.integers(0, 4), max_size=40)
ROWS = st.lists(st.integers(-1, 14), max_size=8)


def build(pairs: dict[tuple[int, int], int]) -> Qrels:
    return Qrels([q for q, _ in pairs], [p for _, p in pairs], list(pairs.values()))


@settings(deadline=None)
@given(PAIRS, ROWS, ROWS)
def test_grades_equal_a_dictionary(pairs: dict[tuple[int, int], int], queries: list[int], products: list[int]) -> None:
    expected = [[pairs.get((q, p), 0) for p in products] for q in queries]
    found = build(pairs).grades(queries, products)
    assert found.shape == (len(queries), len(products))
    assert found.dtype == np.int64
    assert found.tolist() == expected


@settings(deadline=None)
@given(PAIRS, ROWS, ROWS)
def test_pairs_are_the_positive_grades_in_order(
    pairs: dict[tuple[int, int], int], queries: list[int], products: list[int]
) -> None:
    table = build(pairs).grades(queries, products)
    query, product, grade = build(pairs).pairs(queries, products)
    assert query.tolist() == sorted(query)
    found = dict(zip(zip(query.tolist(), product.tolist(), strict=True), grade.tolist(), strict=True))
    assert len(found) == len(grade)
    assert found == {(int(q), int(p)): int(table[q, p]) for q, p in zip(*table.nonzero(), strict=True)}


@settings(deadline=None)
@given(PAIRS, st.lists(st.tuples(*[st.integers(-1, 14)] * 4), max_size=6), st.integers(0, 40))
def test_grades_of_equals_a_dictionary(
    pairs: dict[tuple[int, int], int], rows: list[tuple[int, ...]], cells: int
) -> None:
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    with mock.patch("mmfusion.data.qrels._CELLS", cells):  # a search of pairs, a query at a time, or several
        found = build(pairs).grades_of(table[:, 0], table[:, 1:])
    assert found.tolist() == [[pairs.get((q, p), 0) for p in ps] for q, *ps in rows]
    assert found.dtype == np.int64


@settings(deadline=None)
@given(PAIRS, st.none() | ROWS, st.none() | ROWS)
def test_restrict_and_for_query_equal_a_dictionary(
    pairs: dict[tuple[int, int], int], queries: list[int] | None, products: list[int] | None
) -> None:
    expected = {
        (q, p): g
        for (q, p), g in sorted(pairs.items())
        if (queries is None or q in queries) and (products is None or p in products)
    }
    qrels = build(pairs).restrict(queries, products)
    assert len(qrels) == len(expected)
    assert list(zip(qrels.query.tolist(), qrels.product.tolist(), strict=True)) == list(expected)
    assert qrels.grade.tolist() == list(expected.values())
    for row in range(-1, 12):
        judged, grades = qrels.for_query(row)
        assert dict(zip(judged.tolist(), grades.tolist(), strict=True)) == {
            p: g for (q, p), g in expected.items() if q == row
        }


@settings(deadline=None)
@given(PAIRS)
def test_pickle_keeps_look_ups(pairs: dict[tuple[int, int], int]) -> None:
    everything = np.arange(-1, 12)
    qrels = build(pairs)
    copy = pickle.loads(pickle.dumps(qrels))
    assert (copy.grades(everything, everything) == qrels.grades(everything, everything)).all()
    table = np.tile(everything, (len(everything), 1))
    assert (copy.grades_of(everything, table) == qrels.grades_of(everything, table)).all()


def test_unjudged_product_beyond_the_last_judged_one_does_not_take_the_next_query_s_grade() -> None:
    # With keys query * 3 + product, product 3 of query 0 would have the key of product 0 of query 1.
    qrels = Qrels([0, 1], [2, 0], [1, 3])
    assert qrels.grades_of([0], [[3]]).tolist() == [[0]]
    assert qrels.grades([0], [3]).tolist() == [[0]]


def test_large_rows() -> None:
    qrels = Qrels([9_999_999, 0], [10_000_000, 3], [2, 1])
    assert qrels.grades_of([9_999_999], [[10_000_000, 3]]).tolist() == [[2, 0]]


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        (([0, 0], [1, 1], [2, 3]), ["query row 0", "product row 1", "grades 2 and 3", "Keep one judgement"]),
        (([0, 0], [1, 1], [2, 2]), ["query row 0", "product row 1", "grades 2 and 2", "Keep one judgement"]),
        (([0, 4], [1, 5], [2, -1]), ["grade[1] is -1", "query 4", "product 5", "Remove or correct"]),
        (([0, -1], [1, 1], [2, 1]), ["query[1] is -1", "Remove or correct"]),
        (([0], [-2], [2]), ["product[0] is -2", "Remove or correct"]),
        (([0, 1], [1], [2]), ["different length", "'query': 2", "'product': 1", "one entry per judgement"]),
        (([0], [1], [0.5]), ["grade", "float64", "Pass integers"]),
        (([[0]], [1], [1]), ["query", "(1, 1)", "Pass 1 dimensions"]),
        (([2**62], [5], [1]), ["query row 4611686018427387904", "too large", "pass positions"]),
    ],
)
def test_bad_judgements_are_refused(columns: tuple[list[int], list[int], list[int]], parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        Qrels(*columns)
    for part in parts:
        assert part in str(caught.value)


def test_a_duplicate_carries_its_rows() -> None:
    with pytest.raises(DuplicateJudgementError) as caught:
        Qrels([3, 0, 3], [7, 0, 7], [1, 1, 2])
    assert (caught.value.query, caught.value.product, caught.value.grades) == (3, 7, (1, 2))


def test_grades_of_refuses_shapes_that_do_not_fit() -> None:
    qrels = Qrels([0], [0], [1])
    with pytest.raises(ValueError, match="2 query rows but 1 lists"):
        qrels.grades_of([0, 1], [[0]])
    with pytest.raises(ValueError, match="2-dimensional"):
        qrels.grades_of([0], [0])


def test_empty_qrels() -> None:
    qrels = Qrels([], [], [])
    assert len(qrels) == 0
    assert qrels.grades([0, 1], [2]).tolist() == [[0], [0]]
    assert qrels.grades_of([0], [[1, -1]]).tolist() == [[0, 0]]
    assert "0 judgements" in repr(qrels)
