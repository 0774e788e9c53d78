"""Filters on columns of every type: dates from texts, lists, decimals and missing values."""

import datetime
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic_core import from_json, to_json

from mmfusion.retrieval.filters import FilterError, filter_rows

UTC = datetime.UTC
DAYS = [datetime.date(2025, 12, 31), datetime.date(2026, 1, 1), datetime.date(2026, 1, 2), None]
TIMES = [datetime.datetime(2025, 12, 31, 23, 59, 59), datetime.datetime(2026, 1, 1), None]
TIMES.insert(2, datetime.datetime(2026, 1, 1, 0, 0, 0, 500_000))
CLOCK = [datetime.time(9), datetime.time(18, 30), datetime.time(18, 30, 0, 500_000), None]
METADATA = pa.table(
    {
        "day": pa.array(DAYS),
        "day64": pa.array(DAYS, pa.date64()),
        "utc": pa.array(TIMES, pa.timestamp("us", "UTC")),
        "berlin": pa.array(TIMES, pa.timestamp("ms", "Europe/Berlin")),
        "plain": pa.array(TIMES, pa.timestamp("us")),
        "nano": pa.array(TIMES, pa.timestamp("ns")),
        "open": pa.array(CLOCK, pa.time64("us")),
        "takes": pa.array([datetime.timedelta(seconds=one) for one in (1, 2, 3)] + [None], pa.duration("ms")),
        "price": pa.array([Decimal("9.90"), Decimal("10"), Decimal("129"), None], pa.decimal128(10, 2)),
        "rating": [math.nan, 3.0, 4.5, None],
        "sizes": [["S", "M"], ["M"], [], None],
        "counts": pa.array([[1, 2], [2, None], [3, 4], None], pa.large_list(pa.int64())),
        "pair": pa.array([[1, 2], None, [3, 4], [2, 5]], pa.list_(pa.int8(), 2)),
        "days": pa.array([[DAYS[0]], [DAYS[1], None], [], None], pa.list_(pa.date32())),
        "title": ["a", "b", "c", None],
    }
).to_struct_array()


def rows(*condition: Any) -> list[int]:
    return np.flatnonzero(filter_rows(METADATA, [condition])).tolist()


@pytest.mark.parametrize("column", ["utc", "berlin", "plain", "nano"])
@pytest.mark.parametrize(
    ("operator", "value", "found"),
    [
        (">=", "2026-01-01", [1, 2]),
        (">", "2026-01-01", [2]),
        ("=", "2026-01-01", [1]),
        ("==", "2026-01-01T00:00:00Z", [1]),
        ("=", "2026-01-01T00:00", [1]),
        ("=", "2026-01-01 01:00:00+01:00", [1]),
        ("=", "2026-01-01T00:00:00.5", [2]),
        ("=", "2026-01-01T00:00:00.500000000-00:00", [2]),
        ("<", "2026-01-01T00:00:00.000000000", [0]),
        ("<=", "2026-01-01T00:00:00.000000001Z", [0, 1]),
        ("=", "2026-01-01T00:00:00.000000001Z", []),
        ("!=", "2026-01-01T00:00:00.000000001Z", [0, 1, 2]),
        ("!=", "2026-01-01", [0, 2]),
        ("in", ["2026-01-01", "2026-01-01T00:00:00.5", None], [1, 2]),
        ("not in", ["2026-01-01", "2026-01-01T00:00:00.000000001"], [0, 2]),
        ("<", "9999-12-31", [0, 1, 2]),
        (">", "0001-01-01", [0, 1, 2]),
        ("=", "9999-12-31", []),
        ("<", datetime.datetime(2026, 1, 1), [0]),
        ("<", datetime.datetime(2026, 1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1))), [0]),
        ("<", datetime.date(2026, 1, 1), [0]),
        ("<", np.datetime64("2026-01-01"), [0]),
        ("=", None, []),
        ("!=", None, []),
        ("!=", np.datetime64("NaT"), []),
    ],
    ids=str,
)
def test_timestamps_compare_with_iso_texts_and_what_has_no_zone_is_utc(
    column: str, operator: str, value: Any, found: list[int]
) -> None:
    assert rows(column, operator, value) == found


