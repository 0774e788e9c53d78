"""What is new, changed and gone since the last import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.changes import DIGESTS, Changes, Digests
from mmfusion.importers.write import PHOTO

Rows = list[dict[str, Any]]


def table(rows: Rows) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "image"))
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
    return pa.table({**columns, "image": pa.array([row.get("image") for row in rows], pa.list_(PHOTO))})


def write(folder: Path, rows: Rows) -> None:
    folder.mkdir(exist_ok=True)
    digests = Digests(folder)
    (written,) = digests.noted([table(rows)])
    pq.write_table(written, folder / "products.parquet")
    digests.write(folder / DIGESTS)


def compared(folder: Path, rows: Rows, size: int = 2) -> Changes:
    digests = Digests(folder)
    whole = table(rows)
    for _ in digests.noted(whole.slice(start, size) for start in range(0, len(rows), size)):
        pass
    changes = digests.against(folder)
    assert changes is not None
    return changes


def path(name: str) -> Rows:
    return [{"bytes": None, "path": name}]


ROWS: Rows = [
    {"product_id": "1", "title": "Mug", "price": 4.5, "image": path("1.jpg")},
    {"product_id": "01", "title": "Cup", "price": None, "image": None},
    {"product_id": "3", "title": "Jug", "price": 9.0, "image": [{"bytes": b"photo", "path": "3.jpg"}]},
]


def test_new_changed_and_gone_products_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    today = [ROWS[2], {**ROWS[0], "title": "Mug, blue"}, {"product_id": "9", "title": "New", "image": None}]
    changes = compared(tmp_path, today)
    assert changes == Changes(1, 1, 1, 1, {"new": ["9"], "changed": ["1"], "gone": ["01"]})
    assert str(changes) == "1 new, 1 changed, 1 gone, 1 as before"


@pytest.mark.parametrize(
    ("row", "change", "changed"),
    [
        (0, {}, []),
        (0, {"price": 4.51}, ["1"]),
        (0, {"price": None}, ["1"]),
        (0, {"title": "MUG"}, ["1"]),
        (0, {"image": None}, ["1"]),
        (0, {"image": path("2.jpg")}, ["1"]),
        (0, {"image": [*path("1.jpg"), *path("2.jpg")]}, ["1"]),
        (0, {"split": "test"}, []),
        (0, {"colour": None}, []),
        (1, {"colour": "red"}, ["01"]),
        (2, {"image": [{"bytes": b"other", "path": "3.jpg"}]}, ["3"]),
        (2, {"image": [{"bytes": b"photo", "path": None}]}, []),
    ],
)
def test_what_counts_as_a_change(tmp_path: Path, row: int, change: dict[str, Any], changed: list[str]) -> None:
    write(tmp_path, ROWS)
    today = [{**known, **change} if at == row else known for at, known in enumerate(ROWS)]
    assert compared(tmp_path, today).examples["changed"] == changed


def test_values_do_not_move_between_columns_unseen(tmp_path: Path) -> None:
    write(tmp_path, [{"product_id": "1", "title": "x", "a": "red", "b": None}])
    changes = compared(tmp_path, [{"product_id": "1", "title": "x", "a": None, "b": "red"}])
    assert changes.changed == 1


def test_the_order_of_columns_and_rows_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    backwards = [dict(reversed(row.items())) for row in reversed(ROWS)]
    assert compared(tmp_path, backwards).same == 3


def test_a_photo_that_was_replaced_under_its_name_is_a_change(tmp_path: Path) -> None:
    photo = tmp_path / "1.jpg"
    photo.write_bytes(b"one")
    write(tmp_path, ROWS)
    assert compared(tmp_path, ROWS).changed == 0
    os.utime(photo, ns=(1, 1))
    assert compared(tmp_path, ROWS).examples["changed"] == ["1"]
    write(tmp_path, ROWS)
    photo.write_bytes(b"another")
    os.utime(photo, ns=(1, 1))
    assert compared(tmp_path, ROWS).examples["changed"] == ["1"]
    write(tmp_path, ROWS)
    photo.unlink()
    assert compared(tmp_path, ROWS).examples["changed"] == ["1"]


def test_a_catalogue_that_no_import_wrote_is_compared_too(tmp_path: Path) -> None:
    assert Digests(tmp_path).against(tmp_path) is None
    write(tmp_path, ROWS)
    (tmp_path / DIGESTS).unlink()
    assert compared(tmp_path, ROWS[:2]) == Changes(0, 0, 1, 2, {"new": [], "changed": [], "gone": ["3"]})
    (tmp_path / "products.parquet").write_text("broken")
    with pytest.raises(CatalogueError, match="cannot be read"):
        compared(tmp_path, ROWS)


def test_columns_of_lists_count(tmp_path: Path) -> None:
    write(tmp_path, [{"product_id": "1", "title": "x", "sizes": ["S", "M"]}])
    assert compared(tmp_path, [{"product_id": "1", "title": "x", "sizes": ["S", "M"]}]).same == 1
    assert compared(tmp_path, [{"product_id": "1", "title": "x", "sizes": ["S"]}]).changed == 1
