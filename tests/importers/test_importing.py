"""From what a reader finds to the tables of a catalogue."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from small_disk import fill

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.catalogue_schema import CatalogueError
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
from mmfusion.importers.settings import ImportSettings

NAME = "lines"


class LinesImporter:
    """One product per line: id, title and price, separated by |; a line ? query | product | grade is a judgement."""

    summary = "lines of a test"

    def recognises(self, source: Source) -> bool:
        return source.files[0].suffix == ".lines"

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        text = source.files[0].path.read_text("utf-8").splitlines()
        judged = [tuple(part.strip() for part in line[1:].split("|")) for line in text if line.startswith("?")]

        def items() -> Iterator[Item]:
            for number, line in enumerate(text, 1):
                parts = [part.strip() for part in line.split("|")]
                if line.startswith("?"):
                    continue
                if len(parts) != 3:
                    log.reject(source.files[0].name, number, f"{len(parts)} fields: 3 are needed")
                    continue
                price = float(parts[2]) if parts[2] else None
                yield Item(parts[0], parts[1], metadata={"price": price}, place=f"line {number}")

        return Imported(
            items(),
            {"title": "field 2"},
            queries=[Query(query, query) for query in dict.fromkeys(one[0] for one in judged)],
            judgements=[Judgement(query, product, int(grade)) for query, product, grade in judged],
            judgement_rule="as written",
        )


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    importer_names()  # the formats, which register themselves once
    monkeypatch.setattr("mmfusion.importers.registry._IMPORTERS", {})
    register_importer(NAME)(LinesImporter)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.lines"
    lines = ["01 | Red dress | 30", "02 | Mug | 4.5", "bad", "03 | Blue dress |"]
    lines += [
        f"? dress {number} | {product} | {grade}" for number in range(10) for product, grade in (("01", 3), ("03", 1))
    ]
    path.write_text("\n".join([*lines, "? mug | 99 | 3", "? cup | 02 | 0"]))
    return path


def test_a_catalogue_is_written_that_loads(file: Path, tmp_path: Path) -> None:
    result = import_catalogue([str(file)], tmp_path / "out")
    catalogue = Catalogue.load(tmp_path / "out")
    assert list(catalogue.product_ids) == ["01", "02", "03"]
    assert catalogue.products["price"][:] == [30.0, 4.5, None]
    assert sorted(set(catalogue.queries["split"])) == ["test", "train", "val"]
    assert len(catalogue.queries) == 11 and len(catalogue.qrels) == 21
    assert result.log.left_out == {"judgement of an unknown product": 1, "query without a judgement": 1}
    with (tmp_path / "out/rejected.csv").open(newline="") as rejected:
        assert list(csv.reader(rejected)) == [["file", "line", "reason"], [str(file), "3", "1 fields: 3 are needed"]]


def test_the_template_and_the_rule_of_grades_are_kept(file: Path, tmp_path: Path) -> None:
    import_catalogue([str(file)], tmp_path / "out")
    assert pq.read_schema(tmp_path / "out/products.parquet").metadata[b"product_template"] == b"{title}"
    assert pq.read_schema(tmp_path / "out/qrels.parquet").metadata[b"grades"] == b"as written"


def test_a_dry_run_writes_no_table(file: Path, tmp_path: Path) -> None:
    result = import_catalogue([str(file)], tmp_path / "out", dry_run=True)
    assert result.num_products == 3
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_a_catalogue_without_queries_says_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "a.lines").write_text("01|Mug|\n", "utf-8")
    import_catalogue([str(tmp_path / "a.lines")], tmp_path / "out")
    assert len(Catalogue.load_products(tmp_path / "out").products) == 1
    with pytest.raises(CatalogueError, match="Import it with --clicks or --judgements"):
        Catalogue.load(tmp_path / "out")


def test_products_without_a_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.lines").write_text("01|Mug|\n02||\n03||\n", "utf-8")
    result = import_catalogue([str(tmp_path / "a.lines")], tmp_path / "out")
    assert result.log.warnings == ["products without a title or description: 2, the first is '02'"]


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ([["price", "<", 10]], ["02"]),
        ([["title", "in", ["Mug", "Blue dress"]]], ["02", "03"]),
        ([[["price", "<", 10]], [["product_id", "=", "01"]]], ["01", "02"]),
    ],
)
def test_conditions_keep_products(where: list[object], ids: list[str], file: Path, tmp_path: Path) -> None:
    import_catalogue([str(file)], tmp_path / "out", ImportSettings(where=where))
    assert pq.read_table(tmp_path / "out/products.parquet")["product_id"].to_pylist() == ids


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ([["colour", "=", "red"]], r"--where: there is no column 'colour'.*price, product_id, title"),
        ([["price", "near", 3]], r"--where \[\['price', 'near', 3\]\].*Write conditions as"),
        (["price < 3"], r"--where: 'price < 3' is not a condition"),
    ],
)
def test_bad_conditions_are_errors(where: list[object], message: str, file: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=message):
        import_catalogue([str(file)], tmp_path / "out", ImportSettings(where=where))


def test_no_product_left_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.lines").write_text("a\nb\n")
    with pytest.raises(CatalogueError, match=r"no product is left \(1 fields: 2\)"):
        import_catalogue([str(tmp_path / "bad.lines")], tmp_path / "out")


def test_tomorrow_queries_keep_their_splits(file: Path, tmp_path: Path) -> None:
    import_catalogue([str(file)], tmp_path / "out")
    before = pq.read_table(tmp_path / "out/queries.parquet").to_pylist()
    with file.open("a") as more:
        more.writelines(f"\n? shirt {number} | 02 | 2" for number in range(9))
    import_catalogue([str(file)], tmp_path / "out")
    after = pq.read_table(tmp_path / "out/queries.parquet").to_pylist()
    assert [row for row in after if not row["query"].startswith("shirt")] == before
    assert len(after) == 20


def test_tables_of_before_go_with_their_queries(file: Path, tmp_path: Path) -> None:
    import_catalogue([str(file)], tmp_path / "out")
    file.write_text("07 | Hat | 3")
    import_catalogue([str(file)], tmp_path / "out")
    assert [path.name for path in sorted((tmp_path / "out").glob("[a-z]*.*")) if "import" not in path.name] == [
        "products.parquet"
    ]


def test_products_are_split_with_their_queries(file: Path, tmp_path: Path) -> None:
    lines = [
        f"{n:03d} | Dress {n} | 1\n? dress {n} | {n:03d} | 3\n? dress {n} | {(n + 1) % 40:03d} | 1" for n in range(40)
    ]
    file.write_text("\n".join(lines))
    import_catalogue([str(file)], tmp_path / "out", ImportSettings(split_by="product"))
    catalogue = Catalogue.load(tmp_path / "out")
    for split in ("train", "val", "test"):
        qrels = catalogue.split_qrels(split)
        assert len(qrels) and (qrels.grade == 3).sum() == len(catalogue.query_rows(split))
    assert len(catalogue.product_rows("test")) == len(catalogue.product_rows("val")) == 4
    first = pq.read_table(tmp_path / "out/products.parquet", columns=["product_id", "split"]).to_pylist()
    file.write_text("\n".join([*lines, "new | Hat | 2\n? hat | new | 3"]))
    import_catalogue([str(file)], tmp_path / "out", ImportSettings(split_by="product"))
    again = pq.read_table(tmp_path / "out/products.parquet", columns=["product_id", "split"]).to_pylist()
    assert again[:40] == first


def test_two_imports_into_one_folder(file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out/.import.lock"),
        pytest.raises(CatalogueError, match="another import writes to this folder"),
    ):
        import_catalogue([str(file)], tmp_path / "out")


def test_a_kill_leaves_the_catalogue_of_before(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
word, sys.argv = sys.argv[1], ["mmfusion"]  # which waits for no torch
from mmfusion.importers import Imported, Item, register_importer
from mmfusion.importers.importing import import_catalogue
@register_importer("killed")
class Killed:
    summary = "killed in the middle"
    def recognises(self, source):
        return True
    def read(self, source, settings, log):
        def items():
            for number in range(30_000):
                if word == "kill" and number == 20_000:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield Item(str(number), word)
        return Imported(items(), {{}})
import_catalogue([{str(tmp_path / "file")!r}], {str(tmp_path / "out")!r})
"""
    (tmp_path / "file").write_text("x")
    run = [sys.executable, "-c", code]
    subprocess.run([*run, "before"], check=True, env=os.environ)
    assert subprocess.run([*run, "kill"]).returncode == -signal.SIGKILL
    assert set(pq.read_table(tmp_path / "out/products.parquet")["title"].to_pylist()) == {"before"}
    subprocess.run([*run, "after"], check=True)
    assert set(pq.read_table(tmp_path / "out/products.parquet")["title"].to_pylist()) == {"after"}
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == []


