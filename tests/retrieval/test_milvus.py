"""An index in Milvus, for real (Milvus Lite): the same hits, filters, changes and refusals as a FAISS index."""

import datetime
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from commands import Nothing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import run_to_end, started

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from milvus_indexes import flat, in_milvus, metadata, names, vectors, weights

from mmfusion.commands import run_command
from mmfusion.retrieval import FilterError, Hit, MilvusError, MilvusIndex, ProductIndex
from mmfusion.retrieval.milvus import upload

CHECKOUT = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
ODD = [
    "a,b",
    "line\nbreak",
    "🧥 parka",
    'quote"d',
    "",
    "قميص",
    "连衣裙",
    "0042",
    "it's",
    "back\\slash",
    "tab\t\r",
    "\\",
]
ODD += ['") or (product_id != "', "{price}", "%_", "nul\0", "\x0b\x1b\u2028", "\\n", "$meta", "true", "x" * 65_535]


def assert_same(mine: list[list[Hit]], theirs: list[list[Hit]]) -> None:
    assert [len(hits) for hits in mine] == [len(hits) for hits in theirs]
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose([hit.score for hit in one], [hit.score for hit in other], atol=1e-5)
        for hit, expected in zip(one, other, strict=True):
            assert (hit.product_id, hit.rank) == (expected.product_id, expected.rank)
            assert hit.modality_weights == expected.modality_weights and hit.metadata == expected.metadata


def test_hits_are_those_of_an_exact_index(tmp_path: Path) -> None:
    index = flat(700)
    index.update(
        vectors(2, seed=5),
        ["a0", "new"],
        model_fingerprint="m",
        metadata=metadata(["a0", "new"]),
        modality_weights=weights(2),
    )
    index.delete(["b1"])
    queries = vectors(5, seed=1)
    with index.to("milvus", uri=tmp_path / "index.db") as milvus:
        assert len(milvus) == len(index) == 700
        for k in (1, 100, 5000):
            assert_same(milvus.search(queries, k), index.search(queries, k))
        assert milvus.search(queries[:0], 3) == []
        chosen: Any = [("kind", "in", ["a", "c"]), ("price", "<", 40.5)]
        assert_same(milvus.search(queries, 20, filter=chosen), index.search(queries, 20, filter=chosen))


def test_equal_products_come_in_the_order_of_evaluation(tmp_path: Path) -> None:
    same, ids = np.repeat(vectors(1), 40, axis=0), [str(number) for number in range(40)]
    index = ProductIndex.build(same, ids, model_fingerprint="m")
    with index.to("milvus", uri=tmp_path / "index.db") as milvus:
        found = milvus.search(vectors(1, seed=3), 40)
        assert [hit.product_id for hit in found[0]] == sorted(ids, reverse=True)
        assert_same(found, index.search(vectors(1, seed=3), 40))


def test_many_queries_are_asked_in_several_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = flat()
    queries = vectors(50, seed=2)
    with index.to("milvus", uri=tmp_path / "index.db") as milvus:
        monkeypatch.setattr("mmfusion.retrieval.milvus.index._HITS_PER_REQUEST", 7)
        assert_same(milvus.search(queries, 3), index.search(queries, 3))


def test_a_request_holds_no_more_queries_than_servers_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    with in_milvus(tmp_path, 3) as milvus:
        monkeypatch.setattr(milvus._connection, "ask", lambda method, data, **_: asked.append(len(data)) or [])
        milvus.search(np.zeros((40_000, 16), np.float32), 1)
    assert max(asked) <= 16_384 and sum(asked) == 40_000


COLUMNS = {
    "text": (pa.string(), st.sampled_from(["", "a", "b", 'a"', "a'\\", "\n", "🧥", '") or (text != "', "\\n", None])),
    "whole": (pa.int64(), st.sampled_from([-3, 0, 1, 2, 2**53, None])),
    "small": (pa.int8(), st.sampled_from([-128, 0, 127, None])),
    "big": (pa.uint64(), st.sampled_from([0, 2**50, None])),
    "single": (pa.float32(), st.sampled_from([0.1, -2.5, 1e30, 3.0, None])),
    "double": (pa.float64(), st.sampled_from([0.1, -2.5, 1e300, 3.0, None])),
    "flag": (pa.bool_(), st.sampled_from([True, False, None])),
    "day": (pa.date32(), st.sampled_from([datetime.date(1969, 7, 20), datetime.date(2026, 1, 1), None])),
    "clock": (pa.time64("us"), st.sampled_from([datetime.time(9), datetime.time(18, 30, 0, 5), None])),
    "in": (
        pa.timestamp("us"),
        st.sampled_from([datetime.datetime(1960, 1, 1), datetime.datetime(2026, 1, 1, 2), None]),
    ),
    "none": (pa.null(), st.none()),
    "with space": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b", None])),
    "tags": (pa.list_(pa.string()), st.sampled_from([["a"], [], None])),
}
TEXTS = ["2026-01-01", "2026-01-01T02:00:00Z", "1969-07-20T12:00", "9999-12-31", "18:30", "2026-13-01", "a"]
NUMBERS = [0, 1, 2, -3, 127, 300, 2**53, 0.1, 2.5, -2.5, 3.0, 1e30, -1e300, float("inf"), float("nan")]
VALUES = st.one_of(st.sampled_from(NUMBERS), *(values for _, values in COLUMNS.values()))


