"""An index that changes: updates, deletions, filters and compaction, against a dictionary of vectors."""

import re
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmfusion.commands.index as index_command
from mmfusion.embedding import EmbeddedCatalogue, Manifest, Provenance
from mmfusion.embedding.shards import entry_of, write_shard
from mmfusion.retrieval import FilterError, ProductIndex, choose, choose_index, segment
from mmfusion.retrieval.choose import physical_memory

DIMENSION = 8
KINDS = [
    *("Flat", "HNSW16", "IVF4,Flat", "IVF4,SQ8", "IVF4,PQ4x4", "OPQ4,IVF4,PQ4x4", "PCA4,Flat", "SQ8", "RaBitQ"),
    *("IVF4,RaBitQ", "OPQ4,IVF4,PQ4x4,Refine(SQfp16)", "SQ8,RFlat", "RaBitQ,Refine(SQ8)"),
    *("RR8,RaBitQ,RFlat", "IVF4,RaBitQ,Refine(SQ8)", "IVF4,PQ4x4fs,RFlat", "HNSW16_SQ8,RFlat"),
]


def vectors(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def metadata(ids: list[str]) -> pa.Table:
    prices = [None if name.endswith("7") else len(name) * 10 for name in ids]
    return pa.table({"title": ids, "price": pa.array(prices, pa.int64()), "kind": [name[0] for name in ids]})


def build(count: int = 60, **arguments: Any) -> ProductIndex:
    ids = [f"{'ab'[row % 2]}{row}" for row in range(count)]
    options = {"model_fingerprint": "m", "metadata": metadata(ids), "factory": "Flat", **arguments}
    # All clusters and all candidates, so that nothing is missed.
    needed = {"IVF": "nprobe=4", ",R": f"k_factor_rf={count}"}
    parameters = ",".join(value for name, value in needed.items() if re.search(f"{name}(?!aBitQ)", options["factory"]))
    return ProductIndex.build(vectors(count), ids, search_parameters=parameters, **options)


def update(index: ProductIndex, ids: list[str], seed: int) -> None:
    index.update(vectors(len(ids), seed), ids, model_fingerprint="m", metadata=metadata(ids))


def found(index: ProductIndex, k: int = 1000, **options: Any) -> list[dict[str, float]]:
    hits = index.search(vectors(3, seed=99), k, **options)
    return [{hit.product_id: round(hit.score, 4) for hit in one} for one in hits]


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.lists(st.integers(0, 25), min_size=1, max_size=4, unique=True), st.integers(1, 1000)
        ),
        max_size=6,
    )
)
@settings(max_examples=25, deadline=None)
def test_any_changes_give_what_a_dictionary_gives(changes: list[tuple[bool, list[int], int]]) -> None:
    index = build(20)
    held = dict(zip(index.product_ids, vectors(20), strict=True))
    for add, numbers, seed in changes:
        ids = [f"{'ab'[number % 2]}{number}" for number in numbers]
        if add:
            update(index, ids, seed)
            held.update(zip(ids, vectors(len(ids), seed), strict=True))
        elif all(name in held for name in ids):
            index.delete(ids)
            for name in ids:
                del held[name]
        else:
            with pytest.raises(ValueError, match="is not in the index; nothing was deleted"):
                index.delete(ids)
    queries = vectors(3, seed=99)
    expected = [{name: round(float(query @ held[name]), 4) for name in held} for query in queries]
    for one in (index, index.compact()) if held else (index,):
        assert len(one) == len(held) and sorted(one.product_ids) == sorted(held)
        for mine, theirs in zip(found(one), expected, strict=True):
            assert mine == pytest.approx(theirs, abs=2e-4)


def test_ids_are_looked_up_one_by_one_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    index = build(40)
    index.delete(["a0", "b5"])
    base = index._segments[0]
    ids = pa.array(["b7", "a0", "nothing", "", "b5", "b39", "a2"])
    one_by_one = base.rows_of(ids)
    monkeypatch.setattr(segment, "_FEW_IDS", 0)
    assert base.rows_of(ids).tolist() == one_by_one.tolist() == [7, -1, -1, -1, -1, 39, 2]


