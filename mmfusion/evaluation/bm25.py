"""BM25 over product text, the baseline that needs no model."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfusion.evaluation.ranking import TieOrder

_WORD = re.compile(r"\w+")
_QUERY_CHUNK_SCORES = 8_000_000


def tokenize(text: str) -> list[str]:
    """Lower-cased runs of letters, digits and underscores; no stemming, no stop words.

    >>> tokenize("Men's T-shirt, blue")
    ['men', 's', 't', 'shirt', 'blue']
    """
    return _WORD.findall(text.lower())


def rank_bm25(
    queries: Sequence[str],
    product_texts: Sequence[str],
    k: int,
    product_ids: Sequence[str] | np.ndarray,
    *,
    k1: float = 1.2,
    b: float = 0.75,
) -> tuple[Tensor, Tensor]:
    """Rank products by BM25 (Lucene's variant, whose inverse document frequency is never negative).

    A product without any word of the query is *not retrieved*: the ranking ends before it. Filling up with such
    products in whatever order would hand out Recall by chance. Equal scores are ordered as in `ranking.rank`.

    Args:
        queries: Q texts.
        product_texts: N texts; join title and description before, if both are to be searched.
        k: places wanted, at least 1.
        product_ids: N different ids.
        k1: saturation of repeated words, at least 0.
        b: strength of length normalisation, in [0, 1].

    Returns:
        Scores float32 [Q, k] and columns (positions in `product_texts`) int64 [Q, k], padded with -inf and -1 where
        fewer than k products match.

    Raises:
        ImportError: the extra `bm25` is not installed.
        ValueError: ids and texts differ in number or an id comes twice.
    """
    order = TieOrder(product_ids)
    if len(order) != len(product_texts):
        raise ValueError(f"{len(product_texts)} product texts for {len(order)} product ids; pass one each")
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")
    product_words = [tokenize(text) for text in product_texts]
    scores = torch.full((len(queries), k), -torch.inf)
    columns = torch.full((len(queries), k), -1, dtype=torch.int64)
    if not any(product_words):
        return scores, columns
    index = _import_bm25s().BM25(method="lucene", k1=k1, b=b)
    index.index(product_words, show_progress=False)
    step = max(1, _QUERY_CHUNK_SCORES // len(product_words))
    for start in range(0, len(queries), step):
        chunk = torch.from_numpy(np.stack([_scores(index, text) for text in queries[start : start + step]]))
        scores[start : start + step], columns[start : start + step] = order.top(chunk, k)
    unmatched = scores <= 0
    return scores.masked_fill(unmatched, -torch.inf), columns.masked_fill(unmatched, -1)


def _scores(index: Any, query: str) -> np.ndarray:
    """Float32 [N], 0 for products that share no word with the query."""
    known = [word for word in tokenize(query) if word in index.vocab_dict]
    if not known:
        return np.zeros(index.scores["num_docs"], dtype=np.float32)
    return np.asarray(index.get_scores(known), dtype=np.float32)


def _import_bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise ImportError(
            "the BM25 baseline needs the library bm25s; install it with: pip install 'mmfusion[bm25]'"
        ) from error
    return bm25s