@st.composite
def conditions(draw: st.DrawFn) -> tuple[str, str, Any]:
    name = draw(st.sampled_from([*COLUMNS, "nothing"]))
    # Mostly values of the column's own type; others are refused by both.
    own = COLUMNS[name][1] if name in COLUMNS else VALUES
    if pa.types.is_integer(COLUMNS[name][0]) if name in COLUMNS else False:
        own = st.one_of(own, st.sampled_from(NUMBERS))
    value = st.one_of(own, own, own, VALUES) if draw(st.integers(0, 9)) == 0 else own
    if pa.types.is_temporal(COLUMNS[name][0]) if name in COLUMNS else False:
        own = st.one_of(own, st.sampled_from(TEXTS))
    if name == "tags" and draw(st.booleans()):
        return name, "contains", draw(st.sampled_from(["a", "b", '"', None, ["a"], 1]))
    given = draw(st.sampled_from(["=", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "contains"]))
    return name, given, draw(st.lists(value, max_size=3) if "in" in given else value)


FILTERS = st.one_of(
    st.lists(conditions(), min_size=1, max_size=3),
    st.lists(st.lists(conditions(), min_size=1, max_size=2), min_size=1, max_size=3),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProductIndex, MilvusIndex]]:
    """A FAISS and a Milvus index of 120 products with columns of all types and many nulls."""
    rng = np.random.default_rng(0)
    drawn = {}
    for name, (kind, values) in COLUMNS.items():
        known = [None] if isinstance(values, type(st.none())) and kind == pa.null() else list(values.elements)
        drawn[name] = pa.array([known[place] for place in rng.integers(0, len(known), 120)], kind)
    index = ProductIndex.build(vectors(120), names(120), model_fingerprint="m", metadata=pa.table(drawn))
    milvus = index.to("milvus", uri=tmp_path_factory.mktemp("pair") / "index.db")
    yield index, milvus
    milvus.close()


def assert_same_filtered(pair: tuple[ProductIndex, MilvusIndex], filter: list[Any]) -> None:
    index, milvus = pair
    query = vectors(1, seed=9)
    try:
        expected = index.search(query, 200, filter=filter)
    except FilterError as refusal:
        with pytest.raises(FilterError) as mine:
            milvus.search(query, 200, filter=filter)
        assert str(mine.value) == str(refusal)
    else:
        assert_same(milvus.search(query, 200, filter=filter), expected)


@pytest.mark.parametrize("name", COLUMNS)
def test_each_comparison_means_what_it_means_with_faiss(pair: tuple[ProductIndex, MilvusIndex], name: str) -> None:
    kind, values = COLUMNS[name]
    known = [None] if kind == pa.null() else list(values.elements)
    further = NUMBERS if kind == pa.int64() else TEXTS if pa.types.is_temporal(kind) or name == "tags" else []
    for value in [*known, *further]:
        for operator in ("=", "!=", "<", "<=", ">", ">=", "contains"):
            assert_same_filtered(pair, [(name, operator, value)])
    for operator in ("in", "not in"):
        for chosen in ([], known[:1], known[1:], known):
            assert_same_filtered(pair, [(name, operator, chosen)])


