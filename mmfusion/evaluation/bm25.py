"""BM25 over product text, the baseline that needs no model."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmfusion.evaluation.ranking import TieOrder, check_sizes
from mmfusion.lexical import Corpus, WordCounts

_QUERY_CHUNK_SCORES = 8_000_000


def rank_bm25(
    queries: Sequence[str],
    product_texts: Sequence[str],
    k: int,
    product_ids: Sequence[str] | np.ndarray,
    *,
    k1: float = 1.2,
    b: float = 0.75,
) -> tuple[Tensor, Tensor]:
    """Ranks products by BM25, see [`Corpus`].

    A product without any word of the query is *not retrieved*: the ranking ends before it. Filling up with such
    products in whatever order would hand out Recall by chance. Equal scores are ordered as in `ranking.rank`.

    Args:
        queries: Q texts.
        product_texts: N texts; join title and description before, if both are to be searched.
        k: Places wanted, at least 1.
        product_ids: N different ids.
        k1: Saturation of repeated words, at least 0.
        b: Strength of length normalisation, in [0, 1].

    Returns:
        Scores float32 [Q, k] and columns (positions in `product_texts`) int64 [Q, k], padded with -inf and -1 where
        fewer than k products match.

    Raises:
        ValueError: Ids and texts differ in number or an id appears twice.
    """
    order = TieOrder(product_ids)
    if len(order) != len(product_texts):
        raise ValueError(f"{len(product_texts)} product texts for {len(order)} product ids; pass one each")
    check_sizes(k=k)
    corpus = Corpus([(WordCounts.of(product_texts), np.ones(len(product_texts), dtype=bool))], k1=k1, b=b)
    scores = torch.full((len(queries), k), -torch.inf)
    columns = torch.full((len(queries), k), -1, dtype=torch.int64)
    step = max(1, _QUERY_CHUNK_SCORES // max(1, len(product_texts)))
    for start in range(0, len(queries), step):
        chunk = np.stack([corpus.scores(text)[0][0] for text in queries[start : start + step]])
        scores[start : start + step], columns[start : start + step] = order.top(torch.from_numpy(chunk), k)
    unmatched = scores <= 0
    return scores.masked_fill(unmatched, -torch.inf), columns.masked_fill(unmatched, -1)
