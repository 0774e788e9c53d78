"""What an import says about itself: a page of Markdown, and a sheet with photos."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmfusion.importers import (
    Imported,
    ImportLog,
    Item,
    Judgement,
    Query,
    ReadSettings,
    Source,
    importer_names,
    register_importer,
)
from mmfusion.importers.importing import import_catalogue
from mmfusion.importers.report import PRODUCTS
from mmfusion.importers.settings import ImportSettings


class JsonImporter:
    """Items as they are in lines of JSON."""

    summary = "items of a test"

    def recognises(self, source: Source) -> bool:
        return source.files[0].suffix == ".items"

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        lines = [json.loads(line) for line in source.files[0].path.read_text("utf-8").splitlines()]

        def items() -> Iterator[Item]:
            log.warn("The warning of <b>a reader</b> | with a bar")
            for number, line in enumerate(lines, 1):
                if "title" in line:
                    yield Item(**line)
                elif "draft" in line:
                    log.leave_out("Status draft")
                elif "query" not in line:
                    log.reject(source.files[0].name, number, "no title: nothing to read")

        judged = [line for line in lines if "query" in line]
        queries = [Query(line["query"], line["query"], line["split"]) for line in judged]
        judgements = [Judgement(line["query"], line["product"], line["grade"]) for line in judged]
        return Imported(items(), {"title": "Name"}, queries, judgements, "letters as 3, 2, 1, 0", template="{title}")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    importer_names()  # the formats, which register themselves once
    monkeypatch.setattr("mmfusion.importers.registry._IMPORTERS", {})
    register_importer("items")(JsonImporter)


def shop(folder: Path, *lines: dict[str, object]) -> str:
    folder.mkdir(exist_ok=True)
    for number in range(3):
        file = BytesIO()
        Image.new("RGB", (400, 300), (90, 60 + number, 40)).save(file, "JPEG")
        (folder / f"{number}.jpg").write_bytes(file.getvalue())
    (folder / "shop.items").write_text("\n".join(map(json.dumps, lines)))
    return str(folder / "shop.items")


LINES = (
    {"item_id": "0", "title": "Mug", "metadata": {"price": 4.5}},
    {"item_id": "1", "title": "<script>alert(1)</script> & \x07", "description": "قميص أزرق", "photos": ["1.jpg"]},
    {"item_id": "2", "title": "", "photos": ["2.jpg", "0.jpg", "nowhere.jpg"]},
    {"item_id": "3", "title": "Jug", "photos": ["gone.jpg"]},
    {"draft": 1},
    {"nothing": 1},
    {"query": "mug", "split": "train", "product": "0", "grade": 3},
    {"query": "jug", "split": "test", "product": "3", "grade": 1},
)


def test_the_page_says_what_was_found_and_left_out(tmp_path: Path) -> None:
    source = shop(tmp_path / "shop", *LINES)
    folder = tmp_path / "out"
    import_catalogue([source], folder, ImportSettings(seed=7, columns={"title": "Name"}))
    text = (folder / "import.md").read_text("utf-8")
    rows = {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in text.splitlines() if line[:1] == "|"}
    assert {
        ("rows read", "4"),
        ("products", "4"),
        ("photos named", "6"),
        ("photos found", "4"),
        ("of these, by the id of the product", "1"),
        ("photos missing", "2"),
        ("title", "Name"),
        ("train", "1", "1", "1", "0"),
        ("test", "1", "1", "0", "1"),
        ("split", "queries", "judgements", "grade 3", "grade 1"),
        ("Status draft", "1"),
        ("no title", "1"),
        ("3", "gone.jpg", "no such file"),
    } <= rows
    assert f"{source}, line 6: no title: nothing to read" in text
    assert "Grades: letters as 3, 2, 1, 0." in text
    assert "- The warning of &lt;b>a reader&lt;/b> \\| with a bar" in text
    assert "Since the last import" not in text
    command = re.search("`(mmfusion import .*)`", text)
    assert command is not None
    words = shlex.split(command[1])
    assert words[2:5] == [source, "--output", str(folder)] and words[-2:] == ["--seed", "7"]
    assert json.loads(words[words.index("--columns") + 1]) == {"title": "Name"}


def test_the_sheet_shows_photos_and_texts_escaped_and_fetches_nothing(tmp_path: Path) -> None:
    import_catalogue([shop(tmp_path / "shop", *LINES)], tmp_path / "out")
    page = (tmp_path / "out" / "import.html").read_text("utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == 3 and page.count('class="photo missing"') == 1
    assert "gone.jpg: no such file" in page and 'title="further photos">+1<' in page
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "\x07" not in page
    assert '<p class="description" dir="auto">قميص أزرق</p>' in page and "(no title)" in page
    assert "default-src 'none'" in page and not re.search(r"(src|href)=\"(?!data:)", page)
    assert "The warning of &lt;b&gt;a reader" in page


def test_products_of_the_sheet_are_spread_over_the_catalogue_and_the_same_again(tmp_path: Path) -> None:
    lines = [{"item_id": str(number), "title": f"Product {number}"} for number in range(1000)]
    source = shop(tmp_path / "shop", *lines)
    pages = []
    for _ in range(2):
        import_catalogue([source], tmp_path / "out")
        page = (tmp_path / "out" / "import.html").read_text("utf-8")
        pages.append([int(number) for number in re.findall(r">Product (\d+)<", page)])
    assert pages[0] == pages[1] and len(pages[0]) == PRODUCTS
    assert pages[0][0] == 0 and pages[0][-1] == 999
    assert all(40 < after - before < 50 for before, after in zip(pages[0], pages[0][1:], strict=False))


def test_tomorrow_says_what_is_new_changed_and_gone(tmp_path: Path) -> None:
    import_catalogue([shop(tmp_path / "shop", *LINES)], tmp_path / "out")
    other = [{**LINES[0], "title": "Cup"}, *LINES[1:3], {"item_id": "<9>", "title": "New"}, *LINES[4:]]
    source = shop(tmp_path / "shop", *other)
    for dry_run in (True, False):
        changes = import_catalogue([source], tmp_path / "out", dry_run=dry_run).changes
        assert changes is not None
        # The photos were written anew.
        assert changes.examples == {"new": ["<9>"], "changed": ["0", "1", "2"], "gone": ["3"]}
        text = (tmp_path / "out" / "import.md").read_text("utf-8")
        assert "| new | 1 | &lt;9> |" in text and "| gone | 1 | 3 |" in text
    assert import_catalogue([source], tmp_path / "out").changes.same == 4  # type: ignore[union-attr]


def test_a_photo_that_was_replaced_changes_the_table(tmp_path: Path) -> None:
    source, table = shop(tmp_path / "shop", *LINES), tmp_path / "out" / "products.parquet"
    import_catalogue([source], tmp_path / "out")
    before = table.read_bytes()
    import_catalogue([source], tmp_path / "out")
    assert table.read_bytes() == before, "nothing has changed, so that what was made of it stays valid"
    os.utime(tmp_path / "shop" / "1.jpg", ns=(1, 1))
    import_catalogue([source], tmp_path / "out")
    assert table.read_bytes() != before and pq.read_table(table).equals(pq.read_table(BytesIO(before)))


def test_a_dry_run_leaves_the_report_alone(tmp_path: Path) -> None:
    source = shop(tmp_path / "shop", *LINES)
    import_catalogue([source], tmp_path / "out", dry_run=True)
    names = {path.name for path in (tmp_path / "out").iterdir()} - {".import.lock"}
    assert names == {"import.md", "import.html", "rejected.csv", "failed_photos.csv"}
    page = (tmp_path / "out" / "import.html").read_text("utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == 3


def test_a_dry_run_downloads_nothing(tmp_path: Path) -> None:
    url = "https://shop.example/photo.jpg"
    source = shop(tmp_path / "shop", {"item_id": "a", "title": "Mug", "photos": [url]}, LINES[2])
    import_catalogue([source], tmp_path / "out", ImportSettings(photos="download"), dry_run=True)
    assert "| of these, to be downloaded | 1 |" in (tmp_path / "out" / "import.md").read_text("utf-8")
    assert "not downloaded in a dry run" in (tmp_path / "out" / "import.html").read_text("utf-8")


def test_embedded_photos_are_in_the_table(tmp_path: Path) -> None:
    source = shop(tmp_path / "shop", *LINES)
    import_catalogue([source], tmp_path / "out", ImportSettings(embed_photos=True))
    images = pq.read_table(tmp_path / "out" / "products.parquet")["image"].to_pylist()
    assert [len(image or []) for image in images] == [1, 1, 2, 0]
    assert images[1][0]["bytes"] == (tmp_path / "shop" / "1.jpg").read_bytes()
    assert not (tmp_path / "out" / "photos").exists()
    assert html.unescape((tmp_path / "out" / "import.html").read_text()).count("data:image/jpeg") == 3
