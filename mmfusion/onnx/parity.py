"""Whether two query encoders give the same vectors, whatever the lengths and the size of the batch."""

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from mmfusion.retrieval.search import QueryEncoder

_FIXED = ["red floral summer dress", "42", "¿vestido rojo de algodón?", "连衣裙 🧥", "قميص أزرق", "A" * 400]
# Of one text and of two, of an odd number, and of more than PyTorch embeds at once.
_BATCHES = (2, 7, 40)


def probe_texts(tokenizer: Tokenizer, max_length: int) -> list[str]:
    """Queries of 1 to more than `max_length` tokens: fixed ones, and words drawn from the vocabulary."""
    # Without the mark that SentencePiece puts for a blank, which nobody writes.
    plain = sorted({word.replace("▁", "") for word in tokenizer.get_vocab()})
    words = [word for word in plain if word.isprintable() and word.strip()]
    rng = np.random.default_rng(0)
    lengths = sorted({1, 2, 3, 5, 8, max(1, max_length // 2), max_length, 2 * max_length})
    return [*_FIXED, *(" ".join(rng.choice(words, length)) for length in lengths)]


def largest_difference(reference: QueryEncoder, other: QueryEncoder, texts: list[str]) -> float:
    """The largest absolute difference of a component, over texts by themselves and padded in batches of several sizes.

    Returns:
        At least 0; NaN if a vector holds one.
    """
    differences = [
        np.abs(reference.encode_queries(batch) - other.encode_queries(batch)).max() for batch in _batches(texts)
    ]
    return float(np.max(differences))


def _batches(texts: list[str]) -> Iterator[list[str]]:
    yield from ([text] for text in texts)
    mixed = np.random.default_rng(0).permutation(texts).tolist()
    for size in _BATCHES:
        yield [mixed[place % len(mixed)] for place in range(size)]
