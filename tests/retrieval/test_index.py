"""ProductIndex: searching, saving, and refusing what would give wrong hits."""

import datetime
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mmfusion import files as files_module
from mmfusion.evaluation.ranking import rank
from mmfusion.retrieval import Hit, ProductIndex, index_files

IDS = ["a,b", "line\nbreak", "🧥 parka", 'quote"d', "", "قميص", "连衣裙", "0042"]


def vectors(count: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def build(count: int = 8, **arguments: Any) -> ProductIndex:
    ids = IDS if count == len(IDS) else [f"p{row}" for row in range(count)]
    return ProductIndex.build(vectors(count), ids, **{"model_fingerprint": "model-1", **arguments})


def ids_of(hits: list[Hit]) -> list[str]:
    return [hit.product_id for hit in hits]


def test_a_flat_index_finds_what_exact_ranking_finds() -> None:
    queries = vectors(5, seed=1)
    index = build(300)
    scores, columns = rank(queries, vectors(300), k=20, product_ids=index.product_ids)
    for row, hits in enumerate(index.search(queries, 20)):
        assert ids_of(hits) == [f"p{column}" for column in columns[row].tolist()]
        assert [hit.rank for hit in hits] == list(range(1, 21))
        np.testing.assert_allclose([hit.score for hit in hits], scores[row], atol=1e-6)


def test_blocks_of_any_size_and_tensors_give_the_same_index() -> None:
    whole = vectors(50)

    def blocks() -> Iterator[np.ndarray | torch.Tensor]:
        yield whole[:1]
        yield torch.from_numpy(whole[1:30])
        yield whole[30:30]
        yield whole[30:]

    expected = build(50).search(vectors(3, seed=1), 10)
    blockwise = ProductIndex.build(blocks(), [f"p{row}" for row in range(50)], model_fingerprint="model-1")
    assert blockwise.search(vectors(3, seed=1), 10) == expected


@pytest.mark.parametrize("memory_map", [True, False])
@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat", "IVF4,PQ4x4", "PCA8,Flat", "OPQ4,IVF4,PQ4x4,RFlat"])
def test_a_saved_index_gives_the_same_hits(tmp_path: Path, factory: str, memory_map: bool) -> None:
    index = build(300, factory=factory)
    loaded = ProductIndex.load(index.save(tmp_path / "index"), memory_map=memory_map)
    queries = vectors(7, seed=1)
    assert loaded.search(queries, 5) == index.search(queries, 5)
    assert all(hits for hits in loaded.search(queries, 5))
    assert loaded.description == index.description
    assert (loaded.description.dimension, loaded.description.count) == (16, 300)


def test_any_characters_in_ids_metadata_and_weights_survive(tmp_path: Path) -> None:
    metadata = pa.table({"title": [f"{name} title" for name in IDS], "product_id": list(range(8)), "price": [None] * 8})
    weights = np.stack([np.arange(8) / 8, 1 - np.arange(8) / 8], axis=1)
    index = build(metadata=metadata, modality_weights=weights)
    loaded = ProductIndex.load(index.save(tmp_path / "índex 🧥"))
    assert loaded.product_ids == IDS
    hits = loaded.search(vectors(8), 1)
    for row, (hit,) in enumerate(hits):
        assert hit.product_id == IDS[row]
        assert hit.metadata == {"title": f"{IDS[row]} title", "product_id": row, "price": None}
        assert hit.modality_weights == {"text": row / 8, "image": 1 - row / 8}


@pytest.mark.parametrize(
    "ids", [pa.chunked_array([IDS[:3], IDS[3:]]), pa.array(IDS, pa.large_string()), np.array(IDS), iter(IDS)]
)
def test_ids_come_in_any_kind_of_sequence(ids: Any) -> None:
    assert ProductIndex.build(vectors(8), ids, model_fingerprint="m").product_ids == IDS


def test_metadata_of_any_arrow_type_survives(tmp_path: Path) -> None:
    kinds = pa.chunked_array([pa.array([*"abca"]).dictionary_encode(), pa.array([*"xyzx"]).dictionary_encode()])
    days = [datetime.datetime(2024, 1, day, tzinfo=datetime.UTC) for day in range(1, 9)]
    columns: dict[str, Any] = {
        "kind": kinds,
        "price": pa.array([Decimal(day) / 4 for day in range(8)], pa.decimal128(10, 2)),
        "since": pa.array(days, pa.timestamp("us", "UTC")),
        "tags": pa.array([["a"], None, [], ["b", None], *[["c"]] * 4]),
        "size": pa.array([{"width": 1, "unit": None}] * 8, pa.struct([("width", pa.int8()), ("unit", pa.null())])),
    }
    table = pa.table(columns)
    index = ProductIndex.load(build(metadata=table).save(tmp_path / "index"))
    index.update(vectors(1, seed=1), ["new"], model_fingerprint="model-1", metadata=table.slice(7, 1))
    compacted = ProductIndex.load(index.compact().save(tmp_path / "compacted"))
    for one in (index, compacted):
        found = {hit.product_id: hit.metadata for hit in one.search(vectors(1), 9)[0]}
        assert [found[name] for name in [*IDS, "new"]] == [*table.to_pylist(), table.to_pylist()[7]]
        some = one.search(vectors(1), 9, filter=[("kind", "in", ["x"]), ("price", ">", 1.01)])[0]
        assert {hit.product_id for hit in some} == {IDS[7], "new"}


def test_hits_without_metadata_or_weights_have_empty_ones() -> None:
    assert build().search(vectors(1), 1)[0][0].metadata == {}
    assert build().search(vectors(1), 1)[0][0].modality_weights == {}


def test_equal_products_come_in_the_order_of_evaluation() -> None:
    same = np.repeat(vectors(1), 4, axis=0)
    index = ProductIndex.build(same, ["10", "9", "b", "a"], model_fingerprint="m")
    assert ids_of(index.search(vectors(1), 4)[0]) == ["b", "a", "9", "10"]


def test_k_above_the_count_gives_all_products() -> None:
    assert sorted(ids_of(build().search(vectors(1, seed=3), 1000)[0])) == sorted(IDS)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k}"):
        build().search(vectors(1), k)


