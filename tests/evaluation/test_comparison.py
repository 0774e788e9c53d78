"""Evaluations side by side: which is compared with which, and on which queries."""

import numpy as np
import pyarrow as pa
import pytest

from mmfusion.data.qrels import Qrels
from mmfusion.evaluation import Evaluation, evaluate_rankings, format_comparison, paired_bootstrap

KINDS = ["visual", "textual", "visual", "textual"]


def evaluation(name: str, hits: list[bool]) -> Evaluation:
    """Query i is relevant to product i; where it is a hit the product comes first, otherwise it is not found."""
    ranked = np.array([[i if hit else (i + 1) % 4, -1, -1, -1] for i, hit in enumerate(hits)])
    rows = np.arange(4)
    return evaluate_rankings(
        ranked,
        rows,
        Qrels(rows, rows, np.full(4, 3)),
        queries=pa.table({"query_id": [f"q{i}" for i in rows], "query": ["x"] * 4, "kind": KINDS}),
        products=pa.table({"product_id": [f"p{i}" for i in rows], "stripped": ["yes", "yes", "no", "no"]}),
        product_rows=rows,
        relevant_grade=3,
        pool="split",
        query_slices=["kind"],
        product_slices=["stripped"],
        name=name,
    )


ABLATION = [
    evaluation("bm25", [False, True, False, False]),
    evaluation("text_only", [False, True, False, True]),
    evaluation("fusion", [True, True, True, False]),
]


def test_each_variant_is_compared_with_the_one_before_and_the_last_with_all() -> None:
    text = format_comparison(ABLATION)
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("- ")] == [
        "- text_only against bm25",
        "- fusion against bm25",
        "- fusion against bm25, kind textual",
        "- fusion against bm25, kind visual",
        "- fusion against text_only",
        "- fusion against text_only, kind textual",
        "- fusion against text_only, kind visual",
    ]
    assert "- fusion against text_only, kind visual: recall@100: +100.0 points, 95 % interval [+100.0, +100.0]" in text
    assert "| stripped=yes " in text and text.index("| bm25") < text.index("| text_only") < text.index("| fusion")


def test_a_part_of_the_queries_is_compared_alone() -> None:
    result = paired_bootstrap(ABLATION[2], ABLATION[1], "recall@100", where=("kind", "textual"))
    assert result.num_queries == 2 and result.difference == pytest.approx(-0.5)
    with pytest.raises(ValueError, match=r"'fusion' was not sliced by 'brand'"):
        paired_bootstrap(ABLATION[2], ABLATION[1], "recall@100", where=("brand", "x"))


def test_one_evaluation_is_a_table_without_comparisons() -> None:
    assert "- " not in format_comparison(ABLATION[:1]).replace("|-", "").replace("-|", "")
