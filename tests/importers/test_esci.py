"""ESCI: locales that share ids, labels as letters and words, and tables that are apart or joined."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from readers import read

from mmfusion.data.catalogue_schema import CatalogueError


def product(name: str, locale: str, title: str | None, **texts: str | None) -> dict[str, Any]:
    columns = dict.fromkeys(["product_description", "product_bullet_point", "product_brand", "product_color"])
    return {"product_id": name, "product_title": title, **columns, **texts, "product_locale": locale}


def example(
    query_id: int, query: str, name: str, locale: str, label: str, split: str, small: int = 1
) -> dict[str, Any]:
    return {
        "query": query,
        "query_id": query_id,
        "product_id": name,
        "product_locale": locale,
        "esci_label": label,
        "small_version": small,
        "large_version": 1,
        "split": split,
    }


PRODUCTS = [
    product(
        "0099", "jp", "やかん", product_description="<p>Steel &amp; oak</p><ul><li>1 l</li></ul>", product_brand="Kanda"
    ),
    product("0099", "us", "Kettle", product_bullet_point="Holds 1 l\nNo whistle", product_color="Blue"),
    product("B7", "us", None),
]
EXAMPLES = [
    example(1, "kettle", "0099", "us", "E", "train"),
    example(1, "kettle", "B7", "us", "c", "train"),
    example(2, "やかん", "0099", "jp", "Substitute", "test"),
    example(3, "tea pot", "0099", "us", "irrelevant", "test", small=0),
    example(4, "cup", "B7", "us", "X", "test"),
    example(5, "", "B7", "us", "E", "test"),
    example(6, "jug", "B7", "us", "E", "te"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("examples", EXAMPLES), ("products", PRODUCTS)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    return tmp_path


def test_one_locale(folder: Path) -> None:
    found = read(folder, locale="US")
    assert found.format == "esci"
    assert found.ids == ["0099", "B7"]
    kettle = found.by_id["0099"]
    assert (kettle.title, kettle.description) == ("Kettle", "Holds 1 l\nNo whistle")
    assert kettle.metadata == {"brand": "", "color": "Blue", "locale": "us"}
    assert found.by_id["B7"].title == ""
    assert found.splits == {"1": "train", "3": "test"}
    assert found.grades == {"1": {"0099": 3, "B7": 1}, "3": {"0099": 0}}
    assert found.log.left_out == {"product of another locale": 1, "example of another locale": 1}
    assert found.log.warnings == []


def test_all_locales_are_told_apart(folder: Path) -> None:
    found = read(folder)
    assert found.ids == ["0099-jp", "0099-us", "B7-us"]
    # Photos are named by the id without the locale.
    assert [item.photo_name for item in found.items] == ["0099", "0099", "B7"]
    assert found.by_id["0099-jp"].title == "やかん"
    assert found.by_id["0099-jp"].description == "Steel & oak 1 l"
    assert found.grades["2"] == {"0099-jp": 2}
    assert "2 locales (jp, us)" in found.log.warnings[0]
    assert "--locale" in found.log.warnings[0]


def test_labels_and_splits_that_are_unknown_and_queries_without_text_are_rejected(folder: Path) -> None:
    assert read(folder).log.rejected == [
        ("examples.parquet", 5, "esci_label is none of E, S, C and I: 'X'"),
        ("examples.parquet", 6, "query is empty"),
        ("examples.parquet", 7, "split is none of train, val and test: 'te'"),
    ]


def test_small_version(folder: Path) -> None:
    found = read(folder, locale="us", subset="small")
    assert list(found.splits) == ["1"]
    assert len(found.items) == 2
    with pytest.raises(CatalogueError, match=r"no subset 'tiny'.*small or large"):
        read(folder, subset="tiny")


def test_joined_tables_in_csv_with_splits_in_file_names(tmp_path: Path) -> None:
    header = "query_id,query,product_id,product_title,product_locale,esci_label\n"
    (tmp_path / "train-00000-of-00001.csv").write_text(
        header + "1,kettle,0099,Kettle,us,Exact\n1,kettle,1E5,<b>Oak</b> tray,us,I\n2,tray,1E5,Oak tray,us,E\n"
    )
    (tmp_path / "test-00000-of-00001.csv").write_text(header + "3,Kettle,0099,Kettle,us,S\n")
    found = read(tmp_path)
    assert {item.item_id: item.title for item in found.items} == {"0099": "Kettle", "1E5": "Oak tray"}
    assert found.splits == {"1": "train", "2": "train", "3": "test"}
    assert found.grades == {"1": {"0099": 3, "1E5": 0}, "2": {"1E5": 3}, "3": {"0099": 2}}
    assert not found.log.left_out


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(CatalogueError, match=r"no product is of the locale 'de'.*Use one of jp, us"):
        read(folder, locale="de")
    with pytest.raises(CatalogueError, match="table of products is missing"):
        read(folder / "examples.parquet")
    alone = read(folder / "products.parquet", locale="us")
    assert (alone.format, len(alone.items), alone.queries) == ("esci", 2, [])


def test_sample(samples: Path) -> None:
    expected = json.loads((samples / "esci" / "expected.json").read_text())
    found = read(samples / "esci", locale="us")
    assert found.ids == expected["locale_us"]["product_ids"]
    assert found.grades == expected["locale_us"]["grades"]
    assert {name for name, split in found.splits.items() if split == "test"} == set(
        expected["locale_us"]["splits"]["test"]
    )
    assert len(found.queries) == expected["locale_us"]["num_queries"]
    assert "No pockets" in found.by_id["B0A0000001"].description
    small = read(samples / "esci", locale="us", subset="small")
    assert len(small.queries) == expected["small_version_us"]["num_queries"]
    everything = read(samples / "esci")
    assert len(set(everything.ids)) == expected["all_locales"]["num_products"]
