"""TREC: judgements of four fields, topics in SGML, XML and TSV, and products of another format."""

import json
from pathlib import Path

import pytest
from readers import read

from mmfusion.data.catalogue_schema import CatalogueError

SGML = """<top>
<num> Number: 301
<title> garden &amp; patio chair
<desc> Description:
Something to sit on.
</top>
<top>
<num>302</num>
<title>rug</title>
</top>
"""
XML = """<topics><topic number="301"><query>garden &amp; patio chair</query></topic>
<topic number='302'><title> rug </title></topic></topics>"""
CSV = "qid,query\n301,garden & patio chair\n302,rug\n"
JSON = '{"_id": 301, "text": "garden & patio chair"}\n{"_id": 302, "text": "rug"}\n'
TSV = "301\tgarden & patio chair\n302\trug\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = [{"_id": "p-1", "title": "Teak chair", "text": ""}, {"_id": "p-2", "title": "Wool rug", "text": ""}]
    (tmp_path / "corpus.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in documents))
    (tmp_path / "qrels.test.txt").write_text("301 0 p-1 3\n301 Q0 p-2 -2\n302\t0\tp-2\t1\n302 0 p-9 1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "topics"),
    [("topics.301-302", SGML), ("topics.xml", XML), ("queries.tsv", TSV), ("topics.csv", CSV), ("queries.jsonl", JSON)],
)
def test_topics(folder: Path, name: str, topics: str) -> None:
    (folder / name).write_text(topics)
    found = read(folder)
    assert found.format == "trec"
    assert found.ids == ["p-1", "p-2"]
    assert [(query.query_id, query.text, query.split) for query in found.queries] == [
        ("301", "garden & patio chair", "test"),
        ("302", "rug", "test"),
    ]
    assert found.grades == {"301": {"p-1": 3, "p-2": 0}, "302": {"p-2": 1}}


def test_products_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text("sku;name;price;stock\n0071;Teak chair;12,50;5\n0072;Rug;8,00;1\n")
    (tmp_path / "qrels").write_text("301 0 0071 2\n")
    (tmp_path / "topics.xml").write_text(XML)
    found = read(tmp_path)
    assert found.format == "trec"
    assert [(item.item_id, item.title, item.metadata["price"]) for item in found.items] == [
        ("0071", "Teak chair", 12.5),
        ("0072", "Rug", 8.0),
    ]
    assert found.grades == {"301": {"0071": 2}}


def test_a_table_of_four_columns_is_no_list_of_judgements(tmp_path: Path) -> None:
    (tmp_path / "shop.tsv").write_text("sku\ttitle\tprice\tstock\n0071\tchair\t12.50\t5\n0072\trug\t8\t1\n")
    assert read(tmp_path).format == "generic"


def test_bad_lines_are_rejected(folder: Path) -> None:
    (folder / "topics.txt").write_text(TSV)
    with (folder / "qrels.test.txt").open("a") as file:
        file.write("301 0 p-2 high\n301 p-2\n")
    assert [(line, reason) for _, line, reason in read(folder).log.rejected] == [
        (5, "grade is not a whole number: 'high'"),
        (6, "not query, (0,) product and grade: '301 p-2'"),
    ]


def test_missing_parts(folder: Path) -> None:
    with pytest.raises(CatalogueError, match="texts of the judged queries are missing"):
        read(folder)
    (folder / "topics.txt").write_text(TSV)
    with pytest.raises(CatalogueError, match="the products are missing"):
        read(folder / "qrels.test.txt", folder / "topics.txt")
    with pytest.raises(CatalogueError, match="no file of judgements"):
        read(folder / "corpus.jsonl", folder / "topics.txt", format="trec")
