"""Which queries a report shows, and what two models find for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.feature_cache import FeatureCache
from mmfusion.data.tables import Rows
from mmfusion.evaluation import Evaluation, evaluate_pool, rank
from mmfusion.evaluation.evaluate import PLACES as EVALUATED_PLACES
from mmfusion.evaluation.evaluate import Pool
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.retrieval.embedding import embed_products, embed_queries
from mmfusion.retrieval.fingerprint import model_fingerprint

PLACES = 10
METRIC = "ndcg@10"
MAX_KINDS = 12


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
    pool: Pool
    relevant_grade: int

    @classmethod
    def like(cls, evaluation: Evaluation, catalogue: Catalogue, split: str | None) -> Questions:
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
        return cls(catalogue, query_rows, product_rows, split, cast(Pool, evaluation.pool), evaluation.relevant_grade)


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


@dataclass(frozen=True)
class Chosen:
    """One chosen query: its place in the rankings, and why it was chosen."""

    place: int
    reason: str


@dataclass(frozen=True)
class Kind:
    """The queries of one kind.

    Attributes:
        name: Value of the column `kind`; "all" where the catalogue has none.
        better: Queries whose nDCG@10 is higher with the second model.
        equal: Queries where it is the same.
        worse: Queries where it is lower.
        chosen: The queries to show, those with the largest gain first, then the largest loss, then random ones.
    """

    name: str
    better: int
    equal: int
    worse: int
    chosen: list[Chosen]


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
    scores, columns = rank(queries, embedded.embeds, EVALUATED_PLACES, catalogue.product_ids[pool])
    evaluation = evaluate_pool(
        columns, catalogue, questions.split, pool=questions.pool, relevant_grade=questions.relevant_grade
    )
    found = columns[:, :PLACES].numpy()
    return Ranking(
        name=model.config.fusion,
        fingerprint=model_fingerprint(model, processor),
        products=np.where(found < 0, -1, pool[found]),
        scores=scores[:, :PLACES].numpy(),
        weights=embedded.modality_weights,
        text_name="title" if processor.template_columns == ["title"] else "text",
        per_query=evaluation.per_query.to_pydict(),
    )


def choose(first: Ranking, second: Ranking, queries_per_kind: int, *, seed: int) -> list[Kind]:
    """Chooses queries of each kind by the difference of nDCG@10, second model minus first.

    A third of the places (rounded up) goes to the largest gains, a third to the largest losses, the rest to queries
    drawn from the others; a place for which there is no gain or no loss is drawn too. Equal differences are ordered
    by query id. Only queries that have something to find are considered. Kinds are in alphabetical order; beyond
    `MAX_KINDS`, those with the most queries are kept.

    Args:
        first: The baseline.
        second: The fusion model, over the same queries.
        queries_per_kind: At least 0.
        seed: Of the random queries.

    Raises:
        ValueError: `queries_per_kind` is negative.
    """
    if queries_per_kind < 0:
        raise ValueError(f"queries_per_kind is {queries_per_kind}; give 0 (no queries) or more")
    pairs = zip(first.per_query[METRIC], second.per_query[METRIC], strict=True)
    gains = {place: pair[1] - pair[0] for place, pair in enumerate(pairs) if None not in pair}
    kinds: dict[str, list[int]] = {}
    for place in sorted(gains, key=lambda place: first.per_query["query_id"][place]):
        kind = str(first.per_query["kind"][place]) if "kind" in first.per_query else "all"
        kinds.setdefault(kind, []).append(place)
    kept = sorted(kinds, key=lambda name: (-len(kinds[name]), name))[:MAX_KINDS]
    return [
        _choose(name, kinds[name], gains, queries_per_kind, [seed, number]) for number, name in enumerate(sorted(kept))
    ]


def _choose(name: str, places: list[int], gains: dict[int, float], count: int, seed: list[int]) -> Kind:
    by_gain = sorted(places, key=lambda place: -gains[place])
    up = [place for place in by_gain if gains[place] > 0]
    down = [place for place in reversed(by_gain) if gains[place] < 0]
    share = -(-count // 3)
    chosen = [Chosen(place, "largest gain") for place in up[:share]]
    chosen += [Chosen(place, "largest loss") for place in down[: min(share, count - share)]]
    taken = {choice.place for choice in chosen}
    others = [place for place in places if place not in taken]
    size = min(count - len(chosen), len(others))
    drawn = np.random.default_rng(seed).choice(others, size=size, replace=False).tolist() if size else []
    chosen += [Chosen(int(place), "drawn at random") for place in drawn]
    return Kind(name, len(up), len(places) - len(up) - len(down), len(down), chosen)
