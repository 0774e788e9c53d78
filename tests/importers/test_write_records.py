"""Products in memory as a catalogue, judged by tables in memory or by files, as an import judges them."""

from pathlib import Path
from typing import Any

import pytest

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.records import write_records
from mmfusion.importers.settings import ImportSettings

PRODUCTS = [{"product_id": f"{number:02d}", "title": f"Dress {number}"} for number in range(3)]


@pytest.fixture
def clicks(tmp_path: Path) -> str:
    path = tmp_path / "report.csv"
    path.write_text("query,product id,impressions,clicks,orders\ndress,00,90,9,3\ndress,01,90,1,0\nhat,99,90,1,0\n")
    return str(path)


def grades(folder: Path) -> dict[str, int]:
    catalogue = Catalogue.load(folder)
    names = catalogue.product_ids[catalogue.qrels.product]
    return dict(zip(map(str, names), catalogue.qrels.grade.tolist(), strict=True))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"grades": "funnel"}, {"00": 3, "01": 1}),
        ({"grades": "funnel", "signal": "clicks"}, {"00": 1, "01": 1}),
        ({"grades": "rate", "signal": "clicks"}, {"00": 3, "01": 1}),
    ],
)
def test_clicks_are_graded_as_an_import_is_told(
    settings: dict[str, Any], expected: dict[str, int], clicks: str, tmp_path: Path
) -> None:
    log = write_records(tmp_path / "out", PRODUCTS, settings=ImportSettings(clicks=clicks, **settings))
    assert grades(tmp_path / "out") == expected
    assert log.rejected_by_reason == {"product is unknown": 1}


def test_lists_of_judgements_will_do(tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    path.write_text("query,product_id,grade\ndress,01,2\n")
    write_records(tmp_path / "out", PRODUCTS, settings=ImportSettings(judgements=str(path)))
    assert grades(tmp_path / "out") == {"01": 2}


def test_judgements_come_from_one_place(clicks: str, tmp_path: Path) -> None:
    queries = [{"query_id": "a", "query": "dress"}]
    tables = {"queries": queries, "qrels": [{"query_id": "a", "product_id": "00", "grade": 1}]}
    with pytest.raises(CatalogueError, match="clicks are given, and queries or qrels, too"):
        write_records(tmp_path / "out", PRODUCTS, **tables, settings=ImportSettings(clicks=clicks))
    with pytest.raises(CatalogueError, match="--clicks and --judgements: both are given"):
        write_records(tmp_path / "out", PRODUCTS, settings=ImportSettings(clicks=clicks, judgements=clicks))
    with pytest.raises(CatalogueError, match="one of queries and qrels is given without the other"):
        write_records(tmp_path / "out", PRODUCTS, tables["queries"], settings=ImportSettings())