@pytest.mark.parametrize("factory", KINDS)
def test_every_kind_of_index_is_changed_saved_and_compacted(tmp_path: Path, factory: str) -> None:
    built = build(300, factory=factory)
    built.save(tmp_path / "index")
    index = ProductIndex.load(tmp_path / "index")
    update(index, ["a0", "new"], seed=5)
    index.delete([f"b{row}" for row in range(1, 200, 2)])
    before = found(index)
    assert len(index) == 201 and "b1" not in before[0] and "b201" in before[0] and "new" in before[0]
    # Of an exact vector next to a lossy base, the exact one counts.
    queries, added = vectors(3, seed=99), vectors(2, seed=5)
    assert before[0]["a0"] == pytest.approx(float(queries[0] @ added[0]), abs=1e-3)
    index.save(tmp_path / "index", overwrite=True)
    again = ProductIndex.load(tmp_path / "index")
    assert found(again) == before and again.description == index.description
    compacted = again.compact()
    assert len(compacted.description.rows) == 1 and compacted.description.rows[0] == 201
    after = found(ProductIndex.load(compacted.save(tmp_path / "compacted")))
    for mine, theirs in zip(after, before, strict=True):
        assert set(mine) == set(theirs)
        others = set(mine) - {"a0", "new"}
        assert {name: mine[name] for name in others} == pytest.approx(
            {name: theirs[name] for name in others}, abs=0.2 if "PCA" in factory else 2e-4
        )


@pytest.mark.parametrize(
    ("first_stage", "refined"), [("IVF8,PQ4x4", "RFlat"), ("RaBitQ", "Refine(SQ8)"), ("SQ4", "RFlat")]
)
def test_rescoring_finds_more_than_its_first_stage(tmp_path: Path, first_stage: str, refined: str) -> None:
    embeds, ids = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32), [str(row) for row in range(3000)]
    queries, probes = embeds[:200] + 0.1, "nprobe=8" if "IVF" in first_stage else ""
    exact = np.argsort(-(queries @ embeds.T), axis=1)[:, :100]

    def recall(index: ProductIndex) -> float:
        _, rows = index.search_rows(queries, 100)
        return float(np.mean([len(np.intersect1d(*pair)) / 100 for pair in zip(rows, exact, strict=True)]))

    def made(factory: str, parameters: list[str]) -> ProductIndex:
        chosen = ",".join(filter(None, parameters))
        return ProductIndex.build(embeds, ids, model_fingerprint="m", factory=factory, search_parameters=chosen)

    plain = made(first_stage, [probes])
    rescored = [made(f"{first_stage},{refined}", [probes, f"k_factor_rf={factor}"]) for factor in (2, 8)]
    few, many = map(recall, rescored)
    assert recall(plain) < few < many and many > 0.95
    assert plain.description.recall_at_100 < rescored[1].description.recall_at_100
    loaded = ProductIndex.load(rescored[1].save(tmp_path / "index"))
    assert loaded.description.search_parameters.endswith("k_factor_rf=8")
    for index in (loaded, loaded.compact()):
        assert recall(index) == many
    # What is deleted takes no place among the candidates.
    loaded.delete(sorted({str(row) for row in exact[:, 0]}))
    left = np.flatnonzero(loaded._segments[0].live)
    exact = left[np.argsort(-(queries @ embeds[left].T), axis=1)[:, :100]]
    assert recall(loaded) > 0.95


