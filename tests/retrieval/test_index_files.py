"""A damaged byte in the files of an index is an error that names the file, and never a wrong neighbour."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmfusion.retrieval import ProductIndex, index_files

COUNT, DIMENSION = 40, 6
GOLDEN = Path(__file__).parents[1] / "golden" / "index" / "index"


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)


def build(factory: str = "Flat", count: int = COUNT, prefix: str = "p") -> ProductIndex:
    titles = pa.table({"title": [f"{prefix} number {row}" for row in range(count)]})
    return ProductIndex.build(
        vectors(count),
        [f"{prefix}{row}" for row in range(count)],
        model_fingerprint="m",
        metadata=titles,
        factory=factory,
    )


def changed(index: ProductIndex) -> ProductIndex:
    """One with a delta and with deleted rows in both segments."""
    index.update(
        vectors(3, 1), ["n0", "n1", "p2"], model_fingerprint="m", metadata=pa.table({"title": ["a", "b", "c"]})
    )
    index.delete(["p0", "n1"])
    return index


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << place % 8)]))


@pytest.fixture
def as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read as if each were larger than those that are read whole on opening, and had short ends."""
    monkeypatch.setattr(index_files, "WHOLE_BELOW", 0)
    monkeypatch.setattr(index_files, "_END", 64)


@pytest.mark.parametrize("name", ["index.faiss", "products.arrow", "delta.faiss", "delta.arrow", "deleted.npy"])
@pytest.mark.parametrize("memory_map", [True, False])
def test_a_flipped_bit_anywhere_is_an_error_that_names_the_file(tmp_path: Path, name: str, memory_map: bool) -> None:
    folder = changed(build()).save(tmp_path / "index")
    path = folder / name
    for place in sorted(random.Random(0).sample(range(path.stat().st_size), 25)):
        flip(path, place)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            ProductIndex.load(folder, memory_map=memory_map)
        flip(path, place)
    assert len(ProductIndex.load(folder, memory_map=memory_map, verify=True)) == COUNT


def test_a_flipped_bit_at_any_place_of_the_description_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = changed(build(count=5)).save(tmp_path / "index")
    path = folder / "index.json"
    for place in range(path.stat().st_size):
        flip(path, place)
        with pytest.raises(ValueError, match=r"index\.json"):
            ProductIndex.load(folder)
        flip(path, place)
    ProductIndex.load(folder)


def test_a_description_that_was_written_by_hand_is_not_taken(tmp_path: Path) -> None:
    folder = build().save(tmp_path / "index")
    path = folder / "index.json"
    path.write_text(path.read_text().replace('"model_fingerprint": "m"', '"model_fingerprint": "other"'))
    with pytest.raises(ValueError, match=r"index\.json is damaged .*: its text does not have the checksum"):
        ProductIndex.load(folder)


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF2,SQ8"])
def test_of_a_large_file_both_ends_are_read_on_opening_and_all_of_it_where_that_is_asked_for(
    tmp_path: Path, as_if_large: None, factory: str
) -> None:
    folder = build(factory, count=400).save(tmp_path / "index")
    for name in ("index.faiss", "products.arrow"):
        path = folder / name
        size = path.stat().st_size
        # Among vectors and titles: what FAISS knows to be wrong, such as a link that leads nowhere, it finds by itself.
        inside = size - 1000
        for place in (0, 63, size - 64, size - 1):
            flip(path, place)
            with pytest.raises(ValueError, match=f"{name} is damaged .*: its beginning or end"):
                ProductIndex.load(folder)
            flip(path, place)
        flip(path, inside)
        ProductIndex.load(folder)
        for arguments in ({"verify": True}, {"memory_map": False}):
            with pytest.raises(ValueError, match=f"{name} is damaged .*: it has the checksum"):
                ProductIndex.load(folder, **arguments)
        flip(path, inside)
        with path.open("ab") as file:
            file.write(b"\0")
        with pytest.raises(ValueError, match=f"{name} is damaged .*{size + 1:,} bytes, and {size:,} were written"):
            ProductIndex.load(folder)
        with path.open("r+b") as file:
            file.truncate(size)
    ProductIndex.load(folder, verify=True)


def test_checksums_are_right_after_every_kind_of_saving(tmp_path: Path) -> None:
    def update(index: ProductIndex) -> ProductIndex:
        index.update(vectors(2, 5), ["p4", "u"], model_fingerprint="m", metadata=pa.table({"title": ["x", "y"]}))
        return index

    def delete(index: ProductIndex) -> ProductIndex:
        index.delete(index.product_ids[:1])
        return index

    def keep(index: ProductIndex) -> ProductIndex:
        return index

    folder = build().save(tmp_path / "index")
    steps: list[Callable[[ProductIndex], ProductIndex]] = [keep, update, delete, update, ProductIndex.compact, delete]
    for step in steps:
        index = step(ProductIndex.load(folder))
        index.save(folder, overwrite=True)
        elsewhere = index.save(tmp_path / "other", overwrite=True)
        for place in (folder, elsewhere):
            found = ProductIndex.load(place, verify=True)
            assert found.product_ids == index.product_ids
    build(prefix="q").save(folder, overwrite=True)
    assert ProductIndex.load(folder, verify=True).product_ids[0] == "q0"


def test_files_that_a_saving_does_not_write_keep_their_checksums(tmp_path: Path, as_if_large: None) -> None:
    folder = build(count=400).save(tmp_path / "index")
    flip(folder / "products.arrow", (folder / "products.arrow").stat().st_size // 2)
    index = ProductIndex.load(folder)
    index.delete(["p1"])
    index.save(folder, overwrite=True)
    # The damage came along, and has not been given a checksum that fits it.
    with pytest.raises(ValueError, match=r"products\.arrow is damaged"):
        ProductIndex.load(folder, verify=True)


def test_nothing_is_made_of_a_damaged_base(tmp_path: Path, as_if_large: None) -> None:
    folder = build(count=400).save(tmp_path / "index")
    index = ProductIndex.load(folder)
    flip(folder / "index.faiss", 3000)
    for use in (index.compact, lambda: index.to("milvus", uri=tmp_path / "index.db")):
        with pytest.raises(ValueError, match=r"index\.faiss is damaged"):
            use()


def test_an_index_without_checksums_gets_them_when_it_is_saved(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    shutil.copytree(GOLDEN, folder)
    index = ProductIndex.load(folder, verify=True)
    assert index.description.schema_version == 1
    index.save(folder, overwrite=True)
    assert ProductIndex.load(folder, verify=True).product_ids == index.product_ids
    flip(folder / "index.faiss", 700)
    with pytest.raises(ValueError, match=r"index\.faiss is damaged"):
        ProductIndex.load(folder)


def test_a_file_that_is_named_and_not_there_is_missing(tmp_path: Path) -> None:
    folder = changed(build()).save(tmp_path / "index")
    (folder / "deleted.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"deleted\.npy is missing"):
        ProductIndex.load(folder)