@given(FILTERS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_filters_let_through_what_they_let_through_with_faiss(
    pair: tuple[ProductIndex, MilvusIndex], filter: list[Any]
) -> None:
    assert_same_filtered(pair, filter)


@pytest.mark.parametrize(
    "conditions", [[], "kind = a", [("kind", "=")], [("colour", "=", "red")], [("kind", "~", "a")]]
)
def test_filters_that_mean_nothing_are_refused_in_the_same_words(tmp_path: Path, conditions: Any) -> None:
    index = flat()
    with index.to("milvus", uri=tmp_path / "index.db") as milvus:
        assert_same_filtered((index, milvus), conditions)


def test_an_index_without_metadata_says_so(tmp_path: Path) -> None:
    with in_milvus(tmp_path, metadata=None, modality_weights=None) as milvus:
        assert milvus.search(vectors(1), 1) == [[Hit("a0", pytest.approx(1, abs=1e-5), 1)]]
        with pytest.raises(FilterError, match="has no metadata"):
            milvus.search(vectors(1), 1, filter=[("kind", "=", "a")])


def test_changes_are_those_of_an_exact_index_and_are_there_when_it_is_opened_again(tmp_path: Path) -> None:
    index = flat()
    queries = vectors(3, seed=99)

    def change(one: Any) -> None:
        ids = ["a0", "new", "b7"]
        one.update(vectors(3, 5), ids, model_fingerprint="m", metadata=metadata(ids), modality_weights=weights(3))
        one.delete(["b1", "new"])
        one.update(vectors(1, 6), ["b1"], model_fingerprint="m", metadata=metadata(["b1"]), modality_weights=weights(1))

    with index.to("milvus", uri=tmp_path / "index.db") as milvus:
        change(milvus)
        change(index)
        assert len(milvus) == len(index) == 60
        assert_same(milvus.search(queries, 100), index.search(queries, 100))
        for one in (milvus, index):
            with pytest.raises(ValueError, match=r"product 'nothing' is not in the index; nothing was deleted"):
                one.delete(["a0", "nothing"])
            with pytest.raises(ValueError, match=r"product id 7 in row 1 is not a string"):
                one.delete(["a0", 7])
        milvus.delete([])
    with MilvusIndex.connect(tmp_path / "index.db") as milvus:
        assert_same(milvus.search(queries, 100), index.search(queries, 100))
        milvus.delete(index.product_ids)
        assert len(milvus) == 0 and milvus.search(queries, 5) == [[], [], []]


def test_searches_go_on_while_another_thread_changes_the_index(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    done = threading.Event()
    with in_milvus(tmp_path, 300) as milvus:

        def search() -> None:
            while not done.is_set() and not errors:
                try:
                    for hits in milvus.search(vectors(2, seed=1), 50, filter=[("kind", "!=", "nothing")]):
                        assert len(hits) == 50 and len({hit.product_id for hit in hits}) == 50
                except BaseException as error:
                    errors.append(error)

        threads = [threading.Thread(target=search) for _ in range(2)]
        for thread in threads:
            thread.start()
        for seed in range(15):
            new = {"metadata": metadata([f"n{seed}"]), "modality_weights": weights(1)}
            milvus.update(vectors(1, seed), [f"n{seed}"], model_fingerprint="m", **new)
            milvus.delete([f"{'abc'[seed % 3]}{seed}"])
        done.set()
        for thread in threads:
            thread.join()
        assert not errors, errors
        assert len(milvus) == 300


def test_any_characters_in_ids_and_texts_survive(tmp_path: Path) -> None:
    count = len(ODD)
    table = pa.table({"product_id": ODD, "embedding": range(count), "a b": ODD, "and": ODD, "column_2_": ODD})
    with in_milvus(tmp_path, count, product_ids=ODD, metadata=table) as milvus:
        for row, (hit,) in enumerate(milvus.search(vectors(count), 1)):
            assert hit.product_id == ODD[row]
            named = dict.fromkeys(("product_id", "a b", "and", "column_2_"), ODD[row])
            assert hit.metadata == {**named, "embedding": row}
            (found,) = milvus.search(vectors(1), 50, filter=[("and", "=", ODD[row]), ("a b", "in", [ODD[row]])])
            assert [hit.product_id for hit in found] == [ODD[row]]
        for name in ODD:
            milvus.delete([name])
        assert len(milvus) == 0


def test_fields_that_stand_for_odd_names_are_not_mixed_up_with_columns_of_that_name(tmp_path: Path) -> None:
    table = pa.table({"column_1_": [0, 1, 2], "a b": [3, 4, 5], "column_0_": [6, 7, 8]})
    with in_milvus(tmp_path, 3, metadata=table, modality_weights=None) as milvus:
        (hits,) = milvus.search(vectors(3)[1:2], 1, filter=[("column_1_", "=", 1), ("a b", "=", 4)])
        assert hits[0].metadata == {"column_1_": 1, "a b": 4, "column_0_": 7}


ROUND_TRIP = {
    "bool": pa.array([True, False, None]),
    **{
        f"int{bits}": pa.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, None], f"int{bits}")
        for bits in (8, 16, 32, 64)
    },
    **{f"uint{bits}": pa.array([0, 2**bits - 1, None], f"uint{bits}") for bits in (8, 16, 32)},
    "uint64": pa.array([0, 2**63 - 1, None], pa.uint64()),
    "half": pa.array(np.array([0.1, -65504, 0], np.float16)),
    "float": pa.array([0.1, -3.4e38, None], pa.float32()),
    "double": pa.array([0.1, -1.7e308, None], pa.float64()),
    "large": pa.array(["", "é" * 32_000, None], pa.large_string()),
    "label": pa.array(["x", "y", None]).dictionary_encode(),
    "date32": pa.array([datetime.date(1, 1, 1), datetime.date(9999, 12, 31), None], pa.date32()),
    "date64": pa.array([datetime.date(1950, 1, 1), datetime.date(2050, 1, 1), None], pa.date64()),
    "time32": pa.array([datetime.time(0), datetime.time(23, 59, 59), None], pa.time32("s")),
    "time64": pa.array([datetime.time(0), datetime.time(23, 59, 59, 999999), None], pa.time64("us")),
    "utc": pa.array([0, 10**12, None], pa.timestamp("ms", "UTC")),
    "naive": pa.array([-(10**15), 10**15, None], pa.timestamp("us")),
    "spent": pa.array([-1, 10**9, None], pa.duration("ms")),
    "nothing": pa.nulls(3),
    "tags": pa.array([["a", None, "b,'\""], [], None], pa.list_(pa.string())),
    "sizes": pa.array([[2**62, -1], [None], None], pa.large_list(pa.int64())),
    "box": pa.array([[0.1, 1e300], [None, -2.0], None], pa.list_(pa.float64(), 2)),
    "seller": pa.array([{"name": "é", "stars": [1.5]}, {"name": None, "stars": None}, None]),
}


