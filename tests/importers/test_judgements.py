"""Lists of judgements: formats, labels, ids, and what is left out."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.judgements import Judgements, grade_labels, read_judgements

KNOWN = {"01", "02", "03", "1E5"}


def read(
    folder: Path, text: str, name: str = "ratings.csv", **options: Any
) -> tuple[Judgements, list[tuple[int, str]]]:
    (folder / name).write_text(text, "utf-8")
    left_out: list[tuple[int, str]] = []
    reject = lambda file, line, reason: left_out.append((line, reason))  # noqa: E731
    return read_judgements(folder / name, KNOWN, reject=reject, **options), left_out


# Formats


def test_the_sample_qrels_are_read_as_expected(samples: Path) -> None:
    folder = samples / "beir"
    expected = json.loads((folder / "expected.json").read_text())
    known = set(expected["product_ids"])
    for path, grades in (("qrels/*.tsv", expected["grades"]), ("qrels.trec.txt", expected["trec"]["grades"])):
        found = read_judgements(folder / path, known)
        assert found.by_id
        assert {(query, item): one for query, item, one in found.rows} == {
            (query, item): one for query, items in grades.items() for item, one in items.items()
        }
    assert read_judgements(folder / "qrels" / "*.tsv", known).counts == {"product is unknown": 1}


def test_the_sample_scores_are_banded_as_expected(samples: Path) -> None:
    folder = samples / "gs10m"
    expected = json.loads((folder / "expected.json").read_text())
    found = read_judgements(folder / "query_0_product_id_0.csv", set(expected["product_ids"]))
    bands = expected["grades_in_four_bands"]
    assert found.rule == bands["rule"] and found.queries == ["floral sundress", "yellow cup"]
    assert [one for *_, one in found.rows] == [*bands["q1"].values(), *bands["q2"].values()][: len(found.rows)]


def test_a_list_by_text_is_normalised_and_merged(tmp_path: Path) -> None:
    text = "query,docid,rating\nRed  Mug,01,1\nred mug,01,3\nRed mug,02,0\ncup,1E5,2\n"
    found, left_out = read(tmp_path, text)
    assert found.rows == [("red mug", "01", 3), ("red mug", "02", 0), ("cup", "1E5", 2)]
    assert not found.by_id and not left_out and found.queries == ["red mug", "cup"]
    assert found.counts == {"pair is judged once more": 1} and found.rule == "rating as in the file"


def test_a_column_of_queries_may_hold_ids(tmp_path: Path) -> None:
    text = "query,docid,rating\nQ1,01,1\nQ2,02,3\n"
    assert not read(tmp_path, text)[0].by_id
    found, _ = read(tmp_path, text, known_queries={"Q1", "Q2", "Q3"})
    assert found.by_id and found.queries == ["Q1", "Q2"]


def test_a_list_may_have_no_header(tmp_path: Path) -> None:
    found, _ = read(tmp_path, "red mug\t01\t2\ncup\t02\t0\n", "ratings.tsv")
    assert found.rows == [("red mug", "01", 2), ("cup", "02", 0)] and not found.by_id
    found, _ = read(tmp_path, "q1,01,E\nq2,02,S\n")
    assert found.rows == [("q1", "01", 3), ("q2", "02", 2)] and found.by_id


def test_qrels_of_trec_are_read(tmp_path: Path) -> None:
    found, left_out = read(tmp_path, "7 0 01 2\n7 Q0 02 -1\n8 0 03\n8\t0\t03\t1\n8 0 99 1\n", "qrels.txt")
    assert found.rows == [("7", "01", 2), ("7", "02", 0), ("8", "03", 1)] and found.by_id
    assert left_out == [(3, "not query, 0, product and grade: '8 0 03'"), (5, "product is unknown: '99'")]
    assert found.rule == "relevance as in the file (negative: 0)"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_json_lines_and_parquet_are_read(tmp_path: Path, kind: str) -> None:
    rows = [
        {"query": "mug", "query_id": 5, "product_id": "01", "esci_label": "Exact"},
        {"query": "cup", "product_id": "02"},
    ]
    rows[1]["esci_label"] = "Irrelevant"
    if kind == "jsonl":
        (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read_judgements(tmp_path / f"a.{kind}", KNOWN)
    assert found.rows == [("mug", "01", 3), ("cup", "02", 0)]
    assert found.rule == "esci_label: exact 3, substitute 2, complement 1, irrelevant 0"


def test_ids_of_variants_become_those_of_products(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("query,sku,grade\nmug,A-1,1\nmug,A-2,2\n")
    assert read_judgements(tmp_path / "r.csv", {"A-1": "01", "A-2": "01"}).rows == [("mug", "01", 2)]


def test_bad_rows_are_left_out_and_named(tmp_path: Path) -> None:
    text = "query,docid,rating\nmug,01,1\n,01,1\nmug,,1\nmug,02,high\nmug,77,1\nmug,03,2\nmug,03\nme@example.org,01,2\n"
    found, left_out = read(tmp_path, text)
    assert found.rows == [("mug", "01", 1), ("mug", "03", 2)]
    assert sorted(left_out) == [
        (3, "query is blank"),
        (4, "product is blank"),
        (5, "grade is neither a number nor a known label: 'high'"),
        (6, "product is unknown: '77'"),
        (8, "2 fields for 3 columns"),
        (9, "query looks like an e-mail address"),
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("query,docid,rating\n", {}, "holds a header and no rows"),
        ("name,docid,rating\nx,01,1\n", {}, "no column of query is recognised"),
        ("query,docid,remark\nx,01,nice\n", {}, "no column of grade is recognised"),
        ("query,docid,rating\nx,99,1\n", {}, "no judgement is left .product is unknown: 1."),
        ("query,docid,rating\nx,01,1\n", {"columns": {"grade": "stars"}}, "'grade' from 'stars', which is no column"),
    ],
)
def test_what_cannot_be_judgements_is_an_error(
    tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CatalogueError, match=message):
        read(tmp_path, text, **options)


def test_ids_and_texts_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query,docid,rating\nmug,01,1\n")
    (tmp_path / "b.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t01\t1\n")
    with pytest.raises(CatalogueError, match="some files name queries by id, and some by text"):
        read_judgements(tmp_path, KNOWN)


# Labels


@pytest.mark.parametrize(
    ("labels", "grades", "rule"),
    [
        (["E", "S", "C", "I"], [3, 2, 1, 0], "grade: e 3, s 2, c 1, i 0"),
        (["Exact", "Partial", "Irrelevant"], [2, 1, 0], "grade: exact 2, partial 1, irrelevant 0"),
        (["Perfect", "bad", "?"], [4, 0, None], "grade: perfect 4, excellent 3, good 2, fair 1, bad 0"),
        (["0", "3", "10"], [0, 3, 10], "grade as in the file"),
        (["2.0", "-1", "-2"], [2, 0, 0], "grade as in the file (negative: 0)"),
        (["0", "0,5", "1"], [0, 1, 2], "grade 1: 2, 0.5: 1, 0: 0"),
        (["1.0", "0.1", "0.01", "0.0"], [3, 2, 1, 0], "grade 1: 3, 0.1: 2, 0.01: 1, 0: 0"),
        (["0.5", "1"], [1, 2], "grade 1: 2, 0.5: 1"),
        (["100", "76", "75", "51", "50", "26", "25", "1"], [3, 3, 2, 2, 1, 1, 0, 0],
         "grade 76-100: 3, 51-75: 2, 26-50: 1, 1-25: 0"),
        (["40", "30", "20", "10"], [3, 2, 1, 0], "grade 31-40: 3, 21-30: 2, 11-20: 1, 1-10: 0"),
        ([str(one / 20) for one in range(21)], [0] * 6 + [1] * 5 + [2] * 5 + [3] * 5,
         "grade above 0.75: 3, above 0.5: 2, above 0.25: 1, up to 0.25: 0"),
        (["nan", "inf", "1"], [None, None, 1], "grade as in the file"),
    ],
)  # fmt: skip
def test_labels_become_grades_by_a_rule_that_is_told(labels: list[str], grades: list[int | None], rule: str) -> None:
    assert grade_labels(labels) == (grades, rule)


@given(st.lists(st.one_of(st.integers(-5, 1000), st.floats(-5, 1000, allow_nan=False)), min_size=1))
def test_grades_keep_the_order_of_the_numbers(numbers: list[float]) -> None:
    grades, rule = grade_labels([f"{number:.6f}" for number in numbers])
    ordered = [one for _, one in sorted(zip(numbers, grades, strict=True))]
    assert ordered == sorted(ordered) and min(ordered) >= 0 and rule.startswith("grade")  # type: ignore[type-var]
