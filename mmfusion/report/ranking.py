"""What a model finds for the queries of a split: its first ten products, with weights and metrics by query."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.feature_cache import FeatureCache
from mmfusion.data.tables import Rows
from mmfusion.evaluation import Evaluation, evaluate_rankings, rank
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.retrieval.embedding import embed_products, embed_queries
from mmfusion.retrieval.fingerprint import model_fingerprint

PLACES = 10


@dataclass(frozen=True)
class Questions:
    """Queries, the products that compete for them, and who is right.

    Attributes:
        catalogue: Where the rows point.
        query_rows: (Q,) int64.
        product_rows: (P,) int64 ascending, the pool.
        split: Split of the queries.
        pool: "split" or "all".
        relevant_grade: Lowest grade that counts as relevant.
    """

    catalogue: Catalogue
    query_rows: Rows
    product_rows: Rows
    split: str
    pool: str
    relevant_grade: int

    @classmethod
    def like(cls, evaluation: Evaluation, catalogue: Catalogue, split: str | None) -> "Questions":
        """The judged queries of a split, over the kind of pool and with the relevant grade of an evaluation.

        Args:
            evaluation: A variant of the ablation.
            catalogue: The catalogue that it was evaluated on.
            split: None takes the evaluation's own.

        Raises:
            ValueError: The split or pool has another size than the evaluation's: it is not the same catalogue.
        """
        own = evaluation.provenance.get("split")
        split = split or str(own or "test")
        query_rows = np.unique(catalogue.split_qrels(split).query)
        product_rows = catalogue.product_rows(split if evaluation.pool == "split" else None)
        found, expected = (len(query_rows), len(product_rows)), (evaluation.num_queries, evaluation.num_products)
        if split == (own or split) and found != expected:
            raise ValueError(
                f"split {split!r} of catalogue {catalogue.source!r} has (queries, products) {found}, but "
                f"{evaluation.name!r} was evaluated on {expected}; give the catalogue and split of the results: "
                "--catalogue, --split"
            )
        return cls(catalogue, query_rows, product_rows, split, evaluation.pool, evaluation.relevant_grade)


@dataclass(frozen=True)
class Ranking:
    """What one model found.

    Attributes:
        name: Kind of fusion network.
        fingerprint: Of the model.
        products: (Q, 10) int64 product rows, best first, -1 after the end.
        scores: (Q, 10) float32.
        weights: (P, 2) float32, shares of text and photo by column of the pool.
        text_name: What the product text is: "title", or "text" where it holds more.
        per_query: Metrics by query, as an evaluation has them, in the order of the queries.
    """

    name: str
    fingerprint: str
    products: Rows
    scores: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    text_name: str
    per_query: dict[str, list[Any]]


def rank_with(
    model: MMFusionModel,
    processor: MMFusionProcessor,
    questions: Questions,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    cache: FeatureCache | None = None,
) -> Ranking:
    """Embeds queries and pool with a model in evaluation mode and ranks the pool for every query."""
    catalogue, pool = questions.catalogue, questions.product_rows
    options = {"batch_size": batch_size, "num_workers": num_workers, "cache": cache}
    embedded = embed_products(model, processor, catalogue, pool, **options)  # type: ignore[arg-type]
    queries = embed_queries(model, processor, catalogue, questions.query_rows)
    scores, columns = rank(queries, embedded.embeds, PLACES, catalogue.product_ids[pool])
    products = np.where(columns.numpy() < 0, -1, pool[columns.numpy()])
    evaluation = evaluate_rankings(
        products,
        questions.query_rows,
        catalogue.split_qrels(questions.split) if questions.pool == "split" else catalogue.qrels,
        queries=catalogue.queries,
        product_rows=pool,
        relevant_grade=questions.relevant_grade,
        pool=questions.pool,
        query_slices=["kind"] if "kind" in catalogue.queries.column_names else [],
        recall_at=(PLACES,),
        ndcg_at=(PLACES,),
    )
    return Ranking(
        name=model.config.fusion,
        fingerprint=model_fingerprint(model, processor),
        products=products,
        scores=scores.numpy(),
        weights=embedded.modality_weights,
        text_name="title" if processor.template_columns == ["title"] else "text",
        per_query=evaluation.per_query.to_pydict(),
    )
