"""Rankings over HTTP: the same hits as in Python, and reasons for what cannot be."""

import json
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from test_serving import asking

from mmfusion.retrieval import ProductIndex, Searcher
from mmfusion.retriever import Retriever

RANKINGS: list[dict[str, Any]] = [
    {"mode": "words"},
    {"mode": "hybrid"},
    {"mode": "hybrid", "weight": 0.5, "group_by": "style", "boosts": {"sales": 0.2}, "min_score": -0.5},
    {"group_by": "style", "min_score": 0.05, "filter": [["sales", ">", 3]]},
]


@pytest.fixture(scope="module")
def searcher(encoder: Retriever) -> Searcher:
    drawn = np.random.default_rng(0).normal(size=(60, encoder.dimension)).astype(np.float32)
    words = ["red", "blue", "dress", "mug", "shirt"]
    table = pa.table(
        {
            "title": [f"{words[row % 5]} {words[row % 3]} {row}" for row in range(60)],
            "sales": list(range(60)),
            "style": [f"s{row // 4}" for row in range(60)],
        }
    )
    index = ProductIndex.build(
        drawn / np.linalg.norm(drawn, axis=1, keepdims=True),
        [f"p{row}" for row in range(60)],
        model_fingerprint=encoder.fingerprint,
        metadata=table,
        lexical=True,
    )
    return Searcher(encoder, index)


def test_rankings_are_those_of_python(searcher: Searcher) -> None:
    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        answers = []
        for options in RANKINGS:
            body = {"query": "red dress", "k": 6, **options}
            address = {name: value if isinstance(value, str) else json.dumps(value) for name, value in body.items()}
            answers += [await http.post("/search", json=body), await http.get("/search", params=address)]
        return answers

    answers = asking(searcher, ask)
    for number, options in enumerate(RANKINGS):
        expected = searcher.search("red dress", 6, **options)
        assert expected
        for answer in answers[2 * number : 2 * number + 2]:
            assert answer.status_code == 200, answer.text
            hits = answer.json()["hits"]
            assert [hit["product_id"] for hit in hits] == [hit.product_id for hit in expected]
            assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-6)
            assert [set(hit["parts"]) for hit in hits] == [set(hit.parts) for hit in expected]


@pytest.mark.parametrize(
    "options, text",
    [
        ({"mode": "both"}, "mode: Input should be 'vectors', 'words' or 'hybrid' (given: 'both')"),
        ({"weight": 0.5}, "weight 0.5 is for mode 'hybrid'"),
        ({"mode": "hybrid", "weight": -1}, "weight is -1.0; give a number from 0 to 1"),
        ({"group_by": "colour"}, "group_by names the column 'colour'; this index has title, sales, style"),
        ({"boosts": {"title": 0.5}}, "the boost names the column 'title', which is string"),
        ({"boosts": {"sales": 7}}, "the boost of 'sales' is 7.0; give a number from 0 to 1"),
        ({"boosts": {str(number): 0.1 for number in range(9)}}, "boosts: Dictionary should have at most 8 items"),
        ({"boosts": "sales"}, "boosts: expected value"),
        ({"min_score": 3}, "min_score is 3.0; give a number from -1 to 1"),
        ({"min_score": "calibrated"}, "this index is not; give a number"),
        ({"min_score": "calibrated", "mode": "words"}, "calibrated for vectors, and mode is 'words'"),
        ({"mode": "words", "query": " "}, "query: give a text to search for"),
    ],
)
def test_a_bad_ranking_is_refused_with_its_value(searcher: Searcher, options: dict[str, Any], text: str) -> None:
    async def ask(http: httpx.AsyncClient) -> list[httpx.Response]:
        body = {"query": "red", **options}
        return [await http.post("/search", json=body), await http.get("/search?query=red&mode=hybrid")]

    refused, after = asking(searcher, ask)
    assert (refused.status_code, after.status_code) == (400, 200)
    assert text in refused.json()["error"]


def test_words_of_an_index_without_them_are_a_reason(encoder: Retriever, searcher: Searcher) -> None:
    bare = ProductIndex.build(
        np.eye(encoder.dimension, dtype=np.float32),
        [*map(str, range(encoder.dimension))],
        model_fingerprint=encoder.fingerprint,
    )
    refused = asking(Searcher(encoder, bare), lambda http: http.get("/search?query=red&mode=hybrid"))
    assert refused.status_code == 400 and "mmfusion index --lexical true" in refused.json()["error"]
