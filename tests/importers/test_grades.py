"""Grades from clicks: each method on counts worked out by hand, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.clicks import ClickLog, read_clicks
from mmfusion.importers.grades import (
    RULES,
    coec,
    funnel,
    grade,
    linear,
    position_based_model,
    relative_grades,
    sdbn,
    smoothed_rate,
)
from mmfusion.importers.judgements import Judgements

KNOWN = {"a", "b", "c", "d"}
HEADER = "query,sku,position,impressions,clicks,carts,orders\n"


def report(folder: Path, *rows: str, header: str = HEADER) -> ClickLog:
    path = folder / "report.csv"
    path.write_text(header + "".join(f"{row}\n" for row in rows), "utf-8")
    return read_clicks(path, KNOWN)


def sessions(folder: Path, *pages: str) -> ClickLog:
    """A session for each text: products in the order of their positions, in capitals where they were clicked."""
    rows = [
        f"{number},mug,{name.lower()},{place},{int(name.isupper())}"
        for number, page in enumerate(pages)
        for place, name in enumerate(page, 1)
    ]
    return report(folder, *rows, header="session_id,query,sku,position,clicked\n")


def grades_of(judgements: Judgements) -> dict[str, dict[str, int]]:
    return {
        query: {product: grade for name, product, grade in judgements.rows if name == query}
        for query in judgements.queries
    }


# The samples


def test_the_sample_report_is_graded_as_expected(samples: Path) -> None:
    folder = samples / "clicks"
    expected = json.loads((folder / "expected.json").read_text())["files"]["search_report.csv"]
    log = read_clicks(folder / "search_report.csv", {"007", "008", "009", "010"})
    rejected: list[str] = []
    graded = grade(log, "funnel", reject=lambda file, line, reason: rejected.append(reason))
    assert grades_of(graded) == expected["method funnel"]["grades"]
    assert graded.counts == {
        "query is a placeholder": 1,
        "query is blank": 1,
        "product is unknown": 1,
        "below min_impressions=20": 1,
        "query without a judgement": 1,  # jeans
    }
    assert rejected == ["below min_impressions=20: 'jeans' / '008'"]
    # The page's counts are of the pairs that are kept.
    cells = log.cells[log.cells["query"] != log.queries.index("jeans")]
    pair = cells.groupby(["query", "product"], sort=False).ngroup().to_numpy()
    values = coec(*(cells[name].to_numpy() for name in ("position", "clicks", "impressions")), pair)
    names = [
        f"{log.queries[query]}/{log.products[product]}" for query, product in cells[["query", "product"]].to_numpy()
    ]
    assert dict(zip(names, values.round(2), strict=True)) == expected["method coec"]["coec"]


def test_the_sample_events_are_graded_as_expected(samples: Path) -> None:
    folder = samples / "clicks"
    expected = json.loads((folder / "expected.json").read_text())["files"]["ubi_events.ndjson"]
    log = read_clicks(folder / "ubi_events.ndjson", {"007", "008", "009", "010"})
    assert log.sessions is not None
    counts = sdbn(log.sessions)
    names = [log.products[product] for product in counts.product]
    assert dict(zip(names, counts.examined, strict=True)) == expected["method sdbn"]["examined"]
    assert dict(zip(names, counts.clicked, strict=True)) == expected["method sdbn"]["clicked"]
    rates = smoothed_rate(counts.clicked, counts.examined, strength=0)
    assert dict(zip(names, rates.round(3), strict=True)) == expected["method sdbn"]["attractiveness"]
    assert grades_of(grade(log, "funnel", min_impressions=1)) == {"red dress": expected["method funnel"]}


# Methods


def test_the_funnel_takes_what_happened_last(tmp_path: Path) -> None:
    log = report(tmp_path, "mug,a,1,90,9,2,1", "mug,b,2,90,9,1,0", "mug,c,3,90,1,0,0", "mug,d,4,90,0,0,0")
    assert grades_of(grade(log, "funnel")) == {"mug": {"a": 3, "b": 2, "c": 1, "d": 0}}
    assert grades_of(grade(log, "funnel", signal="clicks")) == {"mug": {"a": 1, "b": 1, "c": 1, "d": 0}}
    assert funnel(np.array([0]), np.array([0]), np.array([1])).tolist() == [3]


def test_a_rate_is_drawn_to_the_mean_and_compared_within_its_query(tmp_path: Path) -> None:
    log = report(tmp_path, "mug,a,1,1000,100,0,0", "mug,b,2,1000,50,0,0", "mug,c,3,1000,2,0,0", "cup,d,1,1000,1,0,0")
    assert grades_of(grade(log, "rate")) == {"mug": {"a": 3, "b": 2, "c": 0}, "cup": {"d": 3}}
    # 3 of 6 in all: (1 + 10 / 2) / (2 + 10).
    assert smoothed_rate([1, 2], [2, 4]).tolist() == [0.5, 0.5]
    assert smoothed_rate([5], [2], strength=0).tolist() == [1.0]
    assert smoothed_rate([0], [0], strength=0).tolist() == [0.0]


def test_what_nobody_chose_is_0_however_rarely_it_was_shown() -> None:
    query, score = np.zeros(2, np.int64), smoothed_rate([0, 30], [1, 500])
    assert score[0] > 0.9 * score[1]
    assert relative_grades(query, score, [0, 30]).tolist() == [0, 3]


def test_coec_compares_with_the_mean_of_a_position() -> None:
    # Position 1: 30 of 200; position 2: 10 of 200.
    values = coec(np.array([1, 2, 1, 2]), np.array([20, 2, 10, 8]), np.array([100] * 4), np.array([0, 1, 2, 3]))
    assert values.round(3).tolist() == [1.333, 0.4, 0.667, 1.6]
    assert coec(np.array([1]), np.array([0]), np.array([5]), np.array([0])).tolist() == [0.0]


def test_sdbn_counts_what_was_read_up_to_the_last_click(tmp_path: Path) -> None:
    log = sessions(tmp_path, "aBc", "ABc", "abc", "aBC")
    assert log.sessions is not None
    counts = sdbn(log.sessions)
    assert [log.products[one] for one in counts.product] == ["a", "b", "c"]
    assert (counts.examined.tolist(), counts.clicked.tolist(), counts.last.tolist()) == (
        [3, 3, 1],
        [1, 3, 1],
        [0, 2, 1],
    )
    graded = grade(log, "sdbn", min_impressions=1)
    assert graded.method == "sdbn" and grades_of(graded)["mug"]["b"] == 3


def test_what_sdbn_never_sees_has_no_grade(tmp_path: Path) -> None:
    graded = grade(sessions(tmp_path, "Abc"), "sdbn", min_impressions=1)
    assert grades_of(graded) == {"mug": {"a": 3}}


def test_linear_cuts_the_positions_of_the_log_into_quarters(tmp_path: Path) -> None:
    log = report(tmp_path, "mug,a,1,30,0,0,0", "mug,b,50,30,0,0,0", "mug,c,51,30,0,0,0", "mug,d,100,30,0,0,0")
    assert grades_of(grade(log, "linear")) == {"mug": {"a": 3, "b": 2, "c": 1, "d": 0}}
    assert linear(np.array([1.0, 25, 26, 75, 76]), 100).tolist() == [3, 3, 2, 1, 0]


def test_the_position_based_model_finds_what_moving_products_tell() -> None:
    rng = np.random.default_rng(0)
    attractive, looked = np.array([0.6, 0.3, 0.1, 0.05]), 1 / np.arange(1, 5)
    pair, position = (axis.ravel() for axis in np.meshgrid(np.arange(4), np.arange(1, 5), indexing="ij"))
    shown = np.full(16, 20_000)
    clicks = rng.binomial(shown, attractive[pair] * looked[position - 1])
    found, examination = position_based_model(position, clicks, shown, pair, steps=400)
    np.testing.assert_allclose(examination[1:] / examination[1], looked, atol=0.02)
    np.testing.assert_allclose(found / found[0], attractive / attractive[0], atol=0.02)


def test_the_default_uses_positions_and_does_not_punish_low_places(tmp_path: Path) -> None:
    # Both do equally well at both positions, but b is shown on top more often.
    rows = ["mug,a,1,100,40,0,0", "mug,a,4,900,90,0,0", "mug,b,1,900,360,0,0", "mug,b,4,100,10,0,0"]
    log = report(tmp_path, *rows)
    assert grades_of(grade(log)) == {"mug": {"a": 3, "b": 3}} and grade(log).method == "pbm"
    assert grades_of(grade(log, "rate")) == {"mug": {"a": 2, "b": 3}}


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=30))
def test_the_position_based_model_stays_within_bounds(cells: list[tuple[int, int, int]]) -> None:
    position, clicks, shown = (np.array(column) for column in zip(*cells, strict=True))
    pair = np.arange(len(cells)) % 7
    found, examination = position_based_model(position, clicks, shown, pair)
    assert ((found >= 0) & (found <= 1)).all() and ((examination > 0) & (examination <= 1)).all()


# What a log lacks


def test_the_default_is_what_the_log_allows(tmp_path: Path) -> None:
    blank = report(tmp_path, "mug,a,,90,9,0,0", "mug,b,1,90,0,0,0")
    assert grade(blank).method == "rate"
    clicks = report(tmp_path, "mug,a,1", header="query,sku,clicks\n")
    graded = grade(clicks)
    assert graded.method == "funnel" and grades_of(graded) == {"mug": {"a": 1}}
    assert grade(sessions(tmp_path, "aB"), min_impressions=1).method == "pbm"


@pytest.mark.parametrize(
    ("method", "header", "signal", "message"),
    [
        ("dbn", HEADER, None, "'dbn' is unknown. Use one of funnel, pbm"),
        ("sdbn", HEADER, None, "--grades sdbn: the log has no sessions"),
        ("coec", HEADER.replace("position", "page"), None, "no position for some products"),
        ("pbm", HEADER.replace("position", "page"), None, "no position for some products"),
        ("rate", HEADER.replace("impressions", "visits"), None, "does not say what was shown. Use funnel"),
        ("linear", HEADER, "orders", "linear does not count orders"),
        ("rate", HEADER, "orders", "the log has no purchases. Use --signal clicks"),
    ],
)
def test_a_method_that_the_log_does_not_allow_is_refused(
    tmp_path: Path, method: str, header: str, signal: str | None, message: str
) -> None:
    log = report(tmp_path, "mug,a,1,90,9,1,0", header=header)
    with pytest.raises(CatalogueError, match=message):
        grade(log, method, signal=signal)  # type: ignore[arg-type]


def test_rarely_shown_pairs_have_no_grade_whatever_happened(tmp_path: Path) -> None:
    log = report(tmp_path, "mug,a,1,19,9,3,1", "mug,b,2,12,1,0,0", "mug,b,3,8,1,0,0")
    assert grades_of(grade(log, "funnel")) == {"mug": {"b": 1}}
    assert grades_of(grade(log, "funnel", min_impressions=1)) == {"mug": {"a": 3, "b": 1}}
    with pytest.raises(CatalogueError, match=r"was shown 21 times \(most: 20\).*--min_impressions 20"):
        grade(log, min_impressions=21)
    assert "9 of 11 clicks are of pairs below min_impressions=20" in " ".join(grade(log).warnings)


def test_a_log_without_successes_says_so(tmp_path: Path) -> None:
    graded = grade(report(tmp_path, "mug,a,1,90,0,0,0", "mug,b,2,90,0,0,0"))
    assert grades_of(graded) == {"mug": {"a": 0, "b": 0}}
    assert any("all grades are 0" in warning for warning in graded.warnings)


@pytest.mark.parametrize("method", list(RULES))
def test_the_rule_names_method_and_source(tmp_path: Path, method: str) -> None:
    graded = grade(sessions(tmp_path, *["aBc"] * 30), method)
    assert graded.rule.startswith(f"{method}: ") and "{" not in graded.rule and graded.method == method
    assert all(0 <= one <= 3 for _, _, one in graded.rows)


def test_clicks_above_impressions_count_as_these(tmp_path: Path) -> None:
    log = report(tmp_path, "mug,a,1,50,80,0,0", "mug,b,1,50,50,0,0")
    for method in ("rate", "coec", "pbm"):
        assert grades_of(grade(log, method)) == {"mug": {"a": 3, "b": 3}}


def test_frames_of_a_log_are_left_as_they_are(tmp_path: Path) -> None:
    log = report(tmp_path, "mug,a,1,50,8,0,0", "mug,b,2,5,5,0,0")
    before = log.cells.copy()
    grade(log)
    pd.testing.assert_frame_equal(log.cells, before)
