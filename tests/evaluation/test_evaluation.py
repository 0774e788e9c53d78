"""Ranking, evaluation, BM25 and bootstrap against pytrec_eval and slow twins."""

import csv
import json
import math
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmfusion.data.qrels import Qrels
from mmfusion.evaluation import (
    Evaluation,
    TieOrder,
    evaluate_rankings,
    format_table,
    paired_bootstrap,
    rank,
    rank_bm25,
    write_evaluation,
)
from mmfusion.lexical import query_words, tokenize

# Ids whose order as text, as numbers, by case and by code point all differ.
ID_POOL = ["10", "9", "a", "B", "b", "é", "z", "🧥", "连", "a b", "a,b", "-1"]
RECALL_AT, NDCG_AT = (1, 3, 10), (1, 3, 10)


def trec(
    run: dict[str, dict[str, float]], judged: dict[str, dict[str, int]], level: int
) -> dict[str, dict[str, float]]:
    cuts = ",".join(map(str, RECALL_AT))
    return pytrec_eval.RelevanceEvaluator(
        judged, {f"recall.{cuts}", f"ndcg_cut.{cuts}"}, relevance_level=level
    ).evaluate(run)


# ---------------------------------------------------------------- ranking


@st.composite
def tied_embeddings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Small integers, so that inner products are exact and tie often, also as 0 and -0."""
    ids = draw(st.lists(st.sampled_from(ID_POOL), min_size=1, unique=True))
    dimension, num_queries = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    number = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0])

    def matrix(rows: int) -> np.ndarray:
        values = draw(st.lists(number, min_size=rows * dimension, max_size=rows * dimension))
        return np.array(values, dtype=np.float32).reshape(rows, dimension)

    return matrix(num_queries), matrix(len(ids)), ids


@settings(deadline=None)
@given(tied_embeddings(), st.integers(1, 14), st.integers(1, 5), st.integers(1, 5))
def test_rank_equals_a_full_sort_for_any_chunks(
    embeds: tuple[np.ndarray, np.ndarray, list[str]], k: int, query_chunk: int, product_chunk: int
) -> None:
    queries, products, ids = embeds
    scores, columns = rank(queries, products, k, ids, query_chunk=query_chunk, product_chunk=product_chunk)
    assert (scores.dtype, columns.dtype, scores.shape) == (torch.float32, torch.int64, (len(queries), k))
    for row, query in enumerate(queries):
        exact = [float(query @ product) for product in products]
        expected = sorted(range(len(ids)), key=lambda column: (exact[column], ids[column]), reverse=True)[:k]
        padding = k - len(expected)
        assert columns[row].tolist() == expected + [-1] * padding
        assert scores[row].tolist() == [exact[column] for column in expected] + [-math.inf] * padding


@settings(deadline=None)
@given(tied_embeddings(), st.integers(0, 11))
def test_the_order_of_ties_is_trec_evals(embeds: tuple[np.ndarray, np.ndarray, list[str]], which: int) -> None:
    queries, products, ids = embeds
    wanted = ids[which % len(ids)]
    _, columns = rank(queries[:1], products, 10, ids)
    place = columns[0].tolist().index(ids.index(wanted)) if len(ids) <= 10 or ids.index(wanted) in columns[0] else 10
    run = {"q": {name: float(queries[0] @ product) for name, product in zip(ids, products, strict=True)}}
    found = trec(run, {"q": {wanted: 1}}, 1)["q"]
    assert [found[f"recall_{k}"] for k in RECALL_AT] == [float(place < k) for k in RECALL_AT]


def test_scores_that_differ_beyond_float32_tie_as_in_trec_eval() -> None:
    run = {"q": {"a": 1 + 1e-12, "b": 1.0}}
    assert trec(run, {"q": {"a": 1}}, 1)["q"]["recall_1"] == 0
    products = np.array([[1 + 1e-12], [1.0]])
    assert rank(np.ones((1, 1)), products, 2, ["a", "b"])[1].tolist() == [[1, 0]]
    one_step_apart = np.array([[np.nextafter(np.float32(1), np.float32(2))], [1]])
    assert rank(np.ones((1, 1)), one_step_apart, 2, ["a", "b"])[1].tolist() == [[0, 1]]


def test_copies_of_a_product_tie_wherever_chunks_cut() -> None:
    torch.manual_seed(0)
    queries, product = torch.randn(5, 96), torch.randn(1, 96)
    ids = [f"{number:03d}" for number in range(100)]
    columns = rank(queries, product.repeat(100, 1), 10, ids, query_chunk=2, product_chunk=7)[1]
    assert columns.tolist() == [list(range(99, 89, -1))] * 5


def test_rank_reads_a_memory_mapped_file(tmp_path: Path) -> None:
    embeds = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.save(tmp_path / "embeds.npy", embeds)
    mapped = np.load(tmp_path / "embeds.npy", mmap_mode="r")
    ids = [str(row) for row in range(20)]
    assert torch.equal(rank(mapped, mapped, 5, ids, product_chunk=6)[1], rank(embeds, embeds, 5, ids)[1])


def test_extreme_scores_survive_packing() -> None:
    scores = torch.tensor([[3.4e38, -3.4e38, 1e-45, -1e-45, torch.inf, -torch.inf, 0.0]])
    ranked, columns = TieOrder(list("abcdefg")).top(scores, 7)
    assert ranked.tolist() == [sorted(scores[0].tolist(), reverse=True)]
    assert columns.tolist() == [[4, 0, 2, 6, 3, 1, 5]]


@pytest.mark.parametrize(
    ("queries", "products", "ids", "message"),
    [
        (np.ones((1, 2)), np.ones((2, 3)), ["a", "b"], "dimension 2 but product embeddings 3"),
        (np.ones(2), np.ones((2, 2)), ["a", "b"], "query embeddings have shape"),
        (np.ones((1, 2)), np.ones((2, 2)), ["a"], "1 product ids for 2 product embeddings"),
        (np.ones((1, 2)), np.ones((2, 2)), ["a", "a"], "'a' appears twice, in rows 0 and 1"),
        (np.ones((1, 2)), np.array([[1, 1], [1, np.nan]]), ["a", "b"], "product embedding 1 holds a NaN"),
        (np.array([[np.inf, 0]]), np.ones((2, 2)), ["a", "b"], "query embedding 0 holds a NaN or an infinite"),
    ],
)
def test_rank_refuses_input_that_does_not_fit(
    queries: np.ndarray, products: np.ndarray, ids: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rank(queries, products, 1, ids)


@pytest.mark.parametrize("argument", ["k", "query_chunk", "product_chunk"])
def test_rank_refuses_sizes_below_one(argument: str) -> None:
    arguments: dict[str, Any] = {"k": 1, argument: 0}
    with pytest.raises(ValueError, match=f"{argument}=0"):
        rank(np.ones((1, 2)), np.ones((2, 2)), product_ids=["a", "b"], **arguments)


# ---------------------------------------------------------------- evaluation


@st.composite
def judged_runs(draw: st.DrawFn) -> dict[str, Any]:
    """A catalogue, judgements and a run in which queries may lack rankings, judgements or relevant products."""
    num_products, num_queries = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    pairs = [(query, product) for query in range(num_queries) for product in range(num_products)]
    judged = draw(st.dictionaries(st.sampled_from(pairs), st.integers(0, 4), min_size=1))
    pool = sorted(draw(st.sets(st.integers(0, num_products - 1), min_size=1)))
    ranked_queries = sorted(draw(st.sets(st.integers(0, num_queries - 1), min_size=1)))
    shuffled_ids = draw(st.permutations(ID_POOL))[:num_products]
    scores = st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=len(pool), max_size=len(pool))
    return {
        "judged": judged,
        "pool": pool,
        "num_queries": num_queries,
        "ids": shuffled_ids,
        "scores": {query: draw(scores) for query in ranked_queries},
        "values": draw(st.lists(st.sampled_from(["x", "y", None]), min_size=12, max_size=12)),
        "relevant_grade": draw(st.integers(1, 4)),
    }


def evaluate(case: dict[str, Any], **arguments: Any) -> Evaluation:
    pool, query_rows = np.array(case["pool"]), np.array(list(case["scores"]))
    order = TieOrder([case["ids"][row] for row in pool])
    columns = order.top(torch.tensor(list(case["scores"].values())), 10)[1].numpy()
    query, product = np.array(list(case["judged"])).T
    return evaluate_rankings(
        np.where(columns < 0, -1, pool[columns]),
        query_rows,
        Qrels(query, product, np.array(list(case["judged"].values()))),
        **{
            "queries": {"query_id": [f"q{row}" for row in range(case["num_queries"])], "kind": case["values"]},
            "products": {"value": case["values"]},
            "product_rows": pool,
            "relevant_grade": case["relevant_grade"],
            "evaluated_query_rows": np.arange(case["num_queries"]),
            "product_slices": ["value"],
            "recall_at": RECALL_AT,
            "ndcg_at": NDCG_AT,
            **arguments,
        },
    )


def in_trec_format(case: dict[str, Any]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    ids, pool = case["ids"], case["pool"]
    run = {
        f"q{query}": {ids[row]: score for row, score in zip(pool, scores, strict=True)}
        for query, scores in case["scores"].items()
    }
    judged: dict[str, dict[str, int]] = {}
    for (query, product), grade in case["judged"].items():
        if product in pool:
            judged.setdefault(f"q{query}", {})[ids[product]] = grade
    return run, judged


def grades_in_pool(case: dict[str, Any], query: int) -> list[int]:
    return [grade for (q, p), grade in case["judged"].items() if q == query and p in case["pool"]]


def has_any_relevant(case: dict[str, Any]) -> bool:
    highest = max((max(grades_in_pool(case, q), default=0) for q in range(case["num_queries"])), default=0)
    return highest >= case["relevant_grade"]


@settings(deadline=None, max_examples=300)
@given(judged_runs())
def test_every_query_and_every_mean_equals_pytrec_eval(case: dict[str, Any]) -> None:
    if not has_any_relevant(case):
        with pytest.raises(ValueError, match="no judgement of these queries in this pool qualifies"):
            evaluate(case)
        return
    result = evaluate(case)
    run, judged = in_trec_format(case)
    by_trec = trec(run, judged, case["relevant_grade"])
    rows = {row["query_id"]: row for row in result.per_query.to_pylist()}
    assert len(rows) == case["num_queries"]
    expected: dict[str, list[float]] = {}
    for query in range(case["num_queries"]):
        grades = grades_in_pool(case, query)
        numbers = by_trec.get(f"q{query}", {})
        for name, ours, defined in (
            ("recall", "recall", max(grades, default=0) >= case["relevant_grade"]),
            ("ndcg_cut", "ndcg", max(grades, default=0) > 0),
        ):
            for k in RECALL_AT:
                found = rows[f"q{query}"][f"{ours}@{k}"]
                if defined:
                    # trec_eval reports no number for a query without a ranking; it counts 0.
                    assert found == pytest.approx(numbers.get(f"{name}_{k}", 0.0), abs=1e-6)
                    expected.setdefault(f"{ours}@{k}", []).append(numbers.get(f"{name}_{k}", 0.0))
                else:
                    assert found is None
    for metric, values in expected.items():
        assert result.means[metric] == pytest.approx(np.mean(values), abs=1e-6)
    assert result.num_queries_without_relevant == case["num_queries"] - len(expected["recall@1"])
    assert result.num_queries_without_gain == case["num_queries"] - len(expected["ndcg@1"])
    assert result.num_queries_without_ranking == case["num_queries"] - len(case["scores"])
    assert (result.num_queries, result.num_products) == (case["num_queries"], len(case["pool"]))
    all_grades = [grade for query in range(case["num_queries"]) for grade in grades_in_pool(case, query)]
    assert result.judgements_by_grade == dict(Counter(all_grades))


@settings(deadline=None, max_examples=200)
@given(judged_runs().filter(has_any_relevant))
def test_slices_equal_slow_twins(case: dict[str, Any]) -> None:
    result = evaluate(case)
    rows = result.per_query.to_pylist()
    run, judged = in_trec_format(case)
    label = {"x": "x", "y": "y", None: "(missing)"}
    for part in result.slices:
        for k in RECALL_AT:
            if part.table == "query":
                inside = [row for q, row in enumerate(rows) if label[case["values"][q]] == part.value]
                for metric in (f"recall@{k}", f"ndcg@{k}"):
                    values = [row[metric] for row in inside if row[metric] is not None]
                    assert part.metrics[metric] == (pytest.approx(np.mean(values)) if values else None)
                continue
            # A product slice is pytrec_eval's recall with the judgements of other products taken away.
            values = []
            for query, grades in judged.items():
                names = {case["ids"][p] for p in case["pool"] if label[case["values"][p]] == part.value}
                of_value = {p: g for p, g in grades.items() if p in names and g >= case["relevant_grade"]}
                if of_value:
                    found = trec(run, {query: of_value}, case["relevant_grade"]).get(query, {})
                    values.append(found.get(f"recall_{k}", 0.0))
            assert part.num_queries == len(values) > 0
            assert part.metrics[f"recall@{k}"] == pytest.approx(np.mean(values))
            assert f"ndcg@{k}" not in part.metrics
    query_labels = {label[case["values"][q]] for q in range(case["num_queries"])}
    assert {part.value for part in result.slices if part.table == "query"} == query_labels


def example(ranked: Any = ((0, 1, 2), (2, 1, 0), (1, 0, 2)), **arguments: Any) -> Evaluation:
    """Three queries (the last finds nothing relevant) over products 0-2; product 3 is outside the pool."""
    qrels = Qrels([0, 0, 0, 1, 1, 2], [0, 1, 3, 0, 2, 1], [3, 1, 3, 3, 1, 1])
    return evaluate_rankings(
        np.array(ranked),
        **{
            "query_rows": np.arange(3),
            "qrels": qrels,
            "queries": pa.table({"query_id": ["q,0", "q1", "q2"], "kind": ["visual", "textual", "visual"]}),
            "products": {"stripped": [True, False, False, True]},
            "product_rows": np.arange(3),
            "product_slices": ["stripped"],
            "relevant_grade": 3,
            **arguments,
        },
    )


def test_judgements_outside_the_pool_do_not_count() -> None:
    assert example().per_query["num_relevant"].to_pylist() == [1, 1, 0]
    assert example().means["recall@10"] == 1
    assert example().judgements_by_grade == {1: 3, 3: 2}


def test_a_query_can_lack_relevant_products_and_still_have_an_ndcg() -> None:
    result = example()
    assert result.per_query["recall@10"].to_pylist() == [1, 1, None]
    assert result.per_query["ndcg@10"].to_pylist()[2] == 1
    assert (result.num_queries_without_relevant, result.num_queries_without_gain) == (1, 0)


def test_tables_may_be_datasets_with_photos_that_are_not_decoded() -> None:
    broken = [{"bytes": b"no photo", "path": None}] * 4
    features = datasets.Features({"stripped": datasets.Value("bool"), "image": datasets.Image()})
    reversed_products = datasets.Dataset.from_dict({"stripped": [True, False, False, True], "image": broken}, features)
    products = reversed_products.select([3, 1, 2, 0])
    assert example(products=products).slices == example().slices


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ranked": ((0, 1), (2, 1), (1, 0))}, r"2 places, but the largest cut-off is 100 and the pool has 3 products"),
        ({"ranked": ((0, 0, 1), (2, 1, 0), (1, 0, 2))}, "query row 0 holds product row 0 twice"),
        ({"ranked": ((0, 1, 2), (2, 1, 3), (1, 0, 2))}, "query row 1 holds product row 3, which is not in the pool"),
        ({"ranked": ((0, 1, 2), (-1, 1, 0), (1, 0, 2))}, "query row 1 continues after a -1"),
        ({"ranked": ((0.0, 1, 2),) * 3}, "float64"),
        ({"query_rows": np.array([0, 1])}, "3 rankings for 2 query rows"),
        ({"query_rows": np.array([0, 1, 1])}, "holds query row 1 twice"),
        ({"evaluated_query_rows": np.array([0, 1])}, "query row 2 has a ranking but is not in"),
        ({"relevant_grade": 4}, "relevant_grade=4: .* highest grade 3"),
        ({"relevant_grade": 0}, "relevant_grade=0"),
        ({"query_slices": ["colour"]}, "query table has no column 'colour'; its columns are 'query_id', 'kind'"),
        ({"product_slices": ["colour"]}, "product table has no column 'colour'"),
        ({"products": None}, "product table is missing"),
    ],
)
def test_evaluate_refuses_input_that_does_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example(**arguments)


# ---------------------------------------------------------------- reports


def test_save_writes_every_number_with_its_conditions(tmp_path: Path) -> None:
    result = example(name="fusion", label_source="made up", provenance={"command": "evaluate 🧥"}, recall_at=(1, 2))
    paths = write_evaluation(result, tmp_path / "deep" / "folder", "test")
    endings = ["json", "per_query.parquet", "slices.csv", "md", "png"]
    assert [path.name for path in paths] == [f"test.{ending}" for ending in endings]
    assert Evaluation.load(tmp_path / "deep" / "folder", "test") == result
    fields = json.loads(paths[0].read_text("utf-8"))
    assert fields["provenance"] == {"command": "evaluate 🧥"}
    assert (fields["pool"], fields["relevant_grade"], fields["num_products"]) == ("split", 3, 3)
    rows = list(csv.DictReader(paths[2].read_text("utf-8").splitlines()))
    assert [(row["table"], row["value"]) for row in rows] == [
        ("all", ""),
        ("query", "textual"),
        ("query", "visual"),
        ("product", "True"),
    ]
    assert rows[3]["ndcg@10"] == ""
    assert float(rows[0]["recall@1"]) == result.means["recall@1"] == 0.5
    page = paths[3].read_text("utf-8")
    for condition in (
        "pool: split, 3 products",
        "3 queries (1 without",
        "grade >= 3",
        "linear",
        "made up",
        "1: 3, 3: 2",
    ):
        assert condition in page
    with Image.open(paths[4]) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b"])
def test_a_name_that_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a file"):
        example().save(tmp_path, name)


def test_load_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no evaluation 'x' .*x\.json is missing"):
        Evaluation.load(tmp_path, "x")


def test_format_table_aligns_models_and_kinds() -> None:
    worse = example(((2, 1, 0), (0, 1, 2), (1, 0, 2)), name="a|b", recall_at=(1,))
    lines = format_table([example(name="fusion 文", recall_at=(1,)), worse], metrics=["recall@1"]).splitlines()
    cells = [[cell.strip() for cell in line.replace(r"\|", "!").strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == ["Recall@1", "all", "textual", "visual"]
    assert cells[2:] == [["fusion 文", "50.0", "0.0", "100.0"], ["a!b", "50.0", "100.0", "0.0"]]
    assert "pool: split, 3 products" in lines[-1]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"pool": "all"}, "pool='split' but 'model' has pool='all'"),
        ({"relevant_grade": 1}, "relevant_grade=3 .* relevant_grade=1"),
        ({"recall_at": (10,)}, "has no metric 'recall@100'"),
    ],
)
def test_numbers_that_cannot_be_compared_are_not_tabulated(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        format_table([example(), example(**other)])
    with pytest.raises(ValueError, match="no evaluation"):
        format_table([])


# ---------------------------------------------------------------- BM25

TITLES = ["Blue cotton shirt", "blue BLUE jeans", "red dress", "", "shirt-dress, red", "winter coat 🧥 大衣"]


def slow_bm25(query: str, texts: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    documents = [tokenize(text) for text in texts]
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in query_words(query):
            containing = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
            count = document.count(word)
            score += idf * count / (count + k1 * (1 - b + b * len(document) / average))
        scores.append(score)
    return scores


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([*" ".join(TITLES).split(), "unknown", "!?"]), max_size=4).map(" ".join))
def test_bm25_equals_its_formula_and_ends_before_products_that_do_not_match(query: str) -> None:
    ids = list("fedcba")
    scores, columns = rank_bm25([query, "red"], TITLES, 6, ids)
    exact = slow_bm25(query, TITLES)
    retrieved = [column for column in columns[0].tolist() if column >= 0]
    assert sorted(retrieved) == [column for column, score in enumerate(exact) if score > 0]
    assert columns[0, len(retrieved) :].tolist() == [-1] * (6 - len(retrieved))
    np.testing.assert_allclose(scores[0, : len(retrieved)], [exact[column] for column in retrieved], rtol=1e-5)
    assert sorted(exact, reverse=True)[: len(retrieved)] == pytest.approx([exact[column] for column in retrieved])


def found(query: str, titles: list[str]) -> list[int]:
    """Rows of the titles that BM25 retrieves, best first."""
    _, columns = rank_bm25([query], titles, len(titles), [f"p{row}" for row in range(len(titles))])
    return [column for column in columns[0].tolist() if column >= 0]


@pytest.mark.parametrize(
    ("query", "titles"),
    [
        ("连衣裙", ["红色连衣裙", "衣架", "蓝色衬衫"]),
        ("裙", ["红色连衣裙", "蓝色衬衫"]),
        ("手机壳", ["iPhone手机壳", "iPhone charger"]),
        ("ワンピース", ["赤いロングワンピース", "スマホケース", "青いシャツ"]),
        ("ﾜﾝﾋﾟｰｽ", ["赤いワンピース", "マグカップ"]),
        ("バッグ", ["ショルダーバッグ", "マグカップ"]),
        ("赤い服", ["赤 ドレス", "青い靴"]),
        ("服の店", ["子供服", "靴の箱"]),
        ("かわいい", ["とてもかわいい靴", "かわ"]),
        ("สีแดง", ["เสื้อยืดสีแดง", "เสื้อสีดำ", "รองเท้า"]),
        ("กางเกง", ["กางเกงยีนส์", "รองเท้า"]),
        ("ກະໂປງ", ["ກະໂປງສີແດງ", "ເກີບ"]),
        ("កាបូប", ["កាបូបស្ពាយ", "ស្បែកជើង"]),
        ("အင်္ကျီ", ["အင်္ကျီအနီ", "ဖိနပ်"]),
        ("लाल पोशाक", ["लाल पोशाक", "नीली शर्ट", "लोशन कप"]),
        ("فُستان", ["فُستان أحمر", "قميص"]),
        ("원피스", ["빨간 원피스", "셔츠"]),
        ("cafe\u0301", ["Caf\u00e9 table", "Cafe table"]),
        ("istanbul", ["İSTANBUL ÇANTA", "Mug"]),
        ("I\u0307stanbul", ["istanbul", "Mug"]),
        ("ısparta", ["ISPARTA halı", "Mug"]),
        ("straße", ["STRASSE", "Strand"]),
        ("οδός", ["ΟΔΟΣ", "ΔΟΜΟΣ"]),
        ("κόκκινο", ["ΚΟΚΚΙΝΟ ΦΟΡΕΜΑ", "ΜΠΛΕ"]),
        ("usb", ["ＵＳＢ cable", "Mug"]),
        ("shoe S", ["shoe S", "SL hook", "shoes"]),
        ("10.5", ["boot 10,5", "boot 10 5", "boot 10"]),
        ("37", ["sizes 36,37,38", "size 3.7"]),
        ("42", ["حذاء ٤٢", "حذاء ٤٣"]),
        ("10½", ["boot 10 1/2", "boot 1014"]),
        ("tshirt", ["T\u00adshirt", "T\u2011shirt"]),
    ],
)
def test_bm25_finds_words_of_all_scripts_and_nothing_without_them(query: str, titles: list[str]) -> None:
    assert found(query, titles) == [0]


@settings(deadline=None, max_examples=40)
@given(st.text())
def test_words_are_alike_however_they_are_composed_and_query_words_are_among_them(text: str) -> None:
    assert tokenize(unicodedata.normalize("NFD", text)) == tokenize(unicodedata.normalize("NFC", text))
    assert set(query_words(text)) <= set(tokenize(text))
    assert all(word and not word.isspace() for word in tokenize(text))


def test_words_of_plain_english_are_those_of_before() -> None:
    assert tokenize("Men's T-shirt, XL blue_navy 3/4") == ["men", "s", "t", "shirt", "xl", "blue_navy", "3", "4"]


def test_bm25_orders_ties_by_id_also_at_the_last_place() -> None:
    assert rank_bm25(["shirt"], ["blue shirt", "red shirt", "one shirt"], 2, ["10", "9", "1"])[1].tolist() == [[1, 0]]


def test_bm25_over_texts_without_a_word_finds_nothing() -> None:
    assert rank_bm25(["shirt"], ["", "!"], 2, ["a", "b"])[1].tolist() == [[-1, -1]]
    assert rank_bm25([], TITLES, 2, list("abcdef"))[1].shape == (0, 2)


def test_bm25_refuses_input_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="1 product texts for 2 product ids"):
        rank_bm25(["a"], ["a"], 1, ["x", "y"])
    with pytest.raises(ValueError, match="k=0"):
        rank_bm25(["a"], ["a"], 0, ["x"])


def test_bm25_equals_a_library() -> None:
    library = pytest.importorskip("bm25s").BM25(method="lucene", k1=1.2, b=0.75)
    library.index([tokenize(text) for text in TITLES], show_progress=False)
    expected = library.get_scores(["red", "blue", "shirt", "shirt"])
    scores, columns = rank_bm25(["red blue shirt shirt"], TITLES, 6, list("abcdef"))
    there = columns[0] >= 0
    np.testing.assert_allclose(scores[0][there], expected[columns[0][there].numpy()], rtol=1e-5)
    assert set(np.flatnonzero(expected)) == set(columns[0][there].tolist())


# ---------------------------------------------------------------- bootstrap


def many_queries(quality: float, seed: int, count: int = 60) -> Evaluation:
    """One relevant product a query, found at place 0 with the given probability and at place 1 otherwise."""
    found = np.random.default_rng(seed).random(count) < quality
    return evaluate_rankings(
        np.where(found[:, None], [[0, 1]], [[1, 0]]),
        np.arange(count),
        Qrels(np.arange(count), np.zeros(count, dtype=int), np.full(count, 3)),
        queries={"query_id": [f"q{row}" for row in range(count)], "kind": ["k"] * count},
        product_rows=np.arange(2),
        relevant_grade=3,
        recall_at=(1,),
    )


def test_bootstrap_equals_a_loop_over_resampled_queries() -> None:
    first, second = many_queries(0.8, 0), many_queries(0.5, 1)
    result = paired_bootstrap(first, second, "recall@1", num_resamples=300, seed=7)
    pairs = list(zip(first.per_query["recall@1"].to_pylist(), second.per_query["recall@1"].to_pylist(), strict=True))
    rng = np.random.default_rng(7)
    means = []
    for _ in range(300):
        drawn = [pairs[i] for i in rng.integers(60, size=60)]
        means.append(sum(a - b for a, b in drawn) / 60)
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert result.difference == pytest.approx(first.means["recall@1"] - second.means["recall@1"])
    assert result.low < result.difference < result.high
    assert result == paired_bootstrap(first, second, "recall@1", num_resamples=300, seed=7)
    assert result != paired_bootstrap(first, second, "recall@1", num_resamples=300, seed=8)


def test_bootstrap_pairs_queries_whatever_their_order() -> None:
    first, second = many_queries(0.8, 0), many_queries(0.5, 1)
    shuffled = Evaluation(**{**vars(second), "per_query": second.per_query.take(pa.array(range(59, -1, -1)))})
    assert paired_bootstrap(first, shuffled, "ndcg@10") == paired_bootstrap(first, second, "ndcg@10")


def test_an_evaluation_does_not_differ_from_itself() -> None:
    result = paired_bootstrap(example(), example(), "recall@10")
    assert (result.low, result.high, result.num_queries) == (0, 0, 2)


def test_bootstrap_refuses_what_is_not_paired() -> None:
    with pytest.raises(ValueError, match="different queries: 20 are in one only"):
        paired_bootstrap(many_queries(0.5, 0), many_queries(0.5, 0, count=40), "recall@1")
    with pytest.raises(ValueError, match="has no metric 'recall@5'"):
        paired_bootstrap(example(), example(), "recall@5")
    with pytest.raises(ValueError, match="relevant_grade=3 but"):
        paired_bootstrap(example(), example(relevant_grade=1), "recall@10")
    with pytest.raises(ValueError, match="num_resamples=0"):
        paired_bootstrap(example(), example(), "recall@10", num_resamples=0)
