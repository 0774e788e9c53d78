"""Vectors for other engines: files of OpenSearch, and a table of PostgreSQL that answers as our index does."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import as_if_trained, command
from processes import started

from mmfusion.commands.index import metadata_of
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.embedding import EmbeddedCatalogue
from mmfusion.embedding.documents import ExportError
from mmfusion.embedding.opensearch import write_opensearch
from mmfusion.embedding.pgvector import load_pgvector
from mmfusion.training import Hardware, starting_base

pytest_plugins = ["postgres_server"]

PRODUCTS, SHARD = 25, 10
KINDS: dict[str, Any] = {
    "price": [math.nan, *map(float, range(1, PRODUCTS))],
    "stock": [None, *range(1, PRODUCTS)],
    "on_sale": [row % 2 == 0 for row in range(PRODUCTS)],
    "added": [datetime.date(2026, 1, 1 + row) for row in range(PRODUCTS)],
    "seen": [datetime.datetime(2026, 1, 1, 12, row) for row in range(PRODUCTS)],
    "weight": [decimal.Decimal(f"{row}.50") for row in range(PRODUCTS)],
    "sizes": [["S", "M"], [], None, *[["L"]] * (PRODUCTS - 3)],
    "maker": [{"name": 'Zoë "Z"', "year": 1}] * PRODUCTS,
    'odd "name", é': ["a\tb\\n\nc"] * PRODUCTS,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_toy_catalogue(folder / "toy", num_products=40)
    table = pq.read_table(folder / "toy" / "products.parquet").slice(0, PRODUCTS)
    table = table.select([name for name in table.column_names if name not in KINDS])
    for name, values in KINDS.items():
        table = table.append_column(name, pa.array(values))
    ids = table["product_id"].to_pylist()
    ids[:2] = ["a,b {}", "🧥 parka"]
    pq.write_table(table.set_column(0, "product_id", pa.array(ids)), folder / "toy" / "products.parquet")
    base = as_if_trained(starting_base(None, folder))
    for kind in ("float32", "float16", "int8"):
        command("embed")(
            catalogue=str(folder / "toy"),
            base=base,
            output=str(folder / kind),
            vector_type=kind,
            shard_size=SHARD,
            hardware=Hardware(accelerator="cpu"),
        )
    return folder


def opened(place: Path, kind: str = "float32") -> tuple[EmbeddedCatalogue, pa.Table]:
    embedded = EmbeddedCatalogue.open(place / kind)
    products = Catalogue.load_products(place / "toy", cache_dir=place / "cache", photos=False)
    return embedded, metadata_of(products, embedded)


def vectors_of(embedded: EmbeddedCatalogue) -> dict[str, np.ndarray]:
    return dict(zip(embedded.column("product_id").to_pylist(), np.concatenate([*embedded.vectors()]), strict=True))


# ---------------------------------------------------------------- OpenSearch


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_bulk_files_hold_an_action_and_a_document_of_each_product(place: Path, tmp_path: Path, kind: str) -> None:
    embedded, metadata = opened(place, kind)
    files = write_opensearch(tmp_path / "bulk", embedded, metadata, "shop", 20_000)
    assert len(files) > 1 and {path.name for path in (tmp_path / "bulk").iterdir()} >= {"index.json", files[0].name}
    lines = []
    for path in files:
        content = path.read_bytes()
        # A request ends with a line end, and no action is without its document.
        assert content.endswith(b"\n") and content.count(b"\n") % 2 == 0
        lines += content.decode().splitlines()
    actions, found = [json.loads(one) for one in lines[::2]], [json.loads(one) for one in lines[1::2]]
    expected = vectors_of(embedded)
    assert [one["index"]["_id"] for one in actions] == [one["product_id"] for one in found] == [*expected]
    assert {one["index"]["_index"] for one in actions} == {"shop"}
    for document in found:
        assert np.allclose(document["embedding"], expected[document["product_id"]], atol=1e-8)
    first, second = found[:2]
    assert "price" not in first and "stock" not in first and second["price"] == 1.0
    assert (second["added"], second["seen"], second["weight"]) == ("2026-01-02", "2026-01-01T12:01:00", 1.5)
    assert first["sizes"] == ["S", "M"] and first["maker"] == KINDS["maker"][0]
    assert first['odd "name", é'] == "a\tb\\n\nc" and "image" not in first
    assert first["text_weight"] + first["image_weight"] == pytest.approx(1, abs=1e-6)


def test_the_mapping_fits_the_documents(place: Path, tmp_path: Path) -> None:
    embedded, metadata = opened(place)
    write_opensearch(tmp_path / "bulk", embedded, metadata, "shop", 1 << 20)
    body = json.loads((tmp_path / "bulk" / "index.json").read_text())
    fields = body["mappings"]["properties"]
    assert body["settings"] == {"index": {"knn": True}}
    dimension = embedded.manifest.provenance.dimension
    method = {"name": "hnsw", "engine": "faiss", "space_type": "innerproduct"}
    assert fields["embedding"] == {"type": "knn_vector", "dimension": dimension, "method": method}
    expected = {"price": "double", "stock": "long", "on_sale": "boolean", "added": "date", "seen": "date"}
    expected |= {"weight": "double", "sizes": "text", "title": "text", "product_id": "keyword"}
    assert {name: fields[name]["type"] for name in expected} == expected
    assert fields["maker"]["properties"]["year"] == {"type": "long"}
    assert {*metadata.column_names} < {*fields}


def test_another_export_replaces_the_files(place: Path, tmp_path: Path) -> None:
    embedded, metadata = opened(place)
    first = write_opensearch(tmp_path / "bulk", embedded, metadata, "shop", 2_000)
    second = write_opensearch(tmp_path / "bulk", embedded, metadata, "shop", 1 << 20)
    assert len(first) > len(second) == 1 == len([*(tmp_path / "bulk").glob("bulk-*")])


def test_what_opensearch_has_no_place_for_is_named(place: Path, tmp_path: Path) -> None:
    embedded, metadata = opened(place)
    with pytest.raises(ExportError, match=r"column 'embedding', which names the export's own"):
        write_opensearch(tmp_path / "b", embedded, metadata.append_column("embedding", metadata["title"]), "s", 9)


def test_the_command_writes_files_and_says_what_to_do_with_them(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"embeddings": str(place / "float32"), "output": str(tmp_path / "out")}
    for _ in range(2):
        command("export-vectors")(**given)
        last = capsys.readouterr().out.rstrip().splitlines()[-1]
        assert f"{PRODUCTS} products in 1 files" in last and "next: send index.json" in last
    with pytest.raises(ValueError, match="PGPASSWORD"):
        command("export-vectors")(**given, to="pgvector", connection="postgresql://me:secret@host/shop")


# ---------------------------------------------------------------- PostgreSQL with pgvector


def rows(address: str, query: str, *values: Any) -> list[Any]:
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(address) as connection:
        found: list[Any] = connection.execute(query, values).fetchall()
        return found


@pytest.mark.parametrize(("kind", "stored"), [("float32", "vector"), ("float16", "halfvec"), ("int8", "vector")])
def test_a_table_answers_as_exact_search_does(place: Path, postgres: str, kind: str, stored: str) -> None:
    embedded, metadata = opened(place, kind)
    load_pgvector(postgres, embedded, metadata, f"of_{kind}")
    expected = vectors_of(embedded)
    query = expected["🧥 parka"]
    text = "[" + ",".join(map(repr, query.tolist())) + "]"
    ranked = rows(
        postgres,
        f"SELECT product_id, -(embedding <#> %s::{stored}) FROM of_{kind} ORDER BY embedding <#> %s::{stored} LIMIT 25",
        *(text, text),
    )
    scores = dict(ranked)
    assert len(ranked) == PRODUCTS and ranked[0][0] == "🧥 parka"
    for name, vector in expected.items():
        assert scores[name] == pytest.approx(float(vector @ query), abs=2e-3 if kind == "float16" else 1e-5)
    indexed = rows(postgres, "SELECT indexdef FROM pg_indexes WHERE tablename = %s", f"of_{kind}")
    assert any("hnsw" in one and f"{stored}_ip_ops" in one for (one,) in indexed)


def test_columns_keep_their_types_and_values(place: Path, postgres: str) -> None:
    load_pgvector(postgres, *opened(place), "shop")
    columns = '"price", stock, on_sale, added, seen, weight, sizes, maker, "odd ""name"", é"'
    first, second = rows(postgres, f"SELECT {columns} FROM shop WHERE product_id IN (%s, %s) ORDER BY 1 NULLS FIRST",
                         "a,b {}", "🧥 parka")  # fmt: skip
    assert first[:2] == (None, None) and second[:2] == (1.0, 1) and first[2] is True
    assert first[3:6] == tuple(KINDS[name][0] for name in ("added", "seen", "weight"))
    assert first[6:] == (["S", "M"], KINDS["maker"][0], "a\tb\\n\nc") and second[6] == []
    (count,) = rows(postgres, "SELECT count(*) FROM shop WHERE price < 10 AND 'L' = ANY(sizes)")[0]
    assert count == 7


def test_a_load_that_stopped_goes_on_and_a_new_one_replaces_the_table(place: Path, postgres: str) -> None:
    embedded, metadata = opened(place)
    load_pgvector(postgres, embedded, metadata.select(["title"]), "goes_on")
    before = rows(postgres, "SELECT count(*) FROM goes_on")
    seen: list[int] = []

    def stop(count: int) -> None:
        seen.append(count)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_pgvector(postgres, embedded, metadata, "goes_on", progress=stop)
    # Who searches meanwhile has the old table, without the new columns.
    assert rows(postgres, "SELECT count(*) FROM goes_on") == before
    copied: list[str] = []
    load_pgvector(postgres, embedded, metadata, "goes_on", progress=lambda count: copied.append(str(count)))
    assert copied == ["10", "10", "5"]
    assert rows(postgres, "SELECT count(DISTINCT product_id) FROM goes_on WHERE price > 0")[0] == (PRODUCTS - 1,)
    assert rows(postgres, "SELECT to_regclass('goes_on_loading')") == [(None,)]
    load_pgvector(postgres, embedded, metadata, "goes_on")
    assert rows(postgres, "SELECT count(*) FROM goes_on") == before


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from embedding.test_export_vectors import load_pgvector, opened
done = []
def kill(count):
    done.append(count)
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
load_pgvector(sys.argv[1], *opened(Path(sys.argv[2])), "killed", progress=kill)
"""


