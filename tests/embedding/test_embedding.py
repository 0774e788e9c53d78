"""Embedding a catalogue: what comes out, what a second run does, and what a kill leaves."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import as_if_trained
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn
from loopback_hub.server import LoopbackHub
from processes import run_to_end, started

from mmfusion.commands import run_command
from mmfusion.commands.embed import Config, main
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.photos import PhotoReader
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.embedding import EmbeddedCatalogue, Provenance, ShardError, engine_lightning
from mmfusion.embedding.job import write_batches
from mmfusion.embedding.shards import VECTOR_TYPES, pack, unpack, write_shard
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.retrieval.embedding import embed_products
from mmfusion.training import Hardware
from mmfusion.training.sources import starting_base

CHECKOUT = Path(__file__).resolve().parents[2]
SHARD = 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a catalogue of products alone, some of which lack a photo or a title, and a model."""
    folder = tmp_path_factory.mktemp("embedding")
    write_toy_catalogue(folder / "whole", num_products=64)
    table = pq.read_table(folder / "whole" / "products.parquet")
    rows = table.to_pylist()
    rows[0]["product_id"], rows[1]["product_id"], rows[2]["product_id"] = "a,b", "line\nbreak", "🧥 parka"
    rows[3]["image"], rows[4]["title"], rows[4]["description"] = None, None, None
    write_products(folder / "catalogue", rows, table.schema)
    as_if_trained(starting_base(None, folder))
    return folder


def write_products(folder: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "products.parquet")


def embed(place: Path, output: Path, *, catalogue: str = "catalogue", **options: Any) -> None:
    """The recipe, in this process."""
    sizes = {"shard_size": SHARD, "batch_size": 4, "hardware": Hardware(accelerator="cpu"), **options}
    source = catalogue if "://" in catalogue else str(place / catalogue)
    main(Config(catalogue=source, base=str(place / "toy_base"), output=str(output), **sizes))


def embed_apart(place: Path, output: Path, *flags: str) -> None:
    """The recipe, in a process of its own."""
    done = run_to_end(command(place, output, *flags), **ENV, children=1)
    assert done.returncode == 0, done.stdout + done.stderr


def command(place: Path, output: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, str(CHECKOUT / "recipes" / "embed.py"), "--catalogue", str(place / "catalogue")),
        *("--base", str(place / "toy_base"), "--output", str(output), "--shard_size", str(SHARD)),
        *("--batch_size", "4", "--hardware.accelerator", "cpu", *flags),
    ]


