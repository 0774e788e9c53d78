"""An index of words beside the vectors: kept right by changes, saved with checksums, and asked for what it lacks."""

import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_ranking import COUNT, QUERIES, built, changed, products, vectors

from mmfusion.retrieval import Hit, ProductIndex, Ranking, RankingError, Searcher, calibrate, snapshot
from mmfusion.retrieval import ranking as rankings
from mmfusion.retrieval.calibration import lowest_score

BOTH = Ranking(mode="hybrid", weight=0.5, group_by="group", boosts={"sales": 0.1})


def hits_of(index: ProductIndex, ranking: Ranking = BOTH) -> list[list[Hit]]:
    return index.search(vectors(len(QUERIES), seed=1), 30, ranking=ranking, texts=QUERIES)


def assert_alike(mine: list[list[Hit]], theirs: list[list[Hit]]) -> None:
    assert [[hit.product_id for hit in hits] for hits in mine] == [[hit.product_id for hit in hits] for hits in theirs]
    scores = [[hit.score for hits in found for hit in hits] for found in (mine, theirs)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.parametrize("memory_map", [True, False])
def test_words_are_saved_and_survive_changes_and_compaction(tmp_path: Path, memory_map: bool) -> None:
    index = ProductIndex.load(changed().save(tmp_path / "index"), memory_map=memory_map, verify=True)
    assert {"words.arrow", "delta_words.arrow"} <= {path.name for path in (tmp_path / "index").iterdir()}
    assert_alike(hits_of(index), hits_of(built()))
    compacted = ProductIndex.load(index.compact().save(tmp_path / "compacted"), memory_map=memory_map)
    assert_alike(hits_of(compacted), hits_of(built()))
    compacted.delete(["p3"])
    again = ProductIndex.load(compacted.save(tmp_path / "compacted", overwrite=True), memory_map=memory_map)
    assert_alike(hits_of(again), hits_of(compacted))
    assert "p3" not in {hit.product_id for hits in hits_of(again) for hit in hits}


def test_a_damaged_or_missing_file_of_words_is_named(tmp_path: Path) -> None:
    folder = built().save(tmp_path / "index")
    kept = (folder / "words.arrow").read_bytes()
    (folder / "words.arrow").write_bytes(kept[:300] + bytes([kept[300] ^ 1]) + kept[301:])
    with pytest.raises(ValueError, match=r"words\.arrow is damaged"):
        ProductIndex.load(folder)
    (folder / "words.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"words\.arrow is missing"):
        ProductIndex.load(folder)


def test_an_index_without_words_has_no_file_of_them_and_says_how_to_get_them(tmp_path: Path) -> None:
    folder = built(lexical=False).save(tmp_path / "index")
    assert "words.arrow" not in json.loads((folder / "index.json").read_text())["files"]
    with pytest.raises(RankingError, match=r"no index of words.* mmfusion index --lexical true, or lexical=True"):
        hits_of(ProductIndex.load(folder))


@pytest.mark.parametrize(
    "chosen, words", [(True, ("title",)), (["title", "sales", "tags"], ("title", "sales", "tags"))]
)
def test_columns_of_words_are_those_asked_for(chosen: Any, words: tuple[str, ...]) -> None:
    index = built(lexical=chosen)
    assert index.description.lexical == words and index.facts()["lexical"] == list(words)
    found = index.search(None, COUNT, ranking=Ranking(mode="words"), texts=["30"])[0]
    assert {hit.metadata["sales"] for hit in found} == ({30.0} if "sales" in words else set())


@pytest.mark.parametrize(
    "lexical, message",
    [
        ("title", "lexical is the text 'title'"),
        (["colour"], "words of the column 'colour' cannot be searched: the products have title, tags"),
        (["photo"], "the column 'photo' cannot be searched: the products have struct"),
    ],
)
def test_columns_without_words_are_refused(lexical: Any, message: str) -> None:
    table = products(COUNT).append_column("photo", pa.array([{"path": "a"}] * COUNT))
    with pytest.raises(ValueError, match=message):
        built(metadata=table, lexical=lexical)
    with pytest.raises(ValueError, match=r"have neither title nor description; name the columns .* of sales"):
        built(metadata=products(COUNT).select(["sales"]), lexical=True)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "both"}, "mode is 'both'; give one of vectors, words, hybrid"),
        ({"weight": 0.5}, "weight 0.5 is for mode 'hybrid', and mode is 'vectors'"),
        ({"mode": "hybrid", "weight": 1.5}, "weight is 1.5; give a number from 0 to 1"),
        ({"mode": "hybrid", "weight": float("nan")}, "weight is nan"),
        ({"boosts": {"sales": float("inf")}}, "the boost of 'sales' is inf; give a number from 0 to 1"),
        ({"boosts": {"sales": -0.1}}, "the boost of 'sales' is -0.1"),
        ({"boosts": {"sales": True}}, "the boost of 'sales' is True"),
        ({"boosts": ["sales"]}, "boosts is .'sales'.; give columns with weights"),
        ({"boosts": {"price": 0.1}}, "the boost names the column 'price'; this index has title, tags, sales"),
        ({"boosts": {"title": 0.1}}, "the boost names the column 'title', which is string; name one of numbers"),
        ({"group_by": "colour"}, "group_by names the column 'colour'; this index has title"),
        ({"group_by": "tags"}, "group_by names the column 'tags', which is list"),
        ({"min_score": 2}, "min_score is 2; give a number from -1 to 1"),
        ({"min_score": float("nan")}, "min_score is nan"),
        ({"min_score": "high"}, "min_score is 'high'"),
        ({"min_score": -0.1, "mode": "words"}, "min_score is -0.1; give a number from 0 to 1"),
        ({"min_score": "calibrated", "mode": "words"}, "min_score is calibrated for vectors, and mode is 'words'"),
        ({"min_score": "calibrated"}, "this index is not; give a number, or .* mmfusion index --calibrate"),
    ],
)
def test_a_ranking_that_cannot_be_is_refused_with_its_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RankingError, match=message):
        hits_of(built(), Ranking(**options))