def test_metadata_of_all_types_comes_back_as_from_a_faiss_index(tmp_path: Path) -> None:
    index = flat(3, metadata=pa.table(ROUND_TRIP))
    with index.to("milvus", uri=tmp_path / "index.db") as milvus:
        found = milvus.search(vectors(3), 3)
        assert_same(found, index.search(vectors(3), 3))
        told = {name: type(value) for name, value in found[0][0].metadata.items()}
        assert told == {name: type(value) for name, value in index.search(vectors(3), 3)[0][0].metadata.items()}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            pa.array([1, 2, 3], pa.decimal128(5)),
            r"'c' is decimal128\(5, 0\), which Milvus has no field for; convert it",
        ),
        (pa.array([b"", b"", None]), r"'c' is binary.*leave it out"),
        (pa.array([[b""], None, None]), r"'c' is list<.*binary.*leave it out"),
        (pa.array([0.0, float("inf"), None]), r"product 'b1' in row 1: its column 'c' is infinite; use null"),
        (pa.array([[0.0], [float("inf")], None]), r"product 'b1'.*'c' holds an infinite number"),
        (pa.array([0, 2**63, None], pa.uint64()), r"product 'b1'.*'c' is more than 2\^63"),
        (pa.array(["é" * 32_768, "", None]), r"product 'a0'.*'c' takes more than 65,535 bytes; shorten it"),
        (pa.array([[], ["x" * 70_000], None]), r"product 'b1'.*'c' takes more than 65,535 bytes"),
    ],
)
def test_metadata_that_milvus_cannot_hold_is_named_before_anything_is_made(
    tmp_path: Path, column: pa.Array, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        in_milvus(tmp_path, 3, metadata=pa.table({"c": column}))
    assert not (tmp_path / "index.db").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"product_ids": ["a", "b"]}, "3 product embeddings for 2 product ids"),
        ({"product_ids": list("abcd")}, "3 product embeddings for 4 product ids"),
        ({"product_ids": ["a", "a", "b"]}, "'a' appears twice"),
        (
            {"product_ids": ["a", "b", "é" * 33_000]},
            r"product 'é{60}…' in row 2: its product id takes more than 65,535",
        ),
        ({"embeds": vectors(3) * np.nan}, "row 0 holds a NaN"),
        ({"embeds": iter([vectors(2), vectors(1)[:, :5]])}, "dimension 5 after blocks of dimension 16"),
        ({"embeds": [], "product_ids": []}, "0 product embeddings for 0 product ids"),
        ({"model_fingerprint": ""}, "model_fingerprint is empty"),
        ({"collection": "my shop"}, "'my shop' has no name that Milvus takes"),
        ({"embeds": iter([vectors(2)])}, "2 product embeddings for 3 product ids"),
        ({"embeds": iter([vectors(4)])}, "4 product embeddings for 3 product ids"),
        ({"metadata": pa.table({f"c{n}": [0, 1, 2] for n in range(61)})}, "63 columns .* more than the 62"),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    known = {"metadata": None, "modality_weights": None if "product_ids" in arguments else weights(3)}
    with pytest.raises(ValueError, match=message):
        in_milvus(tmp_path, 3, **{**known, **arguments})


