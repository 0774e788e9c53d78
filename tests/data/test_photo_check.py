"""The guard of photos: an error if most photos that are named cannot be read, and nothing said of others."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import command
from PIL import Image

from mmfusion.data import photo_check, photos
from mmfusion.data.catalogue import Catalogue, CatalogueError
from mmfusion.data.photo_check import check_photos
from mmfusion.data.streamed_catalogue import StreamedCatalogue
from mmfusion.data.toy_catalogue import write_toy_catalogue

PHOTOS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def jpeg(colour: str = "red") -> bytes:
    file = BytesIO()
    Image.new("RGB", (24, 32), colour).save(file, "JPEG")
    return file.getvalue()


def by_path(name: str) -> dict[str, Any]:
    return {"bytes": None, "path": name}


def catalogue_of(folder: Path, images: list[Any], of_lists: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "there.jpg").write_bytes(jpeg())
    (folder / "page.jpg").write_bytes(b"<html>404</html>")
    (folder / "empty.jpg").write_bytes(b"")
    column = pa.array(images, pa.list_(PHOTOS) if of_lists else PHOTOS)
    table = pa.table({"product_id": [f"p{at}" for at in range(len(images))], "title": ["mug"] * len(images)})
    pq.write_table(table.append_column("image", column), folder / "products.parquet", row_group_size=9)
    queries = {"query_id": ["q"], "query": ["mug"], "split": ["train"]}
    pq.write_table(pa.table(queries), folder / "queries.parquet")
    pq.write_table(pa.table({"query_id": ["q"], "product_id": ["p0"], "grade": [1]}), folder / "qrels.parquet")
    return folder


def loaded(folder: Path, stream: bool = False) -> Any:
    kind: Any = StreamedCatalogue if stream else Catalogue
    return kind.load(folder, cache_dir=folder / "cache")


GOOD, LOST, PAGE, EMPTY = (by_path(name) for name in ("there.jpg", "lost.jpg", "page.jpg", "empty.jpg"))
HELD, CUT, NONE = {"bytes": jpeg(), "path": None}, {"bytes": jpeg()[:-200], "path": "cut.jpg"}, by_path("")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("images", "of_lists", "share"),
    [
        ([LOST] * 3 + [GOOD] * 2, False, "40%"),
        ([LOST] * 2 + [GOOD] * 2, False, None),
        ([None] * 40 + [NONE, LOST, LOST, GOOD], False, "33%"),
        ([None] * 40 + [NONE, GOOD], False, None),
        ([None, NONE], False, None),
        ([PAGE, EMPTY, GOOD], False, "33%"),
        ([CUT, CUT, HELD], False, "33%"),
        ([HELD, HELD, CUT], False, None),
        ([[GOOD, LOST, LOST], [], None, [GOOD]], True, None),
        ([[GOOD, LOST, LOST, LOST], [], None, [LOST]], True, "20%"),
    ],
)
def test_photos_that_are_named_must_be_there(
    tmp_path: Path, images: list[Any], of_lists: bool, share: str | None, stream: bool
) -> None:
    catalogue = loaded(catalogue_of(tmp_path / "shop", images, of_lists), stream)
    if share is None:
        return check_photos(catalogue)
    with pytest.raises(CatalogueError, match="can be read") as raised:
        check_photos(catalogue)
    assert f"only {share} of the photos" in str(raised.value) and "--allow_missing_photos true" in str(raised.value)
    check_photos(catalogue, allow_missing=True)


def test_the_error_names_the_paths_that_were_tried(tmp_path: Path) -> None:
    folder = catalogue_of(tmp_path / "shop", [LOST, PAGE, by_path("img/a.jpg"), by_path("img/b.jpg")])
    with pytest.raises(CatalogueError) as raised:
        check_photos(loaded(folder))
    for part in (str(folder / "lost.jpg"), str(folder / "img" / "a.jpg"), f"relative to {str(folder)!r}"):
        assert part in str(raised.value)


def test_only_the_rows_in_use_count(tmp_path: Path) -> None:
    catalogue = loaded(catalogue_of(tmp_path / "shop", [GOOD] * 20 + [LOST] * 30))
    check_photos(catalogue, np.arange(20))
    with pytest.raises(CatalogueError, match="only 0% of"):
        check_photos(catalogue, np.arange(20, 50))


def test_a_large_catalogue_is_sampled_over_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []
    decoded: list[Any] = []
    decode, exists = photos.decode_photo, os.path.isfile

    def counted(path: Any) -> bool:
        looked_up.append(str(path))
        return exists(path)

    monkeypatch.setattr(photo_check, "_MOST_PATHS", 100)
    monkeypatch.setattr(photos, "decode_photo", lambda photo, **how: decoded.append(photo) or decode(photo, **how))
    # Sorted, as shops often are: the first half has its photos.
    catalogue = loaded(catalogue_of(tmp_path / "shop", [GOOD] * 2_000 + [LOST] * 3_000))
    monkeypatch.setattr("mmfusion.data.photo_check.os.path.isfile", counted)
    with pytest.raises(CatalogueError, match="only 40% of"):
        check_photos(catalogue)
    assert len(decoded) <= 64 and sum(path.endswith(".jpg") for path in looked_up) <= 100 + len(decoded)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy catalogue with photos as paths, none of which is there, and a model trained on its texts."""
    folder = tmp_path_factory.mktemp("photos")
    write_toy_catalogue(folder / "toy", num_products=120)
    table = pq.read_table(folder / "toy" / "products.parquet")
    lost = pa.array([by_path(f"photos/{at}.jpg") for at in range(len(table))], PHOTOS)
    pq.write_table(
        table.set_column(table.column_names.index("image"), "image", lost), folder / "toy" / "products.parquet"
    )
    return folder


def test_commands_stop_where_photos_are_missing_unless_told_to_go_on(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = str(shop / "toy")
    given = {"output": str(tmp_path / "stage1"), "catalogue": toy, "steps": 2, "batch_size": 8, "validate_every": 2}
    with pytest.raises(CatalogueError, match=r"only 0% of the photos.*no file at .*photos/\d+\.jpg"):
        command("stage1")(**given)
    command("stage1")(**given, allow_missing_photos=True)
    printed = capsys.readouterr().out
    # There is no photo to measure.
    assert "val/text/" in printed and "val/image" not in printed
    base = {"base": str(tmp_path / "stage1")}
    for name, more in (("stage2", {"steps": 1, "batch_size": 8}), ("evaluate", {}), ("embed", {}), ("mine", {})):
        with pytest.raises(CatalogueError, match="--allow_missing_photos true"):
            command(name)(**base, **more, output=str(tmp_path / name))
    # What takes no photos needs none.
    command("evaluate")(**base, perturb="photos_dropped", output=str(tmp_path / "evaluate"))
    command("evaluate")(**base, allow_missing_photos=True, output=str(tmp_path / "evaluate"))
    command("embed")(**base, allow_missing_photos=True, output=str(tmp_path / "embed"))


def test_photos_that_are_there_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("stage1")(output=str(tmp_path / "stage1"), steps=1, batch_size=8, num_products=60, validate_every=1)
    assert "val/image" in capsys.readouterr().out