@pytest.mark.parametrize("column", ["day", "day64"])
@pytest.mark.parametrize(
    ("operator", "value", "found"),
    [
        ("=", "2026-01-01", [1]),
        (">=", "2026-01-01", [1, 2]),
        ("=", "2026-01-01T00:00:00Z", [1]),
        ("=", "2026-01-01T02:00:00+02:00", [1]),
        ("=", "2026-01-01T12:00", []),
        ("!=", "2026-01-01T12:00", [0, 1, 2]),
        ("<", "2026-01-01T12:00", [0, 1]),
        (">=", "2026-01-01T12:00", [2]),
        ("in", ["2026-01-01", datetime.date(2026, 1, 2), "2026-01-01T12:00"], [1, 2]),
        ("not in", ["2026-01-01"], [0, 2]),
        ("<", datetime.datetime(2026, 1, 1, 12), [0, 1]),
    ],
    ids=str,
)
def test_dates_compare_as_their_midnight(column: str, operator: str, value: Any, found: list[int]) -> None:
    assert rows(column, operator, value) == found


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        (("open", ">=", "18:30"), [1, 2]),
        (("open", "=", "18:30:00.5"), [2]),
        (("open", "<", datetime.time(18, 30)), [0]),
        (("takes", ">", datetime.timedelta(seconds=1.5)), [1, 2]),
        (("takes", "in", [np.timedelta64(2, "s")]), [1]),
        (("price", "<", "10"), [0]),
        (("price", "in", ["9.90", 129]), [0, 2]),
        (("rating", "!=", 3.0), [2]),
        (("rating", "not in", [3.0]), [2]),
        (("rating", "<", 100), [1, 2]),
        (("rating", "!=", math.nan), []),
        (("rating", "in", [math.nan, 4.5]), [2]),
        (("sizes", "contains", "M"), [0, 1]),
        (("sizes", "contains", "XL"), []),
        (("sizes", "contains", None), []),
        (("counts", "contains", 2), [0, 1]),
        (("counts", "contains", 2.0), [0, 1]),
        (("counts", "contains", 2.5), []),
        (("pair", "contains", 2), [0, 3]),
        (("days", "contains", "2026-01-01"), [1]),
    ],
    ids=str,
)
def test_other_columns_compare_by_value(condition: Any, found: list[int]) -> None:
    assert rows(*condition) == found
    # Chunks and slices of them count their rows from their own start.
    several = pa.chunked_array([METADATA.slice(0, 1), METADATA.slice(1, 3).slice(0, 3)])
    assert np.flatnonzero(filter_rows(several, [condition])).tolist() == found


def test_what_the_service_answers_with_can_be_asked_for() -> None:
    for name in ("day", "day64", "utc", "berlin", "plain", "open", "price"):
        answered = from_json(to_json(METADATA[1].as_py()[name]))
        assert rows(name, "=", answered) == rows(name, "in", [answered]) == [1], (name, answered)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            ("day", ">", "tomorrow"),
            "'day', which is date32.*'tomorrow'; give an ISO 8601 date or time such as '2026-01",
        ),
        (("utc", ">", "2026-02-30"), "'utc', which is timestamp.*'2026-02-30'; give an ISO 8601"),
        (("utc", ">", "01/02/2026"), "give an ISO 8601"),
        (("utc", ">", 1767225600), "with 1767225600; give an ISO 8601"),
        (("utc", "in", "2026-01-01"), "with '2026-01-01'; give a list of an ISO 8601"),
        (("utc", "in", ["2026-01-01", "x"]), "give a list of an ISO 8601"),
        (("open", ">", "6 pm"), "'open', which is time64.*'6 pm'; give an ISO 8601 time such as '18:30'"),
        (("open", ">", "18:30Z"), "give an ISO 8601 time"),
        (
            ("takes", ">", "PT1S"),
            r"'takes', which is duration.*give a datetime\.timedelta; texts and numbers are not durations",
        ),
        (("price", "<", "cheap"), "'price', which is decimal128.*'cheap'"),
        (("sizes", "=", "M"), r"whether 'sizes' = 'M', and 'sizes' is list.*; use \('sizes', 'contains', value\)"),
        (("sizes", "in", ["M"]), r"use \('sizes', 'contains', value\)"),
        (("title", "contains", "a"), "'title' is string; contains is for lists, use = or in"),
        (("sizes", "contains", ["M"]), r"'sizes', which is list.*\['M'\]"),
        (("sizes", "contains", 3), "'sizes', which is list.*with 3"),
        (("days", "contains", "May"), "'May'; give an ISO 8601 date"),
    ],
    ids=str,
)
def test_values_that_cannot_be_compared_name_column_value_and_remedy(condition: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message) as caught:
        rows(*condition)
    assert "\n" not in str(caught.value)