@pytest.mark.parametrize(
    ("factory", "parameters", "message"),
    [
        ("SQ8,RFlat", "k_factor_rf=0.5", r"k_factor_rf is '0\.5'; give a number of at least 1"),
        ("SQ8,RFlat", "k_factor_rf=nan", "k_factor_rf is 'nan'"),
        ("SQ8,RFlat", "k_factor_rf=inf", "k_factor_rf is 'inf'"),
        ("SQ8,RFlat", "k_factor_rf=four", "k_factor_rf is 'four'"),
        ("SQ8", "k_factor_rf=4", "'k_factor_rf=4' do not fit this index"),
        ("IVF4,SQ8,RFlat", "nprobe=0,k_factor_rf=4", "nprobe is '0'"),
        ("IVF4,SQ8,RFlat", "nprobe=4,k_factor_rf", "do not fit this index"),
        ("HNSW16,RFlat", "nprobe=4", "'nprobe=4' do not fit this index"),
    ],
)
def test_search_parameters_that_cannot_be_are_refused(factory: str, parameters: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ProductIndex.build(
            vectors(200),
            list(map(str, range(200))),
            model_fingerprint="m",
            factory=factory,
            search_parameters=parameters,
        )
    assert "\n" not in str(caught.value)


def test_unchanged_files_are_not_written_again(tmp_path: Path) -> None:
    index = ProductIndex.load(build().save(tmp_path / "index"))
    before = (tmp_path / "index" / "index.faiss").stat().st_ino
    update(index, ["new"], seed=1)
    index.save(tmp_path / "index", overwrite=True)
    assert (tmp_path / "index" / "index.faiss").stat().st_ino == before
    assert {path.name for path in (tmp_path / "index").iterdir()} == {
        *("index.faiss", "products.arrow", "index.json", "delta.faiss", "delta.arrow")
    }


@pytest.mark.parametrize("damage", [b"", b"half", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<i8', ('" + b" " * 200])
def test_a_damaged_list_of_deleted_products_is_named(tmp_path: Path, damage: bytes) -> None:
    index = build()
    index.delete(["a0"])
    folder = index.save(tmp_path / "index")
    (folder / "deleted.npy").write_bytes(damage)
    with pytest.raises(ValueError, match=r"deleted\.npy is damaged"):
        ProductIndex.load(folder)


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,RaBitQ,Refine(SQ8)", "IVF4,PQ4x4fs,RFlat"])
def test_an_index_without_products_is_compacted_and_filled_again(tmp_path: Path, factory: str) -> None:
    index = build(300, factory=factory)
    index.delete(index.product_ids)
    empty = ProductIndex.load(index.compact().save(tmp_path / "index"))
    assert len(empty) == 0 and found(empty) == [{}] * 3
    update(empty, [f"a{row}" for row in range(300)], seed=5)
    assert set(found(empty.compact())[0]) == {f"a{row}" for row in range(300)}


@pytest.mark.parametrize("factory", KINDS)
@pytest.mark.parametrize("exact_below", [0, 20_000])
def test_filters_find_exactly_the_rows_that_fulfil_them(
    factory: str, exact_below: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "_EXACT_BELOW", exact_below)
    index = build(300, factory=factory)
    update(index, ["c1", "c20"], seed=3)
    index.delete(["a4"])
    every = {name for one in found(index) for name in one}
    assert len(every) == 301
    cases: list[tuple[Any, Any]] = [
        ([("kind", "=", "a")], lambda name: name[0] == "a"),
        ([("kind", "in", ["a", "c"]), ("price", "<=", 30)], lambda n: n[0] in "ac" and n[-1] != "7" and len(n) < 4),
        ([("price", "<", 30.5)], lambda n: n[-1] != "7" and len(n) <= 3),
        ([[["kind", "=", "c"]], [["title", "=", "b1"]]], lambda n: n[0] == "c" or n == "b1"),
        ([("kind", "not in", ["a", "b"])], lambda n: n[0] == "c"),
        ([("title", "!=", "b1"), ("kind", "!=", "a")], lambda n: n != "b1" and n[0] != "a"),
        ([("price", ">", 1000)], lambda n: False),
        ([("price", "in", [None, 20])], lambda n: n[-1] != "7" and len(n) == 2),
        ([("price", "in", [20.0, 20.5])], lambda n: n[-1] != "7" and len(n) == 2),
    ]
    for conditions, fulfils in cases:
        for one in found(index, filter=conditions):
            assert set(one) == {name for name in every if fulfils(name)}, conditions
    (best,) = index.search(vectors(1, seed=99), 1, filter=[("kind", "=", "b")])
    scores = found(index, filter=[("kind", "=", "b")])[0]
    assert scores[best[0].product_id] == max(scores.values())


@pytest.mark.parametrize("factory", [*KINDS, "PCA4,HNSW16", "IVF16,SQ8", "IVF16,PQ4x4fs"])
@pytest.mark.parametrize("deleted", [False, True])
def test_products_far_from_the_query_are_found_where_nothing_nearer_is_wanted(
    factory: str, deleted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "_EXACT_BELOW", 0)
    embeds, query = vectors(2000), vectors(1, seed=99)
    far = np.argsort(embeds @ query[0])[:50]
    ids, kinds = [str(row) for row in range(2000)], np.where(np.isin(np.arange(2000), far), "far", "near")
    table = pa.table({"kind": kinds})
    index = ProductIndex.build(embeds, ids, model_fingerprint="m", factory=factory, metadata=table)
    if deleted:
        index.delete([name for name, kind in zip(ids, kinds, strict=True) if kind == "near"])
    for k in (1, 10, 50, 60):
        hits = index.search(query, k, filter=None if deleted else [("kind", "=", "far")])[0]
        assert len({hit.product_id for hit in hits}) == min(k, 50)
        assert {int(hit.product_id) for hit in hits} <= set(far.tolist())


@pytest.mark.parametrize("factory", ["IVF16,SQ8", "HNSW16", "IVF16,RaBitQ,Refine(SQ8)", "PCA4,HNSW16,RFlat"])
def test_as_many_products_are_found_as_there_are(factory: str) -> None:
    ids = [str(row) for row in range(2000)]
    index = ProductIndex.build(vectors(2000), ids, model_fingerprint="m", factory=factory)
    assert {hit.product_id for hit in index.search(vectors(1, seed=99), 2000)[0]} == set(ids)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([("colour", "=", "red")], r"'colour'; this index has title, price, kind"),
        ([("kind", "~", "a")], r"operator '~'; use one of = =="),
        ([("price", "<", "cheap")], r"'price', which is int64, with 'cheap'"),
        ([("kind", "in", "a")], r"'kind'.*with 'a'"),
        ([("price", "<", 10**30)], r"'price', which is int64, with 10{30}"),
        ([("kind", "=", "\ud800")], r"'kind', which is string, with '.ud800'"),
        ([("kind", "=")], r"give \(field, operator, value\)"),
        ([], r"the filter is \[\]"),
        ("kind = a", r"give a list"),
    ],
)
def test_filters_that_mean_nothing_are_refused(conditions: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        found(build(), filter=conditions)


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [("<", 49.99, "a"), ("<=", 49.99, "ab"), ("=", 49.99, "b"), (">", 49.995, "c"), ("in", [49.99, 50], "bc")],
)
def test_prices_in_decimals_are_compared_with_numbers(operator: str, value: Any, expected: str) -> None:
    prices = pa.array([Decimal("1.5"), Decimal("49.99"), Decimal("50"), None], pa.decimal128(10, 2))
    index = ProductIndex.build(vectors(4), list("abcd"), model_fingerprint="m", metadata=pa.table({"price": prices}))
    assert set(found(index, filter=[("price", operator, value)])[0]) == set(expected)


def test_an_index_without_metadata_says_so() -> None:
    with pytest.raises(FilterError, match="has no metadata"):
        found(build(metadata=None), filter=[("kind", "=", "a")])


def test_updates_of_another_model_dimension_or_columns_are_refused() -> None:
    index = build()
    new = vectors(1)
    with pytest.raises(ValueError, match="'other'"):
        index.update(new, ["x"], model_fingerprint="other")
    with pytest.raises(ValueError, match="dimension 5 but the index 8"):
        index.update(new[:, :5], ["x"], model_fingerprint="m")
    with pytest.raises(ValueError, match="the index has product_id: string; metadata"):
        index.update(new, ["x"], model_fingerprint="m")
    for table in (metadata(["x"]).append_column("more", pa.array([1])), metadata(["x"]).drop(["price"])):
        with pytest.raises(ValueError, match="the index has product_id: string; metadata"):
            index.update(new, ["x"], model_fingerprint="m", metadata=table)
    with pytest.raises(ValueError, match="the index has product_id: string; metadata"):
        weights = np.ones((1, 2), np.float32)
        index.update(new, ["x"], model_fingerprint="m", metadata=metadata(["x"]), modality_weights=weights)
    with pytest.raises(ValueError, match="row 0 holds a NaN"):
        index.update(new * np.nan, ["x"], model_fingerprint="m", metadata=metadata(["x"]))
    with pytest.raises(ValueError, match="'x' appears twice"):
        index.update(vectors(2), ["x", "x"], model_fingerprint="m")
    with pytest.raises(ValueError, match="'y' is not in the index"):
        index.delete(["a0", "y"])
    with pytest.raises(ValueError, match="product_ids is the text 'a0'; give a list"):
        index.delete("a0")
    with pytest.raises(ValueError, match="product id 7 in row 1 is not a string"):
        index.delete(["a0", 7])  # type: ignore[list-item]
    assert len(index) == 60 and "a0" in index.product_ids


def test_searches_go_on_while_another_thread_changes_the_index() -> None:
    index, errors, done = build(300), [], threading.Event()

    def search() -> None:
        while not done.is_set():
            try:
                for hits in index.search(vectors(2, seed=1), 50):
                    assert len(hits) == 50 and len({hit.product_id for hit in hits}) == 50
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for seed in range(60):
        update(index, [f"n{seed}", f"n{seed // 2}"][: 1 + seed % 2], seed)
        index.delete([f"{'ab'[seed % 2]}{seed}"])
    done.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert len(index) == 300


def test_recall_is_measured_when_an_index_is_built() -> None:
    assert build().description.recall_at_100 == 1.0
    embeds, ids = vectors(2000), [str(row) for row in range(2000)]
    for factory, parameters in (("IVF16,Flat", "nprobe=2"), ("HNSW16", "efSearch=128"), ("IVF16,Flat", "nprobe=16")):
        index = ProductIndex.build(
            iter([embeds[:700], embeds[700:]]),
            ids,
            model_fingerprint="m",
            factory=factory,
            search_parameters=parameters,
            train_size=2000,
        )
        chosen = np.unique(np.linspace(0, 699, 256).astype(np.int64))
        exact = np.argsort(-(embeds[chosen] @ embeds.T), axis=1)[:, :100]
        _, mine = index.search_rows(embeds[chosen], 100)
        expected = np.mean([len(np.intersect1d(*pair)) / 100 for pair in zip(mine, exact, strict=True)])
        assert index.description.recall_at_100 == pytest.approx(expected, abs=1e-3)
        assert (index.description.recall_at_100 > 0.999) == (parameters == "nprobe=16") or "HNSW" in factory


@pytest.mark.parametrize(("count", "at_most", "step"), [(10, 3, 4), (10, 100, 1), (7, 7, 1), (1, 5, 1), (100, 9, 12)])
def test_the_recipe_samples_all_shards(
    count: int, at_most: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provenance, embeds = Provenance("m", "b", "32-true", DIMENSION, "float32"), vectors(count)
    entries = []
    for first in range(0, count, 4):
        rows = np.arange(first, min(first + 4, count))
        path = tmp_path / f"{first}.parquet"
        contents, weights = np.zeros((len(rows), 2), np.uint64), np.ones((len(rows), 2), np.float32)
        write_shard(path, provenance, list(map(str, rows)), contents, embeds[rows], weights)
        entries.append(entry_of(path))
    manifest = Manifest(1, provenance, "m", None, "c", None, count, tuple(entries), "test")
    monkeypatch.setattr(index_command, "TRAIN_SIZE", at_most)
    sample = index_command._sample(EmbeddedCatalogue(tmp_path, manifest))
    np.testing.assert_array_equal(sample, embeds[::step])


def test_a_sample_of_a_sorted_catalogue_trains_for_all_of_it() -> None:
    drawn = np.random.default_rng(0)
    centres = drawn.normal(size=(8, 16))
    embeds = (np.repeat(centres, 500, axis=0) + 0.6 * drawn.normal(size=(4000, 16))).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    exact = np.argsort(-(embeds[::10] @ embeds.T), axis=1)[:, :100]

    def recalls(given: Any, **options: Any) -> tuple[float, float]:
        index = ProductIndex.build(
            given,
            [str(row) for row in range(4000)],
            model_fingerprint="m",
            factory="IVF32,SQ8",
            search_parameters="nprobe=4",
            train_size=500,
            **options,
        )
        _, rows = index.search_rows(embeds[::10], 100)
        true = np.mean([len(np.intersect1d(*pair)) / 100 for pair in zip(rows, exact, strict=True)])
        return float(true), index.description.recall_at_100

    first, sampled, whole = (
        recalls(iter(np.split(embeds, 8))),
        recalls(iter(np.split(embeds, 8)), sample=embeds[::8]),
        recalls(embeds),
    )
    assert first[0] < 0.8 < 0.9 < sampled[0]
    for true, told in (sampled, whole):
        assert true > 0.9 and told == pytest.approx(true, abs=0.03)


@pytest.mark.parametrize(
    ("count", "dimension", "gib", "kind"),
    [
        (1, 384, 1, "Flat"),
        (50_000, 384, 1, "Flat"),
        (1_000_000, 384, 8, "HNSW32"),
        (1_000_000, 384, 1, "IVF2048,SQ8"),
        (10_000_000, 384, 64, "IVF8192,SQ8"),
        (10_000_000, 384, 1, "IVF8192,RaBitQ,Refine(SQ8)"),
        (10_000_000, 384, 0.25, "IVF8192,PQ16,Refine(SQ8)"),
        (40_000, 384, 0.03, "IVF512,SQ8"),
    ],
)
def test_the_choice_fits_the_budget(count: int, dimension: int, gib: float, kind: str) -> None:
    choice = choose_index(count, dimension, int(gib * 2**30))
    assert choice.factory == kind and choice.num_bytes <= gib * 2**30
    made = faiss.index_factory(dimension, choice.factory, faiss.METRIC_INNER_PRODUCT)
    faiss.ParameterSpace().set_index_parameters(made, choice.search_parameters)


@pytest.mark.parametrize(
    ("count", "bits", "gib", "kind"),
    [
        (50_000, 8, 1, "SQ8"),
        (50_000, 1, 1, "RaBitQ"),
        (1_000_000, 8, 64, "IVF2048,SQ8"),
        (1_000_000, 8, 0.1, "IVF2048,RaBitQ,Refine(SQ8)"),
        (1_000_000, 1, 64, "IVF2048,RaBitQ"),
        (1_000_000, 1, 0.03, "IVF2048,PQ16"),
    ],
)
def test_embeddings_in_fewer_bits_are_not_blown_up(count: int, bits: int, gib: float, kind: str) -> None:
    choice = choose_index(count, 384, int(gib * 2**30), bits=bits)
    assert choice.factory == kind and choice.num_bytes <= gib * 2**30
    made = faiss.index_factory(384, choice.factory, faiss.METRIC_INNER_PRODUCT)
    faiss.ParameterSpace().set_index_parameters(made, choice.search_parameters)


def test_a_budget_that_nothing_fits_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"at least 0\.1[0-9] GiB in any index, the budget is 0\.05 GiB"):
        choose_index(10_000_000, 384, int(0.05 * 2**30))


def test_a_container_has_the_memory_that_its_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert physical_memory() > 2**30
    monkeypatch.setattr(choose, "memory_limits", lambda: iter([(Path("a"), 2**40, 0), (Path("b"), 2**29, 0)]))
    assert physical_memory() == 2**29


def test_bytes_are_estimated_well(tmp_path: Path) -> None:
    count = 60_000
    embeds = np.random.default_rng(0).normal(size=(count, 16)).astype(np.float32)
    for gib in (1.0, count * 40 / 2**30):
        choice = choose_index(count, 16, int(gib * 2**30))
        index = ProductIndex.build(
            embeds, [str(i) for i in range(count)], model_fingerprint="m", factory=choice.factory
        )
        size = (index.save(tmp_path / choice.factory) / "index.faiss").stat().st_size
        assert size <= 1.25 * choice.num_bytes + 2**20
    # With rescoring, the bytes are those of the first stage; the rest stays on disk, a byte per component.
    choice = choose_index(count, 16, count * 20)
    index = ProductIndex.build(embeds, [str(i) for i in range(count)], model_fingerprint="m", factory=choice.factory)
    size = (index.save(tmp_path / "rescored") / "index.faiss").stat().st_size - count * 16
    assert "Refine" in choice.factory and 0.9 * choice.num_bytes <= size <= 1.25 * choice.num_bytes
