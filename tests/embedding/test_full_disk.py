"""Embedding and indexing on a disk that is full: one line says so, and nothing that was there is lost."""

import json
from pathlib import Path

import pytest
from commands import as_if_trained, command
from small_disk import fill

from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.embedding import EmbeddedCatalogue
from mmfusion.retrieval import ProductIndex
from mmfusion.training import Hardware, starting_base
from mmfusion.training.full_disk import DiskFullError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    write_toy_catalogue(folder / "catalogue", num_products=400)
    as_if_trained(starting_base(None, folder))
    return folder


def embed(place: Path, output: Path) -> list[bytes]:
    """The recipe's shards."""
    command("embed")(
        catalogue=str(place / "catalogue"),
        base=str(place / "toy_base"),
        output=str(output),
        shard_size=100,
        hardware=Hardware(accelerator="cpu"),
    )
    return [(output / entry.file).read_bytes() for entry in EmbeddedCatalogue.open(output).manifest.shards]


def test_an_embedding_job_on_a_full_disk_goes_on_when_there_is_room(place: Path, small_disk: Path) -> None:
    expected = embed(place, place / "whole")
    run = small_disk / "run"
    for leave in (400_000, 30_000):
        fill(small_disk, leave)
        with pytest.raises(DiskFullError, match=r"run cannot be written.* and run the same command to continue"):
            embed(place, run)
        assert not (run / "manifest.json").exists() and not list(run.glob(".*partial"))
    (small_disk / "filler").unlink()
    assert embed(place, run) == expected


def test_an_index_that_does_not_fit_leaves_the_one_before(place: Path, small_disk: Path) -> None:
    embed(place, place / "whole")
    run = small_disk / "run"

    def build() -> None:
        command("index")(embeddings=str(place / "whole"), output=str(run))

    build()
    before = {path.name: path.read_bytes() for path in (run / "index").iterdir()}
    fill(small_disk, 50_000)
    with pytest.raises(DiskFullError, match="one that was there is left as it was"):
        build()
    assert {path.name: path.read_bytes() for path in (run / "index").iterdir()} == before
    assert [path.name for path in run.iterdir() if path.name.startswith(".index")] == []
    (small_disk / "filler").unlink()
    build()
    assert len(ProductIndex.load(run / "index")) == 400
    assert json.loads((run / "run.json").read_text())["complete"]