def test_k_is_a_whole_number_of_any_kind() -> None:
    assert [len(build().search(vectors(1), k)[0]) for k in (np.int64(2), np.uint8(3))] == [2, 3]
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        build().search(vectors(1), 2.0)  # type: ignore[arg-type]


def test_no_query_gives_no_list_of_hits() -> None:
    assert build().search(np.zeros((0, 16), np.float32), 3) == []


def test_queries_of_another_dimension_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"dimension 15 but the index 16.*model-1"):
        build().search(vectors(2, 15), 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_refused_with_its_row(bad: float) -> None:
    queries = vectors(3)
    queries[1, 2] = bad
    with pytest.raises(ValueError, match="query embeddings: row 1"):
        build().search(queries, 1)


@pytest.mark.parametrize("queries", [vectors(1)[0], np.ones((1, 16), dtype=np.int64)])
def test_queries_that_are_no_matrix_of_floats_are_refused(queries: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"query embeddings are .*pass floating-point numbers"):
        build().search(queries, 1)


def test_a_product_embedding_that_is_not_finite_is_refused_with_its_row_over_all_blocks() -> None:
    bad = vectors(10)
    bad[7, 0] = np.nan
    for embeds, factory in ((iter([bad[:5], bad[5:]]), "Flat"), (bad, "Flat"), (bad, "HNSW16")):
        with pytest.raises(ValueError, match="product embeddings: row 7"):
            ProductIndex.build(embeds, list("abcdefghij"), model_fingerprint="m", factory=factory, train_size=4)


def test_another_model_is_refused_naming_both(tmp_path: Path) -> None:
    index = ProductIndex.load(build().save(tmp_path / "index"))
    index.check_model("model-1")
    with pytest.raises(ValueError, match=r"'model-1'.*'model-2'"):
        index.check_model("model-2")


def test_an_index_needs_a_fingerprint() -> None:
    with pytest.raises(ValueError, match="model_fingerprint is empty"):
        build(model_fingerprint="")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"product_ids": ["a", "b"]}, "3 product embeddings for 2 product ids"),
        ({"product_ids": ["a", 7, "c"]}, "product id 7 in row 1 is not a string"),
        ({"product_ids": ["a", "b", "a"]}, "'a' appears twice, in rows 0 and 2"),
        ({"product_ids": pa.chunked_array([["a"], ["b", "b"]])}, "'b' appears twice, in rows 1 and 2"),
        ({"product_ids": pa.array(["a", None, "c"])}, "product id None in row 1 is not a string"),
        ({"product_ids": pa.array([1, 2, 3])}, "product id 1 in row 0 is not a string"),
        ({"product_ids": ["a", "\ud800", "c"]}, r"product id '.ud800' holds half of a surrogate pair"),
        ({"metadata": pa.Table.from_arrays([pa.array([1, 2, 3])] * 2, ["x", "x"])}, "2 columns .* are called 'x'"),
        ({"metadata": pa.table({"title": ["x"]})}, "metadata has 1 rows for 3"),
        ({"modality_weights": np.ones((2, 2))}, "modality weights has 2 rows for 3"),
        ({"modality_weights": np.ones((3, 3))}, "have 3 columns"),
        ({"modality_weights": np.full((3, 2), np.nan)}, "modality weights: row 0"),
        ({"embeds": [vectors(2), vectors(1, 17)]}, "dimension 17 after blocks of dimension 16"),
        ({"embeds": [], "product_ids": []}, "0 product embeddings for 0 product ids"),
        ({"embeds": vectors(3)[0]}, r"product embeddings are float32 \(16,\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProductIndex.build(
            **{"embeds": vectors(3), "product_ids": ["a", "b", "c"], "model_fingerprint": "m", **arguments}
        )