ENV: dict[str, Any] = {
    "env": {**os.environ, "PYTHONPATH": str(CHECKOUT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    "timeout": 600,
}


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of the catalogue by a run that nothing interrupted."""
    output = tmp_path_factory.mktemp("finished") / "embeddings"
    embed(place, output)
    return output


def vectors_by_id(folder: Path) -> dict[str, bytes]:
    """Bytes of each product's vector and weights; an id that appears twice is an error."""
    embedded = EmbeddedCatalogue.open(folder)
    embedded.check()
    vectors, weights = np.concatenate(list(embedded.vectors())), embedded.modality_weights()
    ids = embedded.column("product_id").to_pylist()
    assert len(ids) == len(set(ids)) == len(vectors) == len(embedded)
    return {name: v.tobytes() + w.tobytes() for name, v, w in zip(ids, vectors, weights, strict=True)}


def test_shards_hold_every_product_once_with_the_vector_of_the_model(place: Path, finished: Path) -> None:
    catalogue = Catalogue.load_products(place / "catalogue", cache_dir=place / "cache")
    model = MMFusionModel.from_pretrained(place / "toy_base").eval()
    processor = MMFusionProcessor.from_pretrained(place / "toy_base")
    expected = embed_products(model, processor, catalogue, catalogue.product_rows(None))
    embedded = EmbeddedCatalogue.open(finished)
    assert embedded.column("product_id").to_pylist() == catalogue.product_ids.tolist()
    np.testing.assert_allclose(np.concatenate(list(embedded.vectors())), expected.embeds, atol=1e-5)
    np.testing.assert_allclose(embedded.modality_weights(), expected.modality_weights, atol=1e-5)
    assert [entry.rows for entry in embedded.manifest.shards] == [SHARD] * 6 + [4]


def test_equal_products_are_encoded_once_and_get_equal_bits(
    place: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(place / "catalogue" / "products.parquet")
    # One without a photo and one without a text are among them, and equal ones are not beside each other.
    rows = [{**row, "product_id": f"{row['product_id']}/{copy}"} for copy in range(3) for row in table.to_pylist()[:8]]
    write_products(tmp_path / "catalogue", rows, table.schema)
    encoded = []
    embed_batch = engine_lightning.embed_batch

    def count(*arguments: Any) -> Any:
        encoded.append(len(arguments[1]))
        return embed_batch(*arguments)

    monkeypatch.setattr(engine_lightning, "embed_batch", count)
    embed(place, tmp_path / "out", catalogue=str(tmp_path / "catalogue"), shard_size=20)
    # 20 products and then 4: of each shard, those that differ.
    assert sum(encoded) == 8 + 4
    embedded, expected = EmbeddedCatalogue.open(tmp_path / "out"), EmbeddedCatalogue.open(finished)
    assert embedded.column("product_id").to_pylist() == [row["product_id"] for row in rows]
    vectors, weights = np.concatenate(list(embedded.vectors())), embedded.modality_weights()
    for row in range(4):
        copies = vectors[[row, row + 8, row + 16]]
        assert copies.tobytes() == copies[:1].repeat(3, axis=0).tobytes()
    wanted = np.concatenate(list(expected.vectors()))[:8]
    assert len(np.unique(wanted.round(4), axis=0)) == 8
    np.testing.assert_allclose(vectors, np.tile(wanted, (3, 1)), atol=1e-6)
    np.testing.assert_allclose(weights, np.tile(expected.modality_weights()[:8], (3, 1)), atol=1e-6)


def test_a_second_run_embeds_nothing(place: Path, finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in finished.glob("shard-*")}
    with caplog.at_level("INFO", logger="mmfusion"):
        embed(place, finished)
    assert "64 products: 0 to embed, 64 embedded already" in caplog.text
    assert {path.name: path.stat().st_mtime_ns for path in finished.glob("shard-*")} == before


def test_a_changed_catalogue_is_followed(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = pq.read_table(place / "catalogue" / "products.parquet")
    output = tmp_path / "embeddings"
    embed(place, output)
    before = vectors_by_id(output)
    rows = table.to_pylist()
    # Another title, another photo, a change that the model does not see, one product gone and one new.
    rows[10]["title"] = "an entirely different thing"
    rows[20]["image"] = rows[21]["image"]
    rows[30]["split"] = "test"
    gone, new = rows.pop(40)["product_id"], {**rows[41], "product_id": "new"}
    write_products(tmp_path / "changed", [*rows, new], table.schema)
    with caplog.at_level("INFO", logger="mmfusion"):
        embed(place, output, catalogue=str(tmp_path / "changed"))
    assert "64 products: 3 to embed, 61 embedded already; 3 vectors" in caplog.text
    after = vectors_by_id(output)
    assert set(after) == (set(before) - {gone}) | {"new"}
    changed = {name for name in before if name in after and before[name] != after[name]}
    assert changed == {rows[10]["product_id"], rows[20]["product_id"]}
    # The new product is a copy of another one, so its vector is known but for rounding.
    as_floats = [np.frombuffer(after[name], dtype=np.float32) for name in ("new", rows[41]["product_id"])]
    np.testing.assert_allclose(*as_floats, atol=1e-5)
    listed = {entry.file for entry in EmbeddedCatalogue.open(output).manifest.shards}
    assert {path.name for path in output.glob("shard-*")} == listed
    assert len(list((output / "cache" / "catalogue").iterdir())) == 1, "the table of the earlier catalogue is gone"


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_neither_lose_nor_duplicate_a_product(place: Path, finished: Path, tmp_path: Path, kills: int) -> None:
    output, draw = tmp_path / "embeddings", random.Random(kills)
    killed = 0
    for _ in range(kills):
        embedding = command(place, output, "--hardware.num_workers", "1")
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with started(embedding, env=ENV["env"], **silent) as process:
            before = len(list(output.glob("shard-*")))
            deadline = time.monotonic() + 300
            while process.poll() is None and len(list(output.glob("shard-*"))) == before:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.05))
            killed += process.poll() is None
            # What is still running at the end of the block is killed, workers and all.
    assert killed, "every run was over before it could be killed"
    embed(place, output)
    assert vectors_by_id(output) == vectors_by_id(finished)


def test_sigterm_stops_at_once_and_the_same_command_goes_on(
    place: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "embeddings"

    def write_and_signal(*shard: Any) -> None:
        write_batches(*shard)
        if len(list(output.glob("shard-*"))) == 2:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        patched.setattr(engine_lightning, "write_batches", write_and_signal)
        embed(place, output)
    assert stopped.value.code == 75 and len(list(output.glob("shard-*"))) == 2
    assert signal.getsignal(signal.SIGTERM) == before
    embed(place, output)
    assert vectors_by_id(output) == vectors_by_id(finished)


def test_two_ranks_give_the_same_bits(place: Path, finished: Path, tmp_path: Path) -> None:
    embed_apart(place, tmp_path / "embeddings", "--hardware.devices", "2")
    assert vectors_by_id(tmp_path / "embeddings") == vectors_by_id(finished)


def test_lightning_makes_no_remarks(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remarks = logging.getLogger("lightning.pytorch")

    @contextmanager
    def first_import() -> Iterator[None]:
        remarks.setLevel(logging.INFO)
        yield

    monkeypatch.setattr("mmfusion.training.trainer.expected_warnings_ignored", first_import)
    embed(place, tmp_path / "embeddings")
    assert not remarks.isEnabledFor(logging.INFO)


def damage(folder: Path) -> None:
    path = sorted(folder.glob("shard-*"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_damage_is_found_and_mended(place: Path, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "embeddings"
    shutil.copytree(finished, output)
    damage(output)
    for look in (lambda: embed(place, output), lambda: EmbeddedCatalogue.open(output).check()):
        with pytest.raises(ShardError, match=r"the manifest says .*; remove the file and run mmfusion embed again"):
            look()
    sorted(output.glob("shard-*"))[0].unlink()
    embed(place, output)
    assert vectors_by_id(output) == vectors_by_id(finished)


def test_vectors_of_two_models_are_never_in_one_folder(place: Path, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "embeddings"
    shutil.copytree(finished, output)
    provenance = json.loads((output / "manifest.json").read_text())["made_of"]
    (output / "manifest.json").unlink()
    # As if the model behind the same path had been trained again since.
    other = json.dumps({**provenance, "model_fingerprint": "other"})
    for path in output.glob("shard-*"):
        pq.write_table(pq.read_table(path).replace_schema_metadata({"mmfusion.made_of": other}), path)
    with pytest.raises(ShardError, match=r"model_fingerprint was 'other', now .*another --output"):
        embed(place, output)


def test_a_vector_that_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    provenance = Provenance("model", "Processor", "32-true", 2, "float16")
    vectors = np.array([[1.0, 0.0], [np.nan, 0.0]], dtype=np.float32)
    contents, weights = np.zeros((2, 2), dtype=np.uint64), np.zeros((2, 2), dtype=np.float32)
    with pytest.raises(ShardError, match="product 'b'"):
        write_shard(tmp_path / "shard-0.parquet", provenance, ["a", "b"], contents, vectors, weights)
    assert not list(tmp_path.iterdir())


UNIT = drawn.arrays(np.float32, (3, 16), elements=st.floats(-1, 1, width=32))


@given(UNIT)
def test_packed_vectors_are_near_what_they_were(vectors: np.ndarray) -> None:
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    within: dict[str, Callable[[], Any]] = {
        "float32": lambda: 0,
        "float16": lambda: largest * 2**-11 + 2**-24,
        "int8": lambda: largest / 254 * 1.001 + 1e-37,
    }
    for kind, bound in within.items():
        assert (np.abs(unpack(pack(vectors, kind), kind) - vectors) <= bound()).all(), kind  # type: ignore[arg-type]
    signs = unpack(pack(vectors, "binary"), "binary")
    assert (np.sign(signs) == np.where(vectors > 0, 1, -1)).all()
    np.testing.assert_allclose(np.linalg.norm(signs, axis=1), 1, rtol=1e-6)


def test_bytes_per_vector() -> None:
    vectors = np.ones((1, 64), dtype=np.float32)
    found = {kind: pack(vectors, kind).values.nbytes for kind in VECTOR_TYPES}
    assert found == {"float32": 256, "float16": 128, "int8": 64, "binary": 8}


def test_binary_vectors_fill_bytes() -> None:
    with pytest.raises(ValueError, match="dimension 12"):
        pack(np.ones((1, 12), dtype=np.float32), "binary")


@pytest.mark.parametrize(
    ("hardware", "refusal"),
    [
        (Hardware(strategy="fsdp"), r"strategy is fsdp: .*embed with auto or ddp"),
        (Hardware(activation_checkpointing=True), r"activation_checkpointing is True: .*leave it out"),
    ],
)
def test_what_only_trainings_do_is_no_way_to_embed(
    place: Path, tmp_path: Path, hardware: Hardware, refusal: str
) -> None:
    with pytest.raises(ValueError, match=refusal):
        embed(place, tmp_path / "out", hardware=hardware)
    assert not (tmp_path / "out").exists()


def test_devices_that_are_not_there_are_refused_in_a_line(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"catalogue": place / "catalogue", "base": place / "toy_base", "output": tmp_path / "out"}
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", ["embed.py", *words, "--hardware.devices", "0"])
    with pytest.raises(SystemExit, match=r"^MisconfigurationException: .*devices=0.*$"):
        run_command(main)


@pytest.mark.parametrize("truncate_dim", [0, 10_000])
def test_more_components_than_there_are_is_refused_before_anything_is_read(
    place: Path, tmp_path: Path, truncate_dim: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=rf"truncate_dim is {truncate_dim}; give 1 to "):
        embed(place, tmp_path / "out", truncate_dim=truncate_dim)
    assert "reading products" not in capfd.readouterr().err


def test_a_tower_of_texts_embeds_what_is_new_alone(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = MMFusionModel.from_pretrained(place / "toy_base", fusion="text_only")
    MMFusionProcessor.from_pretrained(place / "toy_base").save_pretrained(tmp_path / "toy_base")
    model.save_pretrained(tmp_path / "toy_base")
    table = pq.read_table(place / "catalogue" / "products.parquet")
    rows = table.to_pylist()
    # It looks at photos where a product has no text, which is no reason to embed those that have one anew.
    write_products(tmp_path / "texts", [row for row in rows if row["title"]], table.schema)
    embed(tmp_path, tmp_path / "out", catalogue="texts")
    wordless = sum(not row["title"] for row in rows)
    for photo, new in ((rows[4]["image"], wordless), (rows[20]["image"], 1)):
        rows[4]["image"] = photo
        write_products(tmp_path / "texts", rows, table.schema)
        caplog.clear()
        with caplog.at_level("INFO", logger="mmfusion"):
            embed(tmp_path, tmp_path / "out", catalogue="texts")
        assert f"64 products: {new} to embed, {64 - new} embedded already" in caplog.text


def test_a_catalogue_by_url_gives_the_same_bits(place: Path, finished: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    name = f"embed-{tmp_path.name}"
    memory.put(f"{place / 'catalogue'}/", f"/{name}/", recursive=True)
    try:
        for number, url in enumerate((f"memory://{name}", f"file://{place / 'catalogue'}")):
            embed(place, tmp_path / str(number), catalogue=url)
            assert vectors_by_id(tmp_path / str(number)) == vectors_by_id(finished)
    finally:
        memory.rm(f"/{name}", recursive=True)


def test_a_hub_data_set_is_followed(place: Path, finished: Path, tmp_path: Path, hub: LoopbackHub) -> None:
    name, output = f"{hub.user}/shop", tmp_path / "embeddings"
    card = b"---\nconfigs:\n- config_name: products\n  data_files: products.parquet\n---\n"
    content = (place / "catalogue" / "products.parquet").read_bytes()
    hub.create_repo(name, kind="dataset", files={"README.md": card, "products.parquet": content})

    def embed_from_hub() -> str:
        # In a process of its own, as the library of data sets reads its settings when it is imported.
        arguments = command(place, output)
        arguments[arguments.index("--catalogue") + 1] = name
        environment = {**ENV["env"], **hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = run_to_end(arguments, env=environment, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stderr

    embed_from_hub()
    assert vectors_by_id(output) == vectors_by_id(finished)
    table = pq.read_table(place / "catalogue" / "products.parquet")
    write_products(tmp_path / "changed", table.to_pylist()[1:], table.schema)
    hub.repo(name, kind="dataset").plant({"products.parquet": (tmp_path / "changed" / "products.parquet").read_bytes()})
    assert "63 products: 0 to embed, 63 embedded already; 1 vectors" in embed_from_hub()
    tables = list((output / "cache" / "catalogue").rglob("*.arrow"))
    assert len(tables) == 1, "the table of the earlier revision is gone"


def test_a_split_without_products_is_refused(place: Path, tmp_path: Path) -> None:
    rows = pq.read_table(place / "catalogue" / "products.parquet")
    only_train = [{**row, "split": "train"} for row in rows.to_pylist()]
    write_products(tmp_path / "train", only_train, rows.schema)
    with pytest.raises(ValueError, match="no product to embed"):
        embed(place, tmp_path / "out", split="test", catalogue=str(tmp_path / "train"))


def test_a_photo_that_was_replaced_under_its_path_is_followed(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(place / "catalogue" / "products.parquet")
    rows = table.to_pylist()
    photos = tmp_path / "disk"
    photos.mkdir()
    for number, row in enumerate(rows):
        if row["image"] is not None:
            (photos / f"{number}.png").write_bytes(row["image"][0]["bytes"])
            row["image"] = [{"bytes": None, "path": f"photos/{number}.png"}]
    write_products(tmp_path / "catalogue", rows, table.schema)
    (tmp_path / "catalogue" / "photos").symlink_to(photos)
    output, catalogue = tmp_path / "embeddings", str(tmp_path / "catalogue")
    embed(place, output, catalogue=catalogue)
    before = vectors_by_id(output)
    (photos / "20.png").write_bytes((photos / "21.png").read_bytes())
    os.utime(photos / "22.png")
    decoded = []
    own = PhotoReader.__call__
    monkeypatch.setattr(
        PhotoReader, "__call__", lambda self, name, image: decoded.append(name) or own(self, name, image)
    )
    with caplog.at_level("INFO", logger="mmfusion"):
        embed(place, output, catalogue=catalogue)
    assert "64 products: 1 to embed, 63 embedded already" in caplog.text
    after = vectors_by_id(output)
    assert decoded == [name for name in before if before[name] != after[name]] == [rows[20]["product_id"]]