def test_queries_and_updates_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_milvus(tmp_path) as milvus:
        for k in (0, -1):
            with pytest.raises(ValueError, match=f"k={k}: ask for at least one hit"):
                milvus.search(vectors(1), k)
        assert len(milvus.search(vectors(1), 10**6)[0]) == 60
        assert len(milvus.search(vectors(1), np.int64(3))[0]) == 3  # type: ignore[arg-type]
        monkeypatch.setattr("mmfusion.retrieval.milvus.index.MAX_HITS", 50)
        with pytest.raises(ValueError, match="k=51: Milvus finds at most 50 hits"):
            milvus.search(vectors(1), 51)
        with pytest.raises(ValueError, match="query embeddings: row 0 holds a NaN"):
            milvus.search(vectors(1) * np.nan, 1)
        with pytest.raises(ValueError, match=r"dimension 5 but the index 16.*'m'"):
            milvus.search(vectors(1)[:, :5], 1)
        with pytest.raises(ValueError, match=r"'m'.*'other'"):
            milvus.check_model("other")
        new = {"metadata": metadata(["x"]), "modality_weights": weights(1)}
        with pytest.raises(ValueError, match="'other'"):
            milvus.update(vectors(1), ["x"], model_fingerprint="other", **new)
        with pytest.raises(ValueError, match="dimension 5 but the index 16"):
            milvus.update(vectors(1)[:, :5], ["x"], model_fingerprint="m", **new)
        with pytest.raises(ValueError, match="the index has product_id: string; modality_weights"):
            milvus.update(vectors(1), ["x"], model_fingerprint="m")
        with pytest.raises(ValueError, match="row 0 holds a NaN"):
            milvus.update(vectors(1) * np.nan, ["x"], model_fingerprint="m", **new)
        assert len(milvus) == 60


def test_another_model_and_what_is_not_ours_are_refused(tmp_path: Path) -> None:
    uri = tmp_path / "index.db"
    with pytest.raises(FileNotFoundError, match=r"index\.db is not there; build it with"):
        MilvusIndex.connect(uri)
    assert not uri.exists()
    in_milvus(tmp_path).close()
    with MilvusIndex.connect(uri) as index, pytest.raises(ValueError, match=r"'products' at .*'m'.*'other'"):
        index.check_model("other")
    with pytest.raises(MilvusError, match="there is no collection 'shoes' at"):
        MilvusIndex.connect(uri, "shoes")
    with pytest.raises(MilvusError, match=r"'products' at .* holds an index; pass overwrite=True"):
        in_milvus(tmp_path)
    with in_milvus(tmp_path, 5, model_fingerprint="other", overwrite=True) as milvus:
        assert len(milvus) == 5
        pymilvus = pytest.importorskip("pymilvus")
        client = pymilvus.MilvusClient(str(uri))
        client.create_collection("foreign", dimension=4)
        for overwrite in (False, True):
            with pytest.raises(MilvusError, match=r"'foreign' at .* was not made by mmfusion"):
                in_milvus(tmp_path, collection="foreign", overwrite=overwrite)
        client.alter_collection_properties("products", {"mmfusion.index": '{"schema_version": 99}'})
        with pytest.raises(MilvusError, match="schema version 99, this mmfusion reads 1"):
            MilvusIndex.connect(uri)
        client.alter_collection_properties("products", {"mmfusion.index": "{"})
        with pytest.raises(MilvusError, match="is damaged"):
            MilvusIndex.connect(uri)
        client.close()


@pytest.mark.parametrize("kind", ["HNSW", "IVF_FLAT"])
def test_a_file_has_the_kind_of_index_that_is_asked_for(tmp_path: Path, kind: str) -> None:
    in_milvus(tmp_path, index_type=kind).close()
    with MilvusIndex.connect(tmp_path / "index.db") as index:
        assert index.description.index_type == kind and len(index.search(vectors(1), 5)[0]) == 5


def test_a_kind_of_index_that_files_do_not_have_is_refused_before_anything_is_replaced(tmp_path: Path) -> None:
    in_milvus(tmp_path).close()
    with pytest.raises(ValueError, match=r"index_type 'DISKANN' is not supported .*give one of FLAT, HNSW"):
        in_milvus(tmp_path, index_type="DISKANN", overwrite=True)
    with MilvusIndex.connect(tmp_path / "index.db") as index:
        assert len(index) == 60