@pytest.mark.parametrize("factory", ["IVF64,Flat", "PQ4", "IVF2,PQ4"])
@pytest.mark.parametrize("blockwise", [False, True])
def test_too_few_vectors_to_train_is_an_error_with_the_number_and_the_remedy(factory: str, blockwise: bool) -> None:
    embeds = iter([vectors(20), vectors(12)]) if blockwise else vectors(32)
    with pytest.raises(ValueError, match=r"32 vectors are too few to train .*(64|256).*'Flat'"):
        ProductIndex.build(embeds, [str(row) for row in range(32)], model_fingerprint="m", factory=factory)


@pytest.mark.parametrize("factory", ["Bogus", "IVF,PQ", "LSH", "PQ5"])
def test_a_factory_string_that_faiss_does_not_know_is_named(factory: str) -> None:
    with pytest.raises(ValueError, match=f"'{factory}' of dimension 16"):
        build(factory=factory)


def test_search_parameters_are_applied_kept_and_checked(tmp_path: Path) -> None:
    exact = build(200).search(vectors(9, seed=2), 10)
    narrow, wide = (build(200, factory="IVF16,Flat", search_parameters=f"nprobe={n}") for n in (1, 16))
    assert narrow.search(vectors(9, seed=2), 10) != exact
    for index in (wide, ProductIndex.load(wide.save(tmp_path / "index"))):
        assert list(map(ids_of, index.search(vectors(9, seed=2), 10))) == list(map(ids_of, exact))
    with pytest.raises(ValueError, match="'nprob=3'"):
        build(200, factory="IVF16,Flat", search_parameters="nprob=3")


def test_wrong_search_parameters_are_told_before_the_rest_is_read() -> None:
    def blocks() -> Iterator[np.ndarray]:
        yield vectors(4)
        raise AssertionError("read further")

    with pytest.raises(ValueError, match="'nprob=3'"):
        ProductIndex.build(blocks(), IDS, model_fingerprint="m", factory="IVF4,SQ8", search_parameters="nprob=3")


