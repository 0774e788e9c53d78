"""Words, vectors and both beside each other: what `mmfusion evaluate --hybrid true` measures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mmfusion.evaluation.evaluate import PLACES
from mmfusion.retrieval import ProductIndex, Ranking
from mmfusion.retrieval.embedding import FloatArray

# Of vectors in the score of both.
WEIGHTS = tuple(step / 20 for step in range(21))


@dataclass(frozen=True)
class Pool:
    """Queries of a split, and the products that compete for them.

    Attributes:
        queries: Vectors (Q, D) float32.
        texts: Q texts.
        products: Vectors (N, D) float32.
        product_texts: N texts, whose words are searched.
        product_ids: N ids.
    """

    queries: FloatArray
    texts: Sequence[str]
    products: FloatArray
    product_texts: Sequence[str]
    product_ids: Sequence[str]

    def ranker(self) -> Callable[[Ranking], Tensor]:
        """Gives the columns int64 (Q, 100) of the products that a ranking puts first, -1 after its end."""
        metadata = pa.table({"text": list(self.product_texts)})
        options = {"model_fingerprint": "of this evaluation", "metadata": metadata, "lexical": ["text"]}
        index = ProductIndex.build(self.products, self.product_ids, **options)

        def columns(ranking: Ranking) -> Tensor:
            _, places = index.search_rows(self.queries, PLACES, ranking=ranking, texts=self.texts)
            missing = ((0, 0), (0, PLACES - places.shape[1]))
            return torch.from_numpy(np.pad(places, missing, constant_values=-1))

        return columns


def rankings(
    asked: Pool, tuning: Pool | None, measure: Callable[[Tensor], float]
) -> Iterator[tuple[str, Ranking, Tensor]]:
    """Rankings of a pool by words and by both: name, what it ranks by, and columns (Q, 100).

    Args:
        asked: What is measured.
        tuning: Where the weight of vectors is chosen, which is not what is measured; None: the weight is left out.
        measure: Of columns of the tuning pool, what to make as large as possible.
    """
    ranker = asked.ranker()
    found = {"words": Ranking(mode="words"), "rrf": Ranking(mode="hybrid")}
    if tuning is not None:
        tuned = tuning.ranker()
        values = {weight: measure(tuned(Ranking(mode="hybrid", weight=weight))) for weight in WEIGHTS}
        # Of equal ones the middle: the first would be the least of vectors.
        best = [weight for weight in WEIGHTS if values[weight] == max(values.values())]
        found["hybrid"] = Ranking(mode="hybrid", weight=best[len(best) // 2])
    for name, ranking in found.items():
        yield name, ranking, ranker(ranking)
