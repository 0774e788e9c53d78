"""Runs: what is written is read back in the same order, and other systems get the numbers of pytrec_eval."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import torch
from commands import command
from hypothesis import given
from hypothesis import strategies as st

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.evaluation import Evaluation
from mmfusion.evaluation.ranking import rank
from mmfusion.evaluation.trec_runs import RunFileError, read_run, write_run
from mmfusion.training import starting_base

QUERIES, PRODUCTS = ["q1", "q 2", "q3"], ["10", "9", "a b", "é", "🧥"]


SCORES = st.lists(st.floats(-10, 10, width=32), min_size=5, max_size=5)


@given(st.lists(SCORES, min_size=3, max_size=3), st.integers(1, 7))
def test_a_ranking_that_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, values: list[list[float]], k: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "model.run"
    scores, columns = rank(torch.tensor(values), torch.eye(5), k, PRODUCTS)
    write_run(path, QUERIES, PRODUCTS, scores, columns, "my tag")
    read, places = read_run(path, QUERIES, PRODUCTS, k)
    assert torch.equal(read, scores + 0.0) and torch.equal(places, columns)


def test_ids_without_blanks_are_separated_by_blanks(tmp_path: Path) -> None:
    scores, columns = torch.tensor([[0.5, -torch.inf]]), torch.tensor([[1, -1]])
    write_run(tmp_path / "run", ["q"], ["10", "9"], scores, columns, "gated model")
    assert (tmp_path / "run").read_text() == "q Q0 9 1 0.5 gated_model\n"
    with pytest.raises(RunFileError, match=r"'9\\t' holds a tab"):
        write_run(tmp_path / "run", ["q"], ["10", "9\t"], scores, columns, "t")


def test_order_is_by_score_and_then_by_id_descending_and_not_by_rank(tmp_path: Path) -> None:
    lines = ["q1 Q0 10 1 0.5 t", "q1\tQ0\ta b\t2\t0.5\tt", "q1 Q0 9 3 0.50000000001 t", "", "q1 Q0 é 4 2 t\r"]
    (tmp_path / "run.gz").write_bytes(gzip.compress("\n".join(lines).encode("utf-8-sig")))
    scores, columns = read_run(tmp_path / "run.gz", ["q1", "q2"], PRODUCTS, 6)
    assert [PRODUCTS[column] for column in columns[0, :4]] == ["é", "a b", "9", "10"]
    assert columns[0, 4:].tolist() == [-1, -1] and columns[1].tolist() == [-1] * 6
    assert scores[0, :4].tolist() == [2.0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1 Q0 10 1 0.5", r"line 1: 5 fields where a run has 6"),
        ("q1 Q0 a b 1 0.5 t", r"line 1: 7 fields.*Ids with blanks need tabs"),
        ("q1 Q0 10 1 high t", r"line 1: the score is 'high'"),
        ("q1 Q0 10 1 nan t", r"line 1: the score is 'nan'"),
        ("q1 Q0 10 1 2 t\nq1 Q0 10 2 1 t", r"line 2: query 'q1' ranks product '10' twice"),
        ("q1 Q0 10 1 2 t\nq1 Q0 77 2 1 t", r"ranks 1 products that do not compete here \('77' in line 2\).*--pool all"),
        ("\n\nq1 Q0 77 1 2 t", r"'77' in line 3"),
        ("q1 Q0  1 2 t", r"line 1: 5 fields where a run has 6"),
        ("other Q0 10 1 2 t", r"ranks none of the 3 queries of this split \(it has 'other'\)"),
        ("", r"ranks none of the 3 queries"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run").write_text(text)
    with pytest.raises(RunFileError, match=message):
        read_run(tmp_path / "run", QUERIES, PRODUCTS, 3)


def test_several_blanks_between_fields_are_as_good_as_one(tmp_path: Path) -> None:
    found = []
    for blanks in (" ", "   "):
        (tmp_path / "run").write_text(blanks.join(["q1", "Q0", '"10', "1", "1e-3", "t\n"]), newline="\r\n")
        found.append([part.tolist() for part in read_run(tmp_path / "run", QUERIES, ['"10', "9"], 1)])
    assert found[0] == found[1] and found[0][1] == [[0], [-1], [-1]]


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.gz").write_bytes(b"no gzip")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("missing", "run.gz", "bytes"):
        with pytest.raises(RunFileError, match=f"{name} cannot be read"):
            read_run(tmp_path / name, QUERIES, PRODUCTS, 3)


def test_another_system_has_the_numbers_of_pytrec_eval(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    toy = write_toy_catalogue(tmp_path / "toy", num_products=80)
    catalogue = Catalogue.load(toy, cache_dir=tmp_path / "cache")
    queries, products = (catalogue.judged_queries("test"), catalogue.product_rows("test"))
    rng = np.random.default_rng(0)
    # Few different scores, so that many tie; the last query has no ranking, and one of another split has one.
    run = {
        str(catalogue.query_ids[query]): {
            str(catalogue.product_ids[product]): float(rng.integers(0, 4)) for product in rng.permutation(products)[:15]
        }
        for query in [*queries[:-1], catalogue.query_rows("train")[0]]
    }
    lines = [f"{query} Q0 {product} 0 {score} sys\n" for query, own in run.items() for product, score in own.items()]
    (tmp_path / "system.run").write_text("".join(lines))
    options = {"output": str(tmp_path / "out"), "run_file": str(tmp_path / "system.run"), "ranker": "run"}
    with caplog.at_level(logging.WARNING, logger="mmfusion"):
        command("evaluate")(**options, catalogue=str(toy))
    assert f"{len(queries) - 1} of {len(queries)} queries are ranked" in caplog.text and "1 further" in caplog.text
    found = Evaluation.load(tmp_path / "out", "system")
    judged: dict[str, dict[str, int]] = {}
    qrels = catalogue.split_qrels("test")
    for query, product, grade in zip(qrels.query, qrels.product, qrels.grade, strict=True):
        judged.setdefault(str(catalogue.query_ids[query]), {})[str(catalogue.product_ids[product])] = int(grade)
    level = found.relevant_grade
    recall = pytrec_eval.RelevanceEvaluator(judged, {"recall.10,100"}, relevance_level=level).evaluate(run)
    ndcg = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10"}).evaluate(run)
    for row in found.per_query.to_pylist():
        own = {**recall.get(row["query_id"], {}), **ndcg.get(row["query_id"], {})}
        for metric, theirs in (("recall@10", "recall_10"), ("recall@100", "recall_100"), ("ndcg@10", "ndcg_cut_10")):
            if row[metric] is not None:
                assert row[metric] == pytest.approx(own.get(theirs, 0.0), abs=1e-6), (row["query_id"], metric)
    for wrong in ({**options, "run_file": None}, {**options, "perturb": "typos"}, options):
        with pytest.raises(ValueError, match="--ranker run"):
            command("evaluate")(**wrong, base=str(tmp_path / "nothing"))


def test_the_run_of_a_model_has_its_numbers_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = write_toy_catalogue(tmp_path / "toy", num_products=60)
    base, out, run = starting_base(None, tmp_path / "b"), str(tmp_path / "out"), str(tmp_path / "model.run")
    for ranker, name in (("model", "gated"), ("bm25", "bm25")):
        command("evaluate")(catalogue=str(toy), base=base, output=out, ranker=ranker, run_file=run)
        command("evaluate")(catalogue=str(toy), output=out, ranker="run", run_file=run, name="again", compare=[name])
        first, second = (json.loads((tmp_path / "out" / f"{one}.json").read_text()) for one in (name, "again"))
        assert first["means"] == second["means"]
    assert "| again" in capsys.readouterr().out
