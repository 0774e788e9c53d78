"""Data sets of research from their files to a catalogue, today and tomorrow."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmfusion.data.catalogue import Catalogue
from mmfusion.importers.importing import import_catalogue
from mmfusion.importers.settings import ImportResult, ImportSettings

HEADER = "query-id\tcorpus-id\tscore\n"


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


def beir(folder: Path, train: range, test: range) -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    products = [{"_id": f"{at:03}", "title": f"Lamp {at}", "text": ""} for at in {*train, *test}]
    (folder / "corpus.jsonl").write_text(lines(products))
    queries = [{"_id": f"q{at}", "text": f"lamp number {at}"} for at in {*train, *test}]
    (folder / "queries.jsonl").write_text(lines([*queries, {"_id": "q-none", "text": "not judged"}]))
    for name, some in (("train", train), ("test", test)):
        rows = "".join(f"q{at}\t{at:03}\t1\nq{at}\tgone\t1\n" for at in some)
        (folder / "qrels" / f"{name}.tsv").write_text(HEADER + rows)
    return folder


def splits(result: ImportResult) -> dict[str, str | None]:
    return {query.query_id: query.split for query in result.queries}


def test_val_is_drawn_from_train_and_stays_tomorrow(tmp_path: Path) -> None:
    output = tmp_path / "out"
    today = import_catalogue([str(beir(tmp_path / "d", range(40), range(100, 105)))], output)
    val = {name for name, split in splits(today).items() if split == "val"}
    assert len(val) == 4
    assert {name for name, split in splits(today).items() if split == "test"} == {f"q{at}" for at in range(100, 105)}
    assert today.log.left_out == {"judgement of an unknown product": 45, "query without a judgement": 1}
    # Tomorrow some queries are gone, and some are new.
    tomorrow = splits(import_catalogue([str(beir(tmp_path / "d", range(5, 60), range(100, 105)))], output))
    assert len([name for name, split in tomorrow.items() if split == "val"]) == 6
    assert all(tomorrow[name] == "val" for name in val & tomorrow.keys())
    catalogue = Catalogue.load(str(output))
    assert len(catalogue.products) == 60
    assert len(catalogue.qrels) == 60


def test_a_query_text_in_two_splits_is_named(tmp_path: Path) -> None:
    folder = beir(tmp_path / "d", range(20), range(100, 103))
    text = (folder / "queries.jsonl").read_text()
    (folder / "queries.jsonl").write_text(text.replace("lamp number 101", "LAMP  number 7"))
    log = import_catalogue([str(folder)], tmp_path / "out").log
    assert any("'lamp number 7' (train and test)" in warning for warning in log.warnings)


def test_photos_of_products_in_several_locales(tmp_path: Path) -> None:
    rows = [{"product_id": "0042", "product_title": name, "product_locale": name} for name in ("us", "es")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "products.parquet")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "0042.jpg")
    import_catalogue(
        [str(tmp_path / "products.parquet")], tmp_path / "out", ImportSettings(photos=str(tmp_path / "photos"))
    )
    products = pq.read_table(tmp_path / "out" / "products.parquet").to_pylist()
    assert {row["product_id"]: len(row["image"]) for row in products} == {"0042-us": 1, "0042-es": 1}
