"""BM25 over product text, the baseline that needs no model."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import regex
import torch
from torch import Tensor

from mmfusion.evaluation.ranking import TieOrder, check_sizes
from mmfusion.extras import library

_QUERY_CHUNK_SCORES = 8_000_000

_SYLLABIC = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}"
_UNSPACED = rf"\p{{Han}}\p{{Hiragana}}\p{{Katakana}}{_SYLLABIC}"
_WORD = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{_UNSPACED}]]+"
# Small kana and the lengthening mark are no syllable of their own.
_SMALL = "ーァィゥェォッャュョヮぁぃぅぇぉっゃゅょゎ"
# What one writes after another without a blank, syllable by syllable, and words; a point between digits joins them.
_RUN = regex.compile(
    rf"(?P<han>\p{{Han}}+)|(?P<katakana>(?:\p{{Katakana}}[{_SMALL}\p{{M}}]*)+)"
    rf"|(?P<hiragana>(?:\p{{Hiragana}}[{_SMALL}\p{{M}}]*)+)"
    rf"|(?P<syllabic>(?:[[{_SYLLABIC}]&&\p{{L}}](?:[\u17d2\u1039]\p{{L}}|\p{{M}})*)+)"
    rf"|(?P<word>{_WORD}(?:(?<=[0-9])\.(?=[0-9]){_WORD})*)",
    regex.V1,
)
# The letters after the first are no syllable of their own where a Khmer or Burmese sign stacks them.
_SYLLABLE = regex.compile(rf"[{_UNSPACED}](?:[\u17d2\u1039]\p{{L}}|[{_SMALL}\p{{M}}])*", regex.V1)
# A Chinese word is two characters as a rule; one of three syllables rarely comes about by chance where words meet.
_LENGTH = {"han": 2, "katakana": 3, "hiragana": 3, "syllabic": 3}

_FRACTION = regex.compile("[¼-¾⅐-⅟↉]")
# Joiners, soft hyphens, marks of direction; the blank of width zero parts words.
_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}--\u200b]", regex.V1)
_GREEK = regex.compile(r"\p{Greek}+")
_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)
_DECIMAL_COMMA = regex.compile(r"(?<![\w.,])([0-9]+),([0-9])(?![\w,])")


def tokenize(text: str) -> list[str]:
    """Words of a product's text as BM25 counts them; no stemming, no stop words.

    Words are runs of letters, marks, digits and underscores, single ones included, alike however they are written:
    full-width or not, composed or decomposed, in capitals or not (also Turkish ones with and without dot, German ß and
    Greek, whose capitals have no accents), and with the digits of any script. "10.5" and "10,5" are one word.

    Scripts without spaces give all pieces of one and two Chinese characters, and of one to three syllables of
    Japanese kana, Thai, Lao, Khmer and Burmese: the words that [`query_words`] may ask for.

    >>> tokenize("Men's T-shirt, İPEK 10,5")
    ['men', 's', 't', 'shirt', 'ipek', '10.5']
    >>> tokenize("连衣裙 XL")
    ['连', '衣', '裙', '连衣', '衣裙', 'xl']
    """
    words: list[str] = []
    for kind, run, _ in _runs(text):
        words += [run] if kind == "word" else _pieces(run, range(1, _LENGTH[kind] + 1))
    return words


def query_words(text: str) -> list[str]:
    """Words of a query: as of [`tokenize`], but of a script without spaces only pieces of full length.

    So "连衣裙" (dress) asks for 连衣 and 衣裙, and does not find a clothes hanger, 衣架. A run that is shorter is asked
    for as it is. Of Japanese, endings and particles of one or two hiragana next to another script are left out.

    >>> query_words("连衣裙 XL"), query_words("赤い服")
    (['连衣', '衣裙', 'xl'], ['赤', '服'])
    """
    words: list[str] = []
    for kind, run, attached in _runs(text):
        if kind == "word":
            words.append(run)
            continue
        syllables = _SYLLABLE.findall(run)
        if not (kind == "hiragana" and attached and len(syllables) < _LENGTH[kind]):
            words += _pieces(run, [min(_LENGTH[kind], len(syllables))])
    return words


def _runs(text: str) -> Iterator[tuple[str, str, bool]]:
    """Kind and characters of each run, and whether Chinese characters or katakana touch it."""
    found = list(_RUN.finditer(_folded(text)))
    for place, run in enumerate(found):
        before, after = found[place - 1 : place], found[place + 1 : place + 2]
        beside = [one for one in before if one.end() == run.start()] + [
            one for one in after if one.start() == run.end()
        ]
        yield str(run.lastgroup), run.group(), any(one.lastgroup in ("han", "katakana") for one in beside)


def _pieces(run: str, lengths: Sequence[int]) -> list[str]:
    syllables = _SYLLABLE.findall(run)
    return [
        "".join(syllables[start : start + length]) for length in lengths for start in range(len(syllables) - length + 1)
    ]


def _folded(text: str) -> str:
    """One spelling for all that readers take for the same."""
    if text.isascii():
        return _DECIMAL_COMMA.sub(r"\1.\2", text.lower())
    # 10½ would become 101⁄2.
    text = _INVISIBLE.sub("", _FRACTION.sub(r" \g<0>", text))
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = text.replace("i\u0307", "i").replace("ı", "i")
    text = _GREEK.sub(lambda run: _without_marks(run.group()), text)
    text = _DIGIT.sub(lambda digit: str(unicodedata.decimal(digit.group())), text)
    return _DECIMAL_COMMA.sub(r"\1.\2", text)


def _without_marks(text: str) -> str:
    return "".join(one for one in unicodedata.normalize("NFD", text) if not unicodedata.combining(one))


def rank_bm25(
    queries: Sequence[str],
    product_texts: Sequence[str],
    k: int,
    product_ids: Sequence[str] | np.ndarray,
    *,
    k1: float = 1.2,
    b: float = 0.75,
) -> tuple[Tensor, Tensor]:
    """Ranks products by BM25 (Lucene's variant, whose inverse document frequency is never negative).

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
        ImportError: The extra `bm25` is not installed.
        ValueError: Ids and texts differ in number or an id appears twice.
    """
    order = TieOrder(product_ids)
    if len(order) != len(product_texts):
        raise ValueError(f"{len(product_texts)} product texts for {len(order)} product ids; pass one each")
    check_sizes(k=k)
    product_words = [tokenize(text) for text in product_texts]
    scores = torch.full((len(queries), k), -torch.inf)
    columns = torch.full((len(queries), k), -1, dtype=torch.int64)
    if not any(product_words):
        return scores, columns
    index = library("bm25s", "bm25").BM25(method="lucene", k1=k1, b=b)
    index.index(product_words, show_progress=False)
    step = max(1, _QUERY_CHUNK_SCORES // len(product_words))
    for start in range(0, len(queries), step):
        chunk = torch.from_numpy(np.stack([_scores(index, text) for text in queries[start : start + step]]))
        scores[start : start + step], columns[start : start + step] = order.top(chunk, k)
    unmatched = scores <= 0
    return scores.masked_fill(unmatched, -torch.inf), columns.masked_fill(unmatched, -1)


def _scores(index: Any, query: str) -> np.ndarray:
    """Float32 [N], 0 for products that share no word with the query."""
    known = [word for word in query_words(query) if word in index.vocab_dict]
    if not known:
        return np.zeros(index.scores["num_docs"], dtype=np.float32)
    return np.asarray(index.get_scores(known), dtype=np.float32)
