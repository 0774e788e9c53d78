"""Marqo-GS-10M: long ids, products in many rows, and parts that become splits."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from readers import read

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers import ReadSettings, find_importer, open_source
from mmfusion.importers.items import ImportLog

HEADER = "image,query,product_id,position,title,pair_id,score_linear,score_reciprocal,no_score,query_id\n"
LONG = "99999999999999999999"


def write(folder: Path, name: str, *rows: str, header: str = HEADER) -> None:
    (folder / name).write_text(header + "".join(f"{row}\n" for row in rows), "utf-8")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "query_0_product_id_0.csv",
        f'/mnt/x/{LONG}.webp,copper pan,{LONG},1,"Pan, copper",{LONG}_a,100,100.0,1,a',
        ",copper pan,0071,30,,0071_a,71,3.3,1,a",
        "/mnt/x/0071.webp,tea towel,0071,2,Linen towel,0071_b,99.0,50.0,1,b",
    )
    write(tmp_path, "query_1_product_id_0.csv", "/mnt/x/0071.webp,dish cloth,0071,1,Other,0071_c,100,100.0,1,c")
    write(tmp_path, "query_1_product_id_1.csv", ",dish cloth,5,7,,5_c,94,14.2,1,c")
    write(tmp_path, "query_0_product_id_1.csv", "/mnt/x/5.webp,copper pan,5,4,Small pan,5_a,97,25.0,1,a")
    return tmp_path


def test_products_come_once_with_the_first_title_and_photo(parts: Path) -> None:
    found = read(parts)
    assert found.format == "gs10m"
    assert {item.item_id: (item.title, item.photos) for item in found.items} == {
        LONG: ("Pan, copper", [f"/mnt/x/{LONG}.webp"]),
        "0071": ("Linen towel", ["/mnt/x/0071.webp"]),
        "5": ("Small pan", ["/mnt/x/5.webp"]),
    }
    assert found.by_id["0071"].place.endswith("query_0_product_id_0.csv, line 3")


def test_parts_are_splits_and_kinds(parts: Path) -> None:
    found = read(parts)
    assert {query.query_id: (query.text, query.split, query.kind) for query in found.queries} == {
        "a": ("copper pan", "train", "in_domain"),
        "b": ("tea towel", "train", "in_domain"),
        "c": ("dish cloth", "test", "novel_query"),
        # The same query, judged for products that training lacks.
        "a-test": ("copper pan", "test", "novel_document"),
    }
    assert found.grades == {
        "a": {LONG: 3, "0071": 2},
        "b": {"0071": 3},
        "c": {"0071": 3, "5": 3},
        "a-test": {"5": 3},
    }
    assert "There are no val queries" in found.log.warnings[0]
    asked = read(parts, splits={"novel_query": "dev"})
    assert asked.splits["c"] == "val"
    assert asked.log.warnings == []
    assert not asked.imported.val_from_train


def test_rows_that_cannot_be_used_are_rejected(tmp_path: Path) -> None:
    write(
        tmp_path,
        "rows.csv",
        ",lid,1,1,Lid,1_a,best,1,1,a",
        ",lid,,2,Nobody,_a,99,1,1,a",
        ",lid,2,3,Lid 2,2_a,98,1,1,a",
        ",other,3,1,Lid 3,3_a,100,1,1,a",
    )
    found = read(tmp_path)
    assert found.ids == ["2"]
    assert found.splits == {"a": None}
    assert found.log.rejected == [
        ("rows.csv", 2, "grade is not a whole number: 'best'"),
        ("rows.csv", 3, "product_id is empty"),
        ("rows.csv", 5, "query id has another text before: 'a' is 'lid'"),
    ]


def test_grades_from_positions_and_ids_from_texts(tmp_path: Path) -> None:
    write(
        tmp_path, "x.csv", "lid,7,3,Lid,7_1", "Lid ,8,200,Lid,8_1", header="query,product_id,position,title,pair_id\n"
    )
    found = read(tmp_path)
    assert [one.grade for one in found.judgements] == [3, 0]
    assert len({query.query_id for query in found.queries}) == 1


@pytest.mark.parametrize(
    ("score", "grade"), [(100, 3), (76, 3), (75, 2), (51, 2), (50, 1), (26, 1), (25, 0), (1, 0), (0, 0)]
)
def test_scores_are_grades_in_four_bands(tmp_path: Path, score: int, grade: int) -> None:
    write(tmp_path, "x.csv", f",lid,7,1,Lid,7_1,{score},1,1,a")
    found = read(tmp_path)
    assert found.grades == {"a": {"7": grade}}
    assert "51 to 75 is 2" in found.imported.judgement_rule


def test_photos_in_parquet_are_passed_on_at_once(tmp_path: Path) -> None:
    rows = [
        {
            "image": {"bytes": b"photo", "path": "1.webp"},
            "query": "lid",
            "product_id": name,
            "title": "Lid",
            "position": at,
        }
        | {"pair_id": f"{name}_1", "score_linear": 101 - at, "query_id": "q"}
        for at, name in enumerate(["1", "2", "1"], 1)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in_domain-00000.parquet")
    source = open_source([str(tmp_path)], tmp_path)
    imported = find_importer(source)[1].read(source, ReadSettings(), ImportLog())
    assert callable(imported.judgements)
    items = iter(imported.items)
    assert next(items).photos == [b"photo"]
    assert len(imported.judgements()) == 1
    assert [item.item_id for item in items] == ["2"]
    assert len(imported.judgements()) == 3


@pytest.mark.parametrize(
    ("settings", "parts_of_error"),
    [
        ({"splits": {"novel_query": "holdout"}}, ["'holdout' is not a split", "novel_query", "train, val or test"]),
        ({"columns": {"title": "name"}}, ["--columns", "fixed", "Leave it out"]),
        ({"id_column": "pair_id"}, ["--id_column", "fixed"]),
    ],
)
def test_settings_that_do_not_fit(parts: Path, settings: dict[str, object], parts_of_error: list[str]) -> None:
    with pytest.raises(CatalogueError) as caught:
        read(parts, **settings)
    for part in parts_of_error:
        assert part in str(caught.value)


def test_sample(samples: Path) -> None:
    expected = json.loads((samples / "gs10m" / "expected.json").read_text())
    found = read(samples / "gs10m")
    assert sorted(found.ids) == sorted(expected["product_ids"])
    bands = {
        query: {name: (score - 1) // 25 for name, score in own.items()}
        for query, own in expected["grades_linear"].items()
    }
    assert found.grades == bands
    assert {name: found.grades[name] for name in ("q1", "q2")} == {
        name: expected["grades_in_four_bands"][name] for name in ("q1", "q2")
    }
    assert found.splits == {"q1": "train", "q2": "train", "q3": "test"}
    assert {item.item_id: len(item.photos) for item in found.items} == expected["photos"]