def test_after_a_kill_only_what_is_missing_is_copied(
    place: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = str(Path(__file__).parents[1])
    with started([sys.executable, "-c", KILLED, postgres, place, tests]) as process:
        assert process.wait(timeout=120) == -signal.SIGKILL
    assert rows(postgres, "SELECT count(*) FROM killed_loading") == [(2 * SHARD,)]
    load_pgvector(postgres, *opened(place), "killed")
    assert rows(postgres, "SELECT count(*), count(DISTINCT product_id) FROM killed") == [(PRODUCTS, PRODUCTS)]


def test_the_command_follows_a_catalogue_and_leaves_other_tables_alone(
    place: Path, postgres: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    psycopg = pytest.importorskip("psycopg")
    given = {"to": "pgvector", "connection": postgres, "name": "followed", "output": str(tmp_path / "out")}
    command("export-vectors")(embeddings=str(place / "float32"), **given)
    assert "next: search it" in capsys.readouterr().out
    shutil.copytree(place / "float32", tmp_path / "fewer")
    table = pq.read_table(place / "toy" / "products.parquet")
    (tmp_path / "toy").mkdir()
    pq.write_table(table.slice(0, 20), tmp_path / "toy" / "products.parquet")
    again = {"base": str(place / "toy_base"), "shard_size": SHARD, "hardware": Hardware(accelerator="cpu")}
    command("embed")(catalogue=str(tmp_path / "toy"), output=str(tmp_path / "fewer"), **again)
    command("export-vectors")(embeddings=str(tmp_path / "fewer"), **given)
    assert rows(postgres, "SELECT count(*) FROM followed") == [(20,)]
    with psycopg.connect(postgres) as connection:
        connection.execute("CREATE TABLE orders (id int)")
    other = {**given, "name": "orders", "output": str(tmp_path / "orders")}
    with pytest.raises(ExportError, match=r"a table 'orders' that mmfusion did not write.*--overwrite true"):
        command("export-vectors")(embeddings=str(place / "float32"), **other)
    assert rows(postgres, "SELECT count(*) FROM orders") == [(0,)]
    command("export-vectors")(embeddings=str(place / "float32"), **other, overwrite=True)
    assert rows(postgres, "SELECT count(*) FROM orders") == [(PRODUCTS,)]


def test_what_postgresql_has_no_place_for_is_named(place: Path, postgres: str) -> None:
    embedded, metadata = opened(place)
    nul = metadata.set_column(0, metadata.column_names[0], pa.array(["a\0b"] * PRODUCTS))
    for changed, name, message in (
        (nul, "refused", r"product 'a,b \{\}' holds a NUL"),
        (metadata.append_column("x" * 64, metadata["title"]), "refused", "longer than the 63 bytes"),
        (metadata, "y" * 60, "longer than the 63 bytes"),
    ):
        with pytest.raises(ExportError, match=message):
            load_pgvector(postgres, embedded, changed, name)
    with pytest.raises(ExportError, match=r"PostgreSQL says.*PGPASSWORD") as raised:
        load_pgvector("postgresql://shop@/postgres?host=/nowhere", embedded, metadata, "refused")
    assert "\n" not in str(raised.value)
