"""A streamed catalogue: the same values as a loaded one, and what happens if its files cannot be read."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from flaky_files import SPECIFICATION, specification
from loopback_hub.server import LoopbackHub
from sharded_catalogue import FILES, GROUP_ROWS, bytes_of_photos, write_sharded

from mmfusion.data import streamed_catalogue
from mmfusion.data.catalogue import Catalogue, CatalogueError
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.loaders import raise_together
from mmfusion.data.streamed_catalogue import StreamedCatalogue
from mmfusion.data.streaming import ReadError, StreamedProductTable
from mmfusion.data.tables import PairTable, ProductTable, QueryTable
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.stages import Optimization, Stage1
from mmfusion.stages.stage import model_inputs
from mmfusion.training import cache_frozen

BATCH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharded(tmp_path_factory.mktemp("stream") / "catalogue")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Catalogue:
    return Catalogue.load(folder, cache_dir=folder.parent / "cache")


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> MMFusionProcessor:
    backbones = write_toy_encoders(tmp_path_factory.mktemp("backbones"))
    return MMFusionProcessor.from_backbones(str(backbones.text), str(backbones.vision))


@pytest.fixture
def in_memory(folder: Path) -> Iterator[str]:
    """The catalogue at a URL that is not a folder of this machine."""
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/streamed", recursive=True)
    yield "memory://streamed"
    store.rm("/streamed", recursive=True)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_catalogue, "RETRY_AFTER", (0.0, 0.0, 0.0))


def stream(source: str | Path, cache: Path) -> StreamedCatalogue:
    return StreamedCatalogue.load(source, cache_dir=cache)


def data_module(catalogue: Catalogue, processor: MMFusionProcessor, **options: Any) -> MMFusionDataModule:
    return MMFusionDataModule(catalogue, processor, **{"batch_size": BATCH, "eval_batch_size": 5, **options})


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def test_rows_splits_and_contents_are_those_of_the_loaded_catalogue(
    in_memory: str, loaded: Catalogue, tmp_path: Path
) -> None:
    streamed = stream(in_memory, tmp_path)
    assert (streamed.product_ids == loaded.product_ids).all()
    assert (streamed.product_rows("val") == loaded.product_rows("val")).all()
    assert streamed.contents_digest() == loaded.contents_digest()
    assert streamed.product_schema == loaded.product_schema
    assert streamed.shards.starts[-1] == sum(FILES)
    # Nothing that would need a product at a random place.
    assert not isinstance(streamed, Catalogue) and not hasattr(streamed, "titles")


def test_only_ids_queries_and_judgements_come_to_the_disk(in_memory: str, folder: Path, tmp_path: Path) -> None:
    stream(in_memory, tmp_path)
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert on_disk < 0.25 * sum(path.stat().st_size for path in folder.rglob("*.parquet"))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_the_values_of_loaded_rows(
    in_memory: str, loaded: Catalogue, processor: MMFusionProcessor, tmp_path: Path, workers: int
) -> None:
    data = data_module(stream(in_memory, tmp_path), processor, num_workers=workers, photo_views=3, shuffle_buffer=10)
    queries, products = QueryTable(loaded, processor), ProductTable(loaded, processor)
    twin, seen = PairTable(queries, products), []
    loader = data.train_dataloader()
    for batch, index in zip(loader, loader.sampler, strict=True):
        assert_equal(batch, twin[index.batch])
        seen += batch["product_rows"].tolist()
    judged = np.unique(data.train_qrels.product[data.train_qrels.grade > 0])
    assert len(seen) == len(set(seen)) == len(judged) // BATCH * BATCH and set(seen) <= set(judged)
    of_queries, of_products = data.val_dataloader()
    assert sum(len(batch["query_rows"]) for batch in of_queries) == len(np.unique(data.val_qrels.query))
    rows = []
    for batch in of_products:
        assert_equal(batch, products[batch["product_rows"].numpy()])
        rows += batch["product_rows"].tolist()
    assert sorted(rows) == loaded.product_rows("val").tolist()


def test_no_more_rows_are_held_than_the_buffer_a_row_group_and_a_batch(
    folder: Path, processor: MMFusionProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    read = StreamedProductTable.hold

    def hold(table: StreamedProductTable, reads: Any) -> None:
        read(table, reads)
        held.append(len(table.held))

    monkeypatch.setattr(StreamedProductTable, "hold", hold)
    data = data_module(stream(folder, tmp_path), processor, shuffle_buffer=4)
    loader = data.train_dataloader()
    for _ in range(2):
        assert len(list(loader)) == len(held)
        assert max(held) <= 4 + GROUP_ROWS + BATCH and data._train_products.held == {}
        held.clear()
    # An epoch that is broken off leaves rows behind, which the next one drops.
    next(iter(loader))
    assert data._train_products.held
    list(loader)
    assert data._train_products.held == {}


def test_a_template_with_an_unknown_column_is_refused(
    folder: Path, processor: MMFusionProcessor, tmp_path: Path
) -> None:
    other = copy(processor)
    other.template_columns = ["title", "shade"]
    with pytest.raises(CatalogueError, match=r"names the column 'shade'.*title"):
        StreamedProductTable(stream(folder, tmp_path), other)


@pytest.mark.parametrize(
    "options",
    [
        {"dev_fraction": 0.2},
        {"extra_products": 8},
        {"no_duplicates": ["photo"]},
        {"group_by": "brand"},
        {"hard_negatives": "mined", "negatives_per_query": 1},
    ],
)
def test_what_a_stream_cannot_give_is_refused_with_the_reason(
    folder: Path, processor: MMFusionProcessor, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is not supported with stream=True: "):
        data_module(stream(folder, tmp_path), processor, **options)


def test_files_and_row_groups_without_train_rows_are_skipped_and_logged(
    folder: Path, processor: MMFusionProcessor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmfusion")
    data = data_module(stream(folder, tmp_path), processor, num_workers=40)
    assert "00001.parquet' has no rows and is skipped" in caplog.text
    data.train_dataloader()
    sampler = data.train_dataloader().sampler
    assert f"from {sampler.num_groups} row groups to 40 reader(s)" in caplog.text
    assert f"40 readers share {sampler.num_groups} row groups" in caplog.text


def flaky(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> tuple[StreamedCatalogue, Path]:
    """The catalogue, the photos of whose third row group of the last file can be read after so many failures."""
    place = bytes_of_photos(folder / "products" / "00003.parquet", 2)
    counter = tmp_path / "failures"
    monkeypatch.setenv(SPECIFICATION, specification("00003.parquet", place, counter, failures))
    return stream(f"flaky://{folder}", tmp_path / "cache"), counter


@pytest.mark.parametrize("workers", [0, 2])
def test_a_read_that_fails_twice_is_tried_again(
    folder: Path, processor: MMFusionProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    failing, counter = flaky(folder, tmp_path, monkeypatch, 2)
    whole = data_module(stream(folder, tmp_path / "other"), processor, num_workers=workers)
    for one, other in zip(
        data_module(failing, processor, num_workers=workers).train_dataloader(), whole.train_dataloader(), strict=True
    ):
        assert_equal(one, other)
    assert counter.read_text() == "0"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_read_that_fails_for_good_names_file_row_group_and_row(
    folder: Path, processor: MMFusionProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    failing, counter = flaky(folder, tmp_path, monkeypatch, 1000)
    with pytest.raises(
        CatalogueError,
        match=r"^catalogue 'flaky://.*', file 'products/00003.parquet', row group 2 \(from row 16 of the file\): "
        r"cannot be read after 4 tries \(OSError: connection reset by peer\)\. Check .* the same command to resume\.$",
    ):
        list(data_module(failing, processor, num_workers=workers).train_dataloader())
    assert counter.read_text() == "996"


def copied(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the catalogue that a test may change, and the last file of its products."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    return copy, copy / "products" / "00003.parquet"


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path, row_group_size=GROUP_ROWS)


def without_the_first(table: pa.Table) -> pa.Table:
    return table.slice(1)


def turned_around(table: pa.Table) -> pa.Table:
    return table.take(pa.array(range(len(table) - 1, -1, -1)))


@pytest.mark.parametrize("change", [without_the_first, turned_around])
def test_files_that_change_meanwhile_are_refused(
    folder: Path, processor: MMFusionProcessor, tmp_path: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    source, path = copied(folder, tmp_path)
    data = data_module(stream(source, tmp_path / "cache"), processor)
    rewrite(path, change)
    with pytest.raises(CatalogueError, match=r"00003.parquet', row group .*holds other products than when training"):
        list(data.train_dataloader())


def test_a_file_that_is_gone_is_named(folder: Path, processor: MMFusionProcessor, tmp_path: Path) -> None:
    source, path = copied(folder, tmp_path)
    data = data_module(stream(source, tmp_path / "cache"), processor)
    path.unlink()
    with pytest.raises(CatalogueError, match=r"00003.parquet', row group .*cannot be read.*FileNotFoundError"):
        list(data.train_dataloader())


def with_photos_by_path(table: pa.Table) -> pa.Table:
    at = table.schema.get_field_index("image")
    photos = [[{"bytes": None, "path": "photos/1.png"}]] * len(table)
    return table.set_column(at, table.schema.field(at), pa.array(photos, table.schema.field(at).type))


def test_photos_by_path_at_a_url_are_refused(folder: Path, processor: MMFusionProcessor, tmp_path: Path) -> None:
    source, path = copied(folder, tmp_path)
    rewrite(path, with_photos_by_path)
    store = fsspec.filesystem("memory")
    store.put(str(source), "/by_path", recursive=True)
    data = data_module(stream("memory://by_path", tmp_path / "cache"), processor)
    with pytest.raises(CatalogueError, match=r"the path 'photos/1.png', and it is not in a local folder"):
        list(data.train_dataloader())


def test_ranks_raise_together() -> None:
    votes = iter([True, True, False])
    good: Iterator[Any] = raise_together(iter([{}, {}, {}]), lambda well: well and next(votes))
    assert [next(good), next(good)] == [{}, {}]
    with pytest.raises(CatalogueError, match="Another rank could not read its products"):
        next(good)
    with pytest.raises(CatalogueError, match="file 7 is gone"):
        list(raise_together(iter([{}, ReadError("file 7 is gone")]), lambda well: well))


@pytest.mark.parametrize("name", ["{}", "hf://datasets/{}"])
def test_a_hub_data_set_is_streamed(
    hub: LoopbackHub,
    hub_client_environment: Path,
    folder: Path,
    loaded: Catalogue,
    processor: MMFusionProcessor,
    tmp_path: Path,
    name: str,
) -> None:
    repository = hub.unique("products")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}
    hub.create_repo(repository, files, kind="dataset")
    streamed = stream(name.format(repository), tmp_path / "cache")
    assert streamed.contents_digest() == loaded.contents_digest()
    data = data_module(streamed, processor, num_workers=1)
    loader = data.train_dataloader()
    twin = PairTable(QueryTable(loaded, processor), ProductTable(loaded, processor))
    for batch, index in zip(loader, loader.sampler, strict=True):
        assert_equal(batch, twin[index.batch])


def test_a_hub_that_cannot_be_reached_is_not_a_data_set_that_is_not_there(
    hub: LoopbackHub, hub_client_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CatalogueError, match=r"Hub data set 'org/none': cannot be read.*org/none.*Check the id"):
        stream("org/none", tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CatalogueError, match=r"Hub data set 'org/other': cannot be read.*[Oo]ffline"):
        stream("org/other", tmp_path)


def test_frozen_encoders_run_in_each_step_and_nothing_is_cached(
    folder: Path, processor: MMFusionProcessor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmfusion")
    backbones = write_toy_encoders(tmp_path / "backbones")
    model = MMFusionModel.from_backbones(str(backbones.text), str(backbones.vision))
    data = data_module(stream(folder, tmp_path / "cache"), processor)
    rates = Optimization(text_learning_rate=0, vision_learning_rate=0)
    cache_frozen(model, data, rates, 0, tmp_path / "features")
    assert "frozen encoders run in each step" in caplog.text
    data.prepare_data()
    assert not (tmp_path / "features").exists() and model.frozen_vision_blocks == model.num_vision_blocks
    batch = next(iter(data.train_dataloader()))
    Stage1(model, rates)
    output = model(**model_inputs(batch), views_only=True)
    (output.image_embeds.sum() + output.text_embeds.sum()).backward()
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained and not trained & {"text_model", "vision_model"}