def test_groups_are_of_values_of_any_type() -> None:
    table = products(COUNT)
    whole = pa.array([decimal.Decimal(row // 3) for row in range(COUNT)])
    columns = {"nothing": pa.nulls(COUNT), "decimal": whole, "day": whole.cast(pa.int32()).cast(pa.date32())}
    for name, column in columns.items():
        table = table.append_column(name, column)
    index = built(metadata=table)
    for name in columns:
        hits = index.search(vectors(1), COUNT, ranking=Ranking(group_by=name))[0]
        assert len(hits) == (COUNT if name == "nothing" else COUNT // 3)


def test_texts_must_come_with_queries_whose_words_count() -> None:
    with pytest.raises(RankingError, match="mode 'hybrid' got 0 texts for 2 queries"):
        built().search(vectors(2), 3, ranking=Ranking(mode="hybrid"))


def test_a_boosted_search_looks_at_so_many_products_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rankings, "FIRST_DEPTH", 5)
    monkeypatch.setattr(snapshot, "MOST_RANKED", 20)
    near = {hit.product_id for hit in built().search(vectors(1, 1), 20)[0]}
    found = built().search(vectors(1, 1), 5, ranking=Ranking(boosts={"sales": 1.0}))[0]
    assert {hit.product_id for hit in found} <= near and len(found) == 5
    assert all(hit.parts["boost:sales"] <= 1 for hit in found)


@pytest.mark.parametrize("factory", ["HNSW16", "IVF4,Flat", "IVF4,PQ4x4", "SQ8"])
def test_an_approximate_index_ranks_by_words_and_both_as_well(factory: str) -> None:
    index = built(factory=factory)
    for ranking in (Ranking(mode="words"), Ranking(mode="hybrid"), BOTH):
        for hits in hits_of(index, ranking):
            assert len({hit.product_id for hit in hits}) == len(hits)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert_alike(hits_of(index, Ranking(mode="words")), hits_of(built(), Ranking(mode="words")))


class Drawn:
    """An encoder whose vector of a query is that of the product it names."""

    fingerprint, dimension, views = "m", 8, 1

    def encode_queries(self, texts: Any) -> np.ndarray:
        return vectors(COUNT)[[int(text) for text in texts]]


def test_a_calibrated_score_has_the_precision_that_was_asked_for(tmp_path: Path) -> None:
    searcher = Searcher(Drawn(), built())
    rng = np.random.default_rng(0)
    grades = {}
    for row in range(COUNT):
        for hit in searcher.search(str(row), 100):
            # The nearer, the more often relevant.
            grades[f"q{row}", hit.product_id] = int(rng.random() < max(0.0, hit.score) ** 2)
    queries = {f"q{row}": str(row) for row in range(COUNT)}
    found = calibrate(searcher, queries, grades, 0.6)
    above = [
        grades[name, hit.product_id]
        for name, text in queries.items()
        for hit in searcher.search(text, 100, min_score=found.min_score)
    ]
    assert (found.hits, found.precision) == (len(above), pytest.approx(np.mean(above))) and found.precision >= 0.6
    assert found.recall == pytest.approx(sum(above) / sum(grades.values()))
    assert calibrate(searcher, queries, grades, 0.3).min_score < found.min_score
    folder = searcher.index.calibrated(found).save(tmp_path / "index")
    index = ProductIndex.load(folder)
    assert index.description.calibration == found and index.facts()["calibration"] == found
    calibrated = Searcher(Drawn(), index)
    assert calibrated.search("7", 50, min_score="calibrated") == searcher.search("7", 50, min_score=found.min_score)
    # A query that is near nothing.
    nothing = -vectors(COUNT).mean(axis=0, keepdims=True)
    assert index.search(nothing, 5, ranking=Ranking(min_score="calibrated")) == [[]]
    for precision, message in ((0.0, "is 0.0; give a share above 0"), (1.0, "precision of 1 over at least 20 hits")):
        with pytest.raises(RankingError, match=message):
            calibrate(searcher, queries, {pair: 0 for pair in grades} if precision else grades, precision)


def test_hits_with_the_same_score_are_above_it_together() -> None:
    scores = np.repeat([0.9, 0.5, 0.1], 20)
    relevant = np.concatenate([np.ones(20, bool), np.arange(20) < 10, np.zeros(20, bool)])
    assert lowest_score(scores, relevant, 0.75) == (0.5, 0.75, 1.0, 40)
    assert lowest_score(scores, relevant, 0.8) == (0.9, 1.0, 20 / 30, 20)
