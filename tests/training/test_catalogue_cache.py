"""A catalogue is converted once: one cache for all commands, or hard links between output folders."""

import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from commands import as_if_trained, command
from processes import started

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.catalogue_files import ParquetTable
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.training import starting_base
from mmfusion.training.catalogue_cache import VARIABLE, load_shared

DAY = 86_400


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    write_toy_catalogue(folder / "shop", num_products=40)
    as_if_trained(starting_base(None, folder))
    return folder


@pytest.fixture
def shop(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "shop", tmp_path / "shop"))


def tables(folder: Path) -> dict[str, list[Path]]:
    """Converted products below a folder, by name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("products-*.arrow")):
        found.setdefault(path.name, []).append(path)
    return found


def load(shop: Path, output: Path, **options: Any) -> Catalogue:
    return load_shared(Catalogue.load, str(shop), output, **options)


def run_commands(place: Path, shop: Path, outputs: Path, **options: Any) -> None:
    common = {"catalogue": str(shop), "base": str(place / "toy_base"), **options}
    command("evaluate")(**common, output=str(outputs / "evaluation"))
    command("embed")(**common, output=str(outputs / "embeddings"))
    command("index")(embeddings=str(outputs / "embeddings"), output=str(outputs / "index"), **options)


def test_output_folders_share_their_tables_and_nothing_is_written_elsewhere(
    place: Path, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "xdg"))
    before = {path: path.stat().st_mtime for path in [*shop.rglob("*"), *(place / "toy_base").rglob("*")]}
    run_commands(place, shop, tmp_path / "outputs")
    whole, without_photos = sorted(tables(tmp_path / "outputs").values(), key=len, reverse=True)
    assert [path.parts[-4] for path in whole] == ["embeddings", "evaluation"]
    assert len({path.stat().st_ino for path in whole}) == 1 and whole[0].stat().st_nlink == 2
    assert [path.parts[-4] for path in without_photos] == ["index"]
    assert {path.name for path in tmp_path.iterdir()} == {"shop", "outputs"}
    assert {path: path.stat().st_mtime for path in before} == before
    # A folder may go without the others.
    shutil.rmtree(tmp_path / "outputs" / "evaluation")
    assert load(shop, tmp_path / "outputs" / "embeddings").titles([0])


@pytest.mark.parametrize("by_flag", [True, False])
def test_one_cache_serves_all_commands(
    place: Path, shop: Path, tmp_path: Path, by_flag: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / ("other" if by_flag else "cache")))
    run_commands(place, shop, tmp_path / "outputs", **({"cache_dir": str(tmp_path / "cache")} if by_flag else {}))
    assert not tables(tmp_path / "outputs") and not (tmp_path / "other").exists()
    assert sorted(len(paths) for paths in tables(tmp_path / "cache").values()) == [1, 1]


def test_catalogues_are_kept_apart_and_old_tables_are_removed(shop: Path, tmp_path: Path) -> None:
    def converted() -> list[Path]:
        return sorted(path for paths in tables(tmp_path / "cache").values() for path in paths)

    def use(folder: Path) -> None:
        load_shared(Catalogue.load_products, str(folder), tmp_path / "out", cache_dir=str(tmp_path / "cache"))

    other = Path(shutil.copytree(shop, tmp_path / "more" / "shop"))
    use(shop), use(other), use(shop)
    assert len(converted()) == len({path.parent for path in converted()}) == 2
    write_toy_catalogue(tmp_path / "changed", num_products=44)
    shutil.copyfile(tmp_path / "changed" / "products.parquet", shop / "products.parquet")
    use(shop)
    assert len(converted()) == 3, "another command may still use the old one"
    for path in converted():
        os.utime(path, (time.time() - 8 * DAY,) * 2)
    use(shop)
    # Of the other catalogue, nobody has asked.
    assert len(converted()) == len({path.parent for path in converted()}) == 2


def test_who_comes_second_waits_instead_of_converting(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[str] = []
    convert = ParquetTable._convert

    def slowly(self: ParquetTable, schema: Any, mapped: Path) -> None:
        converted.append(self.name)
        time.sleep(0.3)
        convert(self, schema, mapped)

    monkeypatch.setattr(ParquetTable, "_convert", slowly)
    found: list[Catalogue] = []
    threads = [
        threading.Thread(target=lambda: found.append(load(shop, tmp_path / "out", cache_dir=str(tmp_path / "cache"))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(converted) == ["products", "qrels", "queries"]
    assert len({catalogue.contents_digest() for catalogue in found}) == 1 and len(found) == 3


KILLED = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa
from mmfusion.data.catalogue import Catalogue
from mmfusion.training.catalogue_cache import load_shared
write = pa.ipc.new_stream
def killed(file, schema):
    file.write(b"half of it"); file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
pa.ipc.new_stream = killed
load_shared(Catalogue.load, sys.argv[1], Path(sys.argv[2]), sys.argv[3])
"""


def test_a_killed_conversion_leaves_neither_a_lock_nor_half_a_table(shop: Path, tmp_path: Path) -> None:
    with started([sys.executable, "-c", KILLED, shop, tmp_path / "out", tmp_path / "cache"]) as process:
        assert process.wait(timeout=120) == -signal.SIGKILL
    assert list((tmp_path / "cache").rglob("*.partial")) and not tables(tmp_path / "cache")
    assert load(shop, tmp_path / "out", cache_dir=str(tmp_path / "cache")).titles([0])
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_place_that_cannot_be_written_to_is_named_and_not_used(
    shop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, logger="mmfusion"):
        load(shop, tmp_path / "out", cache_dir=str(tmp_path / "file" / "cache"))
    assert f"the cache {tmp_path / 'file'}" in caplog.text and "the output folder is used" in caplog.text
    assert tables(tmp_path / "out")
