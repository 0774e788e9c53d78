"""Rankings of an index in Milvus: those of one with FAISS, as far as Milvus has them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_ranking import COUNT, QUERIES, built, products, vectors

from mmfusion.retrieval import MilvusIndex, ProductIndex, Ranking, RankingError
from mmfusion.retrieval import ranking as rankings
from mmfusion.retrieval.milvus import index as milvus_index

pytest.importorskip("milvus_lite")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProductIndex, MilvusIndex]]:
    index = built()
    uri = str(tmp_path_factory.mktemp("milvus") / "shop.db")
    index.to("milvus", uri=uri).close()
    with MilvusIndex.connect(uri) as milvus:
        yield index, milvus


@pytest.mark.parametrize(
    "options",
    [
        {"group_by": "group"},
        {"min_score": 0.3},
        {"group_by": "in_stock", "min_score": 0.1},
        {"mode": "words"},
        {"mode": "words", "group_by": "group"},
        {"mode": "hybrid"},
        {"mode": "hybrid", "group_by": "group"},
    ],
    ids=str,
)
def test_hits_are_those_of_an_index_with_faiss(
    pair: tuple[ProductIndex, MilvusIndex], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (rankings, milvus_index):
        monkeypatch.setattr(module, "FIRST_DEPTH", 5)
    for filter in (None, [("sales", "<", 30)]):
        for k in (4, COUNT):
            mine, theirs = (
                one.search(vectors(4, seed=1), k, filter=filter, ranking=Ranking(**options), texts=QUERIES)
                for one in (pair[1], pair[0])
            )
            assert [len(hits) for hits in mine] == [len(hits) for hits in theirs]
            for one, other in zip(mine, theirs, strict=True):
                names = [[hit.product_id for hit in hits] for hits in (one, other)]
                groups = [{hit.metadata[options.get("group_by", "title")] for hit in hits} for hits in (one, other)]
                assert [hit.score for hit in one] == sorted((hit.score for hit in one), reverse=True)
                if "mode" not in options:
                    assert names[0] == names[1]
                    assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-5)
                elif k == COUNT:
                    # The weights of words are Milvus's own.
                    assert groups[0] == groups[1] and ("group_by" in options or {*names[0]} == {*names[1]})
        (words,) = pair[1].search(None, 3, ranking=Ranking(mode="words"), texts=["red"])
        assert [hit.product_id for hit in words] == [
            hit.product_id for hit in pair[0].search(None, 3, ranking=Ranking(mode="words"), texts=["red"])[0]
        ]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"boosts": {"sales": 0.1}}, "boosts .* with mode 'vectors' needs an index with FAISS; leave it out"),
        ({"mode": "hybrid", "weight": 0.5}, "weight 0.5 with mode 'hybrid' needs an index with FAISS"),
        ({"mode": "words", "min_score": 0.5}, "min_score 0.5 with mode 'words' needs"),
        ({"min_score": "calibrated"}, "min_score 'calibrated' with mode"),
        ({"group_by": "tags"}, "group_by names the column 'tags', which is list"),
        ({"group_by": "colour"}, "group_by names the column 'colour'; this index has title, tags"),
    ],
)
def test_what_milvus_lacks_is_said(
    pair: tuple[ProductIndex, MilvusIndex], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RankingError, match=message):
        pair[1].search(vectors(4), 3, ranking=Ranking(**options), texts=QUERIES)


def test_changes_keep_words_right_and_a_collection_without_words_says_so(tmp_path: Path) -> None:
    with built().to("milvus", uri=tmp_path / "shop.db") as index:
        assert index.facts()["lexical"] == ["title", "tags"]
        table = products(COUNT).slice(0, 1)
        table = table.set_column(0, "title", [["zebra crossing"]])
        index.update(vectors(1, seed=9), ["p5"], model_fingerprint="m", metadata=table)
        (found,) = index.search(None, 5, ranking=Ranking(mode="words"), texts=["a zebra"])
        assert [hit.product_id for hit in found] == ["p5"]
        index.delete(["p5"])
        assert index.search(None, 5, ranking=Ranking(mode="words"), texts=["a zebra"]) == [[]]
    bare = built(lexical=False)
    with bare.to("milvus", uri=tmp_path / "bare.db") as milvus, pytest.raises(RankingError, match="no index of words"):
        milvus.search(vectors(1), 3, ranking=Ranking(mode="hybrid"), texts=["red"])
