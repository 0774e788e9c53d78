"""A retriever measured on a catalogue: whatever turns texts and products into vectors."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import command

from mmfusion import Evaluation, Retriever, evaluate
from mmfusion.data.catalogue import Catalogue, CatalogueError
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.evaluation import evaluate_pool
from mmfusion.evaluation.evaluate import seen_in_training
from mmfusion.training.sources import load_base, starting_base


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("toy")
    return Catalogue.load(write_toy_catalogue(folder / "catalogue", num_products=120), cache_dir=folder / "cache")


class Words:
    """Vectors that count letters: no model of ours."""

    def encode_queries(self, queries: list[str]) -> np.ndarray:
        return np.array([[text.lower().count(letter) for letter in "abcdefghij"] for text in queries], np.float32)

    def encode_products(self, products: list[dict]) -> np.ndarray:
        assert all({"product_id", "title", "image"} <= product.keys() for product in products)
        return self.encode_queries([product["title"] for product in products])


def test_anything_that_encodes_is_measured_in_batches_of_any_size(catalogue: Catalogue) -> None:
    found = [evaluate(Words(), catalogue, "val", batch_size=size, name="words") for size in (7, 1_024)]
    assert found[0] == found[1] and found[0].name == "words"
    assert found[0].num_products == len(catalogue.product_rows("val"))
    assert {part.column for part in found[0].slices} == {"kind"}
    whole = evaluate(Words(), catalogue, "val", pool="all", product_slices=["split"])
    assert (whole.pool, whole.num_products) == ("all", len(catalogue.products))


@pytest.mark.parametrize(
    ("grades", "relevant_grade", "said"),
    [
        ([99, 40, 2, 1], None, "3 of 4 queries have no product with grade 99.*--relevant_grade 1 .there are 1, 2, 40"),
        ([3, 3, 1, 1], None, None),
        ([3, 1, 1, 1], 1, None),
    ],
)
def test_most_queries_without_a_relevant_product_are_a_warning(
    grades: list[int], relevant_grade: int | None, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [str(row) for row in range(4)]
    catalogue = Catalogue.from_records(
        [{"product_id": name, "title": name} for name in ids],
        [{"query_id": name, "query": name, "split": "test"} for name in ids],
        [{"query_id": name, "product_id": name, "grade": grade} for name, grade in zip(ids, grades, strict=True)],
    )
    columns = torch.tensor([[row, *[-1] * 99] for row in range(4)])
    with caplog.at_level("WARNING", logger="mmfusion"):
        evaluate_pool(columns, catalogue, relevant_grade=relevant_grade)
    assert not caplog.text if said is None else re.search(said, caplog.text)


def test_products_that_were_seen_in_training_are_counted(catalogue: Catalogue) -> None:
    assert seen_in_training(catalogue, "test")[0] == 0 < seen_in_training(catalogue, "test")[1]
    grades = {"a": {"1": 3, "2": 1, "3": 0}, "b": {"2": 3, "3": 2}}
    unsplit = Catalogue.from_records(
        [{"product_id": name, "title": name} for name in "123"],
        [{"query_id": "a", "query": "a", "split": "train"}, {"query_id": "b", "query": "b", "split": "test"}],
        [
            {"query_id": query, "product_id": product, "grade": grade}
            for query, found in grades.items()
            for product, grade in found.items()
        ],
    )
    assert seen_in_training(unsplit, "test") == (1, 2)


def test_a_retriever_has_the_numbers_of_the_command(catalogue: Catalogue, tmp_path: Path) -> None:
    base = starting_base(None, tmp_path / "base")
    command("evaluate")(catalogue=catalogue.source, base=base, output=str(tmp_path / "out"), split="val", name="tiny")
    by_command = Evaluation.load(tmp_path / "out", "tiny")
    by_api = evaluate(Retriever(*load_base(base)), catalogue, "val")
    assert by_api.means == pytest.approx(by_command.means)
    assert by_api.per_query.equals(by_command.per_query)
    assert by_api.conditions() == by_command.conditions()


def test_judgements_of_what_the_catalogue_lacks_are_dropped_if_told_so(tmp_path: Path) -> None:
    toy = write_toy_catalogue(tmp_path / "toy", num_products=40)
    judged = pq.read_table(toy / "qrels.parquet")
    more = pa.table({"query_id": judged["query_id"][:1], "product_id": ["gone"], "grade": [3]})
    pq.write_table(pa.concat_tables([judged, more.cast(judged.schema)]), toy / "qrels.parquet")
    given = {"catalogue": str(toy), "base": starting_base(None, tmp_path / "base"), "output": str(tmp_path / "out")}
    with pytest.raises(CatalogueError, match=r"'gone'.*--unknown_judgements drop"):
        command("evaluate")(**given)
    command("evaluate")(**given, unknown_judgements="drop")
    assert Evaluation.load(tmp_path / "out", "gated").num_queries > 0
