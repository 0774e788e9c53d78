"""BEIR: corpus, queries and judgements by split, in the files that data sets really have."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from readers import read

from mmfusion.data.catalogue_schema import CatalogueError

CORPUS = [
    {"_id": "007", "title": "Oak bowl", "text": "Turned<br>by hand", "metadata": {"maker": "Wren", "price": 19.5}},
    {"_id": "1E5", "title": "", "text": "Brass lamp"},
    {"_id": "20000000000000000001", "title": "Felt mat", "text": "", "url": "https://a.example/mat"},
]
QUERIES = [
    {"_id": "1", "text": "wooden bowl"},
    {"_id": "2", "text": "light"},
    {"_id": "3", "text": "mat", "metadata": {"narrative": "on the floor"}},
    {"_id": "4", "text": "never judged"},
]
HEADER = "query-id\tcorpus-id\tscore\n"


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(lines(CORPUS))
    (tmp_path / "queries.jsonl").write_text(lines(QUERIES))
    (tmp_path / "qrels" / "train.tsv").write_text(HEADER + "1\t007\t2\n1\t1E5\t0\n9\t007\t1\n")
    (tmp_path / "qrels" / "dev.tsv").write_text(HEADER + "2\t1E5\t1\n2\t404\t1\n")
    (tmp_path / "qrels" / "test.tsv").write_text(HEADER + "3\t20000000000000000001\t1\n3\t007\t-1\n1\t007\t1\n")
    return tmp_path


def test_corpus(folder: Path) -> None:
    found = read(folder)
    assert found.format == "beir"
    assert [(item.item_id, item.title, item.description) for item in found.items] == [
        ("007", "Oak bowl", "Turned by hand"),
        ("1E5", "", "Brass lamp"),
        ("20000000000000000001", "Felt mat", ""),
    ]
    assert {name: found.by_id["007"].metadata[name] for name in ("maker", "price")} == {
        "maker": "Wren",
        "price": 19.5,
    }
    assert found.by_id["20000000000000000001"].metadata["url"] == "https://a.example/mat"
    assert found.imported.template == "{title} {description}"


def test_queries_have_the_splits_of_their_judgements(folder: Path) -> None:
    found = read(folder)
    # Query 1 is judged in two files: it is a query of each.
    assert found.splits == {"1": "train", "2": "val", "3": "test", "1-test": "test", "4": None}
    assert found.grades == {
        "1": {"007": 2, "1E5": 0},
        "2": {"1E5": 1},
        "3": {"20000000000000000001": 1, "007": 0},
        "1-test": {"007": 1},
    }
    # The import counts these: an unknown query and an unknown product.
    assert {(one.query_id, one.product_id) for one in found.judgements} >= {("9", "007"), ("2", "404")}
    assert read(folder, splits={"dev": "train"}).splits["2"] == "train"


def test_judgements_without_a_header_and_with_bad_lines(folder: Path) -> None:
    for file in (folder / "qrels").iterdir():
        file.unlink()
    (folder / "qrels" / "valid.tsv").write_text("1\t007\t1\n2\t1E5\t0.5\n3\t007\n\n3\t007\t2.0\n")
    found = read(folder)
    assert found.grades == {"1": {"007": 1}, "3": {"007": 2}}
    assert found.splits["3"] == "val"
    assert found.log.rejected == [
        ("qrels/valid.tsv", 2, "grade is not a whole number: '0.5'"),
        ("qrels/valid.tsv", 3, "not query, (0,) product and grade: '3 007'"),
    ]


def test_tables_that_are_not_read_are_named(folder: Path) -> None:
    (folder / "sellers.csv").write_text("seller,town\n1,Wien\n")
    assert read(folder).log.warnings == ["sellers.csv is not a table of BEIR and is not read"]


def test_bad_rows_of_queries_and_corpus(folder: Path) -> None:
    (folder / "queries.jsonl").write_text(lines([*QUERIES, {"_id": "1", "text": "bowls"}, {"_id": "5", "text": " "}]))
    (folder / "corpus.jsonl").write_text(lines([*CORPUS, {"title": "Nobody", "text": "x"}]) + '{"_id": "8", "ti')
    found = read(folder)
    assert found.ids == ["007", "1E5", "20000000000000000001"]
    assert {query.query_id: query.text for query in found.queries}["1"] == "wooden bowl"
    reasons = {(file, line): reason.partition(":")[0] for file, line, reason in found.log.rejected}
    assert reasons == {
        ("queries.jsonl", 5): "query id has another text before",
        ("queries.jsonl", 6): "text is empty",
        ("corpus.jsonl", 4): "_id is empty",
        ("corpus.jsonl", 5): "not JSON",
    }


def test_parquet_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    for name, rows in {
        "corpus/corpus-00000-of-00001": [
            {"_id": "a", "title": "Cup", "text": "t", "image": {"bytes": b"photo", "path": None}}
        ],
        "queries/queries-00000-of-00001": [{"_id": "1", "text": "cup"}],
        "qrels/test-00000-of-00001": [{"query-id": "1", "corpus-id": "a", "score": 1}],
    }.items():
        (tmp_path / name).parent.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    found = read(tmp_path)
    assert found.format == "beir"
    assert found.items[0].photos == [b"photo"]
    assert found.items[0].metadata == {}
    assert (found.splits, found.grades) == ({"1": "test"}, {"1": {"a": 1}})


def test_a_corpus_alone_and_queries_alone(folder: Path) -> None:
    alone = read(folder / "corpus.jsonl")
    assert (alone.format, len(alone.items), alone.queries) == ("beir", 3, [])
    with pytest.raises(CatalogueError, match="the corpus is missing"):
        read(folder / "queries.jsonl", format="beir")


def test_sample(samples: Path) -> None:
    expected = json.loads((samples / "beir" / "expected.json").read_text())
    found = read(samples / "beir")
    assert found.format == "beir"
    assert found.ids == expected["product_ids"]
    assert found.grades == expected["grades"]
    assert found.splits == {"q1": "train", "q2": "test", "q3": "test", "q9": None}
    assert found.by_id["02"].title == expected["title"]["02"]
    assert {name: found.by_id[name].description for name in ("01", "02")} == expected["description"]


def test_sample_with_judgements_of_trec(samples: Path) -> None:
    folder = samples / "beir"
    expected = json.loads((folder / "expected.json").read_text())
    files = [folder / name for name in ("corpus.jsonl", "queries.jsonl", "qrels.trec.txt")]
    for found in (read(*files), read(folder, format="trec")):
        assert found.format == "trec"
        assert found.ids == expected["product_ids"]
        assert found.grades == expected["trec"]["grades"]
        assert found.splits == dict.fromkeys(["q1", "q2", "q3", "q9"])