def test_columns_of_clicks_can_be_named(file: Path, tmp_path: Path) -> None:
    clicks = tmp_path / "clicks.csv"
    clicks.write_text("zocht naar;artikel;getoond;geklikt\njurk;01;100;40\njurk;03;100;2\nhoed;02;90;9\n")
    named = {"query": "zocht naar", "product_id": "artikel", "impressions": "getoond", "clicks": "geklikt"}
    result = import_catalogue(
        [str(file)], tmp_path / "out", ImportSettings(clicks=str(clicks), click_columns=named, grades="funnel")
    )
    assert [(query.text, query.split) for query in result.queries if query.text == "jurk"]
    assert sorted((one.product_id, one.grade) for one in result.judgements) == [("01", 1), ("02", 1), ("03", 1)]


def numbered_lines(path: Path, count: int, price: int) -> str:
    path.write_text("".join(f"{number}|Dress {number} of {number * 7919 % 9973}|{price}\n" for number in range(count)))
    return str(path)


def test_a_full_disk_leaves_the_catalogue_of_before(small_disk: Path, tmp_path: Path) -> None:
    folder = small_disk / "catalogue"
    import_catalogue([numbered_lines(tmp_path / "today.lines", 20, 5)], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    fill(small_disk)
    tomorrow = numbered_lines(tmp_path / "tomorrow.lines", 60_000, 6)
    with pytest.raises(CatalogueError, match=r"catalogue: cannot be written \(.*No space left.*Free some space"):
        import_catalogue([tomorrow], folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert not list(folder.glob(".import-*"))
    (small_disk / "filler").unlink()
    import_catalogue([tomorrow], folder)
    assert pq.read_table(folder / "products.parquet", columns=["price"])["price"].to_pylist() == [6.0] * 60_000