def test_saving_over_an_index_needs_overwrite(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    build().save(folder)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        build(9).save(folder)
    assert len(ProductIndex.load(folder)) == 8
    build(9).save(folder, overwrite=True)
    assert len(ProductIndex.load(folder)) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_saving_never_deletes_what_is_not_an_index(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        build().save(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_loaded_index_can_be_saved_over_itself(tmp_path: Path) -> None:
    folder = build(50).save(tmp_path / "index")
    expected = ProductIndex.load(folder).search(vectors(3, seed=1), 5)
    ProductIndex.load(folder).save(folder, overwrite=True)
    assert ProductIndex.load(folder).search(vectors(3, seed=1), 5) == expected


def test_a_save_that_fails_leaves_the_old_index_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build().save(tmp_path / "index")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(index_files, "_write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        build(9).save(folder, overwrite=True)
    monkeypatch.undo()
    assert len(ProductIndex.load(folder)) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_while_an_index_is_replaced_there_always_is_one(tmp_path: Path) -> None:
    folder, done, counts = build().save(tmp_path / "index"), threading.Event(), set()
    replacement = build(9)

    def read() -> None:
        while not done.is_set():
            counts.add(len(ProductIndex.load(folder)))

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(read)
        for _ in range(50):
            replacement.save(folder, overwrite=True)
            build().save(folder, overwrite=True)
        done.set()
        reading.result()
    assert counts <= {8, 9}


@pytest.mark.parametrize("replaced", [0, 1, 2])
def test_an_index_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: int
) -> None:
    folder = build(9).save(tmp_path / "index")
    other = ProductIndex.build(vectors(9, seed=1), list("abcdefghi"), model_fingerprint="model-2")
    names = ["_read_description", "_read_faiss", "_read_table"]
    genuine = getattr(index_files, names[replaced])

    def read(*arguments: Any) -> Any:
        monkeypatch.undo()
        found = genuine(*arguments)
        other.save(folder, overwrite=True)
        return found

    monkeypatch.setattr(index_files, names[replaced], read)
    loaded = ProductIndex.load(folder)
    loaded.check_model("model-2")
    assert loaded.product_ids == list("abcdefghi")
    np.testing.assert_array_equal(loaded.product("c").vector, vectors(9, seed=1)[2])


def test_what_a_killed_save_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    left, held = tmp_path / ".index.new-0123", tmp_path / ".index.new-4567"
    for path in (left, held):
        path.mkdir()
        (path / "index.faiss").write_bytes(b"half")
    with files_module._held(held):
        build().save(tmp_path / "index")
        assert not left.exists() and (held / "index.faiss").exists()
    build().save(tmp_path / "index", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_folders_are_replaced_where_names_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_exchanged", lambda *_: False)
    folder = build().save(tmp_path / "index")
    build(9).save(folder, overwrite=True)
    assert len(ProductIndex.load(folder)) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_changed_index_is_whole_although_its_folder_was_replaced_meanwhile(tmp_path: Path) -> None:
    folder = build(9).save(tmp_path / "index")
    index = ProductIndex.load(folder)
    ProductIndex.build(vectors(9, seed=1), list("abcdefghi"), model_fingerprint="model-2").save(folder, overwrite=True)
    index.update(vectors(1, seed=2), ["new"], model_fingerprint="model-1")
    loaded = ProductIndex.load(index.save(folder, overwrite=True))
    assert loaded.product_ids == [*(f"p{row}" for row in range(9)), "new"]
    np.testing.assert_array_equal(loaded.product("p3").vector, vectors(9)[3])


@pytest.mark.parametrize("name", ["index.json", "index.faiss", "products.arrow"])
def test_missing_and_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    folder = build().save(tmp_path / "index")
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        ProductIndex.load(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        ProductIndex.load(folder)


def test_files_of_two_indexes_are_not_mixed(tmp_path: Path) -> None:
    one, two = build().save(tmp_path / "one"), build(9).save(tmp_path / "two")
    (two / "products.arrow").replace(one / "products.arrow")
    with pytest.raises(ValueError, match=r"products\.arrow is damaged or of another index"):
        ProductIndex.load(one)


def test_a_later_layout_is_refused(tmp_path: Path) -> None:
    folder = build().save(tmp_path / "index")
    description = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**description, "schema_version": 99}))
    with pytest.raises(ValueError, match="schema version 99, this mmfusion reads up to 3"):
        ProductIndex.load(folder)


def test_nan_in_metadata_is_a_missing_value() -> None:
    nested = [[1.0, np.nan], None, [np.nan]]
    kind = pa.struct([("x", pa.float64())])
    metadata = {"price": [np.nan, 2.0, None], "sizes": nested, "at": pa.array([{"x": np.nan}, {"x": 1.0}, None], kind)}
    hits = build(3, metadata=pa.table(metadata)).search(vectors(1), 3)[0]
    found = {hit.product_id: hit.metadata for hit in hits}
    assert found["p0"] == {"price": None, "sizes": [1.0, None], "at": {"x": None}}
    assert found["p1"] == {"price": 2.0, "sizes": None, "at": {"x": 1.0}}
    assert found["p2"] == {"price": None, "sizes": [None], "at": None}