def test_compressed_vectors_are_not_passed_off_as_the_embeddings(tmp_path: Path) -> None:
    for factory in ("HNSW16", "IVF4,Flat"):
        with flat(200, factory=factory).to("milvus", uri=tmp_path / "exact.db", overwrite=True) as milvus:
            assert len(milvus) == 200
    with pytest.raises(ValueError, match=r"'IVF4,SQ8' holds compressed vectors; upload the embeddings themselves"):
        flat(200, factory="IVF4,SQ8").to("milvus", uri=tmp_path / "index.db")
    with pytest.raises(ValueError, match="the engine is 'qdrant'"):
        flat().to("qdrant", uri=tmp_path / "index.db")  # type: ignore[arg-type]


def digests(uri: Path) -> list[str]:
    client = pytest.importorskip("pymilvus").MilvusClient(str(uri))
    found = json.loads(client.describe_collection("products")["properties"]["mmfusion.index"])
    client.close()
    return list(found["parts"])


class CutError(Exception):
    """What ends an upload in a test."""


def cut_after(count: int) -> Iterator[np.ndarray]:
    yield vectors(100)[:count]
    raise CutError


@pytest.fixture
def parts_of_ten(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Uploads have parts of ten products; the number of products in each request."""
    sent: list[int] = []
    upsert = upload.upsert
    monkeypatch.setattr(upload, "_PART_ROWS", 10)
    monkeypatch.setattr(upload, "upsert", lambda *given: (sent.append(len(given[1])), upsert(*given)))
    return sent


def test_an_upload_that_was_cut_off_is_no_index_and_goes_on(tmp_path: Path, parts_of_ten: list[int]) -> None:
    with pytest.raises(CutError):
        in_milvus(tmp_path, 100, embeds=cut_after(45))
    assert parts_of_ten == [10] * 4
    with pytest.raises(MilvusError, match=r"upload to the collection 'products' at .* was cut off.*run it again"):
        MilvusIndex.connect(tmp_path / "index.db")
    # What was made anew since, such as a photo, is another vector.
    changed = vectors(100)
    changed[15] = vectors(1, seed=7)
    with in_milvus(tmp_path, 100, embeds=iter([changed[:33], changed[33:]])) as milvus:
        assert parts_of_ten == [10] * 4 + [10] * 7
        index = flat(100)
        index.update(
            changed[15:16],
            ["a15"],
            model_fingerprint="m",
            metadata=metadata(["a15"]),
            modality_weights=weights(100)[15:16],
        )
        assert_same(milvus.search(vectors(3, seed=1), 100), index.search(vectors(3, seed=1), 100))
        assert milvus.description.complete and not milvus.description.parts


def test_a_collection_that_was_cut_off_before_it_had_its_index_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("pymilvus").MilvusClient

    def refuse(*_: Any, **__: Any) -> None:
        raise pytest.importorskip("pymilvus").MilvusException(message="cut off")

    with monkeypatch.context() as patch:
        patch.setattr(client, "create_index", refuse)
        with pytest.raises(MilvusError, match="cut off"):
            in_milvus(tmp_path, 3)
    with in_milvus(tmp_path, 3) as milvus:
        assert milvus._connection._client.list_indexes("products") == ["embedding"]


def labels(*known: str) -> pa.Table:
    return pa.table({"label": pa.DictionaryArray.from_arrays(pa.array([0, 1] * 50), pa.array(known))})


@pytest.mark.parametrize(
    "other",
    [
        {"model_fingerprint": "other"},
        {"product_ids": [f"n{row}" for row in range(100)]},
        {"metadata": labels("a", "c")},
    ],
)
def test_an_upload_of_something_else_does_not_go_on_with_one_that_was_cut_off(
    tmp_path: Path, parts_of_ten: list[int], other: dict[str, Any]
) -> None:
    other = {"metadata": labels("a", "b"), **other}
    with pytest.raises(CutError):
        in_milvus(tmp_path, 100, embeds=cut_after(45), metadata=labels("a", "b"))
    with pytest.raises(MilvusError, match=r"holds what was uploaded of other products or of another model"):
        in_milvus(tmp_path, 100, **other)
    with in_milvus(tmp_path, 100, **other, overwrite=True) as milvus:
        assert len(milvus) == 100 and parts_of_ten == [10] * 14


UPLOADER = """
import sys, time
sys.path[:0] = {path!r}
from milvus_indexes import Path, in_milvus
from mmfusion.retrieval.milvus import upload
upload._PART_ROWS = 10
upsert = upload.upsert
def slow(*given):
    upsert(*given)
    print("sent", flush=True)
    time.sleep(0.05)
upload.upsert = slow
input()
index = in_milvus(Path({folder!r}), 400)
print(len(index), "whole", flush=True)
"""


def uploading(folder: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    script = UPLOADER.format(path=CHECKOUT, folder=str(folder))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return started([sys.executable, "-c", script], text=True, **pipes)


def test_a_killed_upload_goes_on_in_another_process_which_ends_by_itself(tmp_path: Path) -> None:
    # Both import what they need at the same time, and wait.
    with uploading(tmp_path) as first, uploading(tmp_path) as second:
        assert first.stdin is not None and first.stdout is not None
        first.stdin.write("\n")
        first.stdin.flush()
        for _ in range(5):
            assert first.stdout.readline() == "sent\n"
        with pytest.raises(MilvusError, match=r"cannot be reached .*that no other process has the file open"):
            MilvusIndex.connect(tmp_path / "index.db")
        first.send_signal(signal.SIGKILL)
        first.wait()
        done = len(digests(tmp_path / "index.db"))
        assert 4 <= done < 40
        release(tmp_path / "index.db")
        # It never closes its index: neither the file nor the process may stay open.
        told, errors = second.communicate("\n", timeout=600)
    assert second.returncode == 0, errors
    assert told == "sent\n" * (40 - done) + "400 whole\n"
    assert "Traceback" not in errors
    with MilvusIndex.connect(tmp_path / "index.db") as milvus:
        assert_same(milvus.search(vectors(3, seed=1), 100), flat(400).search(vectors(3, seed=1), 100))


def release(uri: Path) -> None:
    pytest.importorskip("milvus_lite.server_manager").server_manager_instance.release_server(str(uri))


def servers() -> int:
    """Embedded servers of this process."""
    # Their threads end somewhat later.
    return len(pytest.importorskip("milvus_lite.server_manager").server_manager_instance._servers)


def test_the_last_to_close_closes_the_embedded_server(tmp_path: Path) -> None:
    before = servers()
    first = in_milvus(tmp_path)
    second = MilvusIndex.connect(tmp_path / "index.db")
    assert servers() == before + 1
    first.close()
    first.close()
    assert len(second) == 60
    with pytest.raises(MilvusError, match=r"connection to collection 'products' at .* is closed; connect again"):
        len(first)
    second.close()
    assert servers() == before


def test_a_file_stays_open_for_who_connects_while_the_last_one_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("pymilvus")
    client, first = library.MilvusClient, in_milvus(tmp_path)

    def slow(**arguments: Any) -> Any:
        made = client(**arguments)
        first.close()
        return made

    monkeypatch.setattr(library, "MilvusClient", slow)
    with MilvusIndex.connect(tmp_path / "index.db") as second:
        assert len(second) == 60


def test_a_file_on_the_port_of_one_that_was_closed_keeps_its_own_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = pytest.importorskip("milvus_lite.adapter.grpc.server")
    start, ports = server.start_server_in_thread, [0]

    def on_the_same_port(**arguments: Any) -> Any:
        started = start(**{**arguments, "port": ports[-1]})
        ports.append(started[2])
        return started

    monkeypatch.setattr(server, "start_server_in_thread", on_the_same_port)
    for name, columns in (("with", metadata(names(3))), ("without", None), ("again", metadata(names(3)))):
        index = ProductIndex.build(vectors(3), names(3), metadata=columns, model_fingerprint="f")
        with index.to("milvus", uri=tmp_path / f"{name}.db") as milvus:
            assert_same(milvus.search(vectors(1), 3), index.search(vectors(1), 3))
    assert len(set(ports[1:])) == 1


def test_a_file_is_the_same_under_another_name_and_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").symlink_to("here")
    monkeypatch.chdir(tmp_path)
    before = servers()
    first = in_milvus(Path("here"), 3)
    with MilvusIndex.connect("there/index.db") as second:
        monkeypatch.chdir("here")
        first.close()
        assert len(second) == 3
    assert servers() == before


def test_a_file_that_milvus_did_not_make_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "index.db").write_bytes(b"mine")
    with pytest.raises(MilvusError, match=r"index\.db cannot be reached .* and that Milvus Lite made it"):
        in_milvus(tmp_path, 3, overwrite=True)
    assert (tmp_path / "index.db").read_bytes() == b"mine"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """A Milvus server on a port of this machine, and what stops it."""
    grpc_server = pytest.importorskip("milvus_lite.adapter.grpc.server")
    running, database, port = grpc_server.start_server_in_thread(str(tmp_path / "served"))
    stopped: list[bool] = []

    def stop() -> None:
        if not stopped:
            stopped.append(True)
            running.stop(grace=0).wait()
            database.close()

    yield f"http://127.0.0.1:{port}", stop
    stop()


def test_a_server_is_used_as_the_file_is_and_missed_in_one_line(server: tuple[str, Any]) -> None:
    uri, stop = server
    index = flat()
    with index.to("milvus", uri=uri.replace("://", "://user:secret@"), collection="shop", index_type="FLAT") as milvus:
        assert_same(milvus.search(vectors(3, seed=1), 10), index.search(vectors(3, seed=1), 10))
        assert "secret" not in milvus.place and milvus.description.index_type == "FLAT"
    with MilvusIndex.connect(uri, "shop", token="user:secret", timeout=1) as milvus:
        assert len(milvus) == 60
        stop()
        with pytest.raises(MilvusError, match=rf"^Milvus at {uri} fails at search \([^\n]*\); check that [^\n]*$"):
            milvus.search(vectors(1), 1)
    with pytest.raises(MilvusError, match=r"^Milvus at http://127.0.0.1:99999 cannot be reached \(Port out of range"):
        MilvusIndex.connect("http://user:se@cret@127.0.0.1:99999")
    with pytest.raises(
        MilvusError, match=rf"^Milvus at {uri} (cannot be reached|fails at) [^\n]*Fail connecting[^\n]*; [^\n]*$"
    ):
        MilvusIndex.connect(uri.replace("://", "://user:secret@"), timeout=1)


@pytest.mark.parametrize("uri", ["index", "index.sqlite", "ftp://host:1"])
def test_what_is_no_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        MilvusError, match=r"cannot be reached .*is illegal, needs start with .* or a local file endswith \[\.db\]"
    ):
        flat().to("milvus", uri=uri)
    assert not list(tmp_path.iterdir())


def test_without_pymilvus_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ImportError, match=r"pip install 'mmfusion\[milvus\]'"):
        in_milvus(tmp_path)

    def main(config: Nothing) -> None:
        in_milvus(tmp_path)

    monkeypatch.setattr(sys, "argv", ["index.py"])
    with pytest.raises(SystemExit, match=r"^MissingLibraryError: this needs the library pymilvus [^\n]*$"):
        run_command(main)


def test_without_milvus_lite_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "milvus_lite", None)
    monkeypatch.setitem(sys.modules, "milvus_lite.server_manager", None)
    with pytest.raises(MilvusError, match=r"index\.db cannot be reached \(.*milvus-lite.*pip install"):
        in_milvus(tmp_path)


DISK = """
import resource, sys
sys.path[:0] = {path!r}
from milvus_indexes import Path, in_milvus
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    in_milvus(Path({folder!r}), 3000)
except ValueError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def test_a_full_disk_is_told_in_one_line_and_the_upload_goes_on_later(tmp_path: Path) -> None:
    script = DISK.format(path=CHECKOUT, folder=str(tmp_path))
    ended = run_to_end([sys.executable, "-c", script])
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert re.search(r"^MilvusError: Milvus at \S+ fails at upsert \(.*File too large\); check", ended.stderr, re.M)
    with pytest.raises(MilvusError, match="was cut off"):
        MilvusIndex.connect(tmp_path / "index.db")
    with in_milvus(tmp_path, 3000) as milvus:
        assert_same(milvus.search(vectors(3, seed=1), 10), flat(3000).search(vectors(3, seed=1), 10))


UPDATES = """
import os, resource, signal, sys
sys.path[:0] = {path!r}
from milvus_indexes import Path, in_milvus, metadata, names, vectors, weights
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
index = in_milvus(Path({folder!r}), 1000)
def update(seed):
    new = {{"metadata": metadata(names(1000)), "modality_weights": weights(1000)}}
    index.update(vectors(1000, seed), names(1000), model_fingerprint="m", **new)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    update(1)
except ValueError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
update(2)
index.delete(["a0"])
print("done", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_changed_after_a_full_disk_outlives_a_kill(tmp_path: Path) -> None:
    script = UPDATES.format(path=CHECKOUT, folder=str(tmp_path))
    ended = run_to_end([sys.executable, "-c", script])
    assert re.search(r"fails at upsert \(.*File too large.*\ndone\n$", ended.stdout), ended.stderr
    with MilvusIndex.connect(tmp_path / "index.db") as milvus:
        assert len(milvus) == 999
        (found,) = milvus.search(vectors(1000, seed=2)[7:8], 1)
        assert found[0].product_id == names(1000)[7] and found[0].score > 0.9999
