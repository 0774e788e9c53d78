"""BM25 over texts of which some may go and others come."""

import bisect
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mmfusion.lexical.words import query_words, tokenize

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Postings = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]


class WordCounts:
    """How often each word is in each of N texts: what BM25 is computed from when a query comes.

    Scores that are computed before, as libraries hold them, belong to the texts that were there; counts stay right when
    some of them go and others come.

    Args:
        table: One row of lists, which may be memory-mapped: `words` (ascending), `starts` (of each word in the next
            two, and their length), `rows` (ascending for each word) and `counts`, and `lengths` (words of each text).
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        lists = {name: table.column(name).chunk(0).values for name in table.column_names}
        self._words = lists.pop("words")
        self._starts, self._rows, self._counts, self.lengths = (one.to_numpy() for one in lists.values())

    @classmethod
    def of(cls, texts: Iterable[str]) -> "WordCounts":
        """Counts the words of texts, as [`tokenize`] finds them."""
        known: dict[str, int] = {}
        numbers, lengths = array("i"), array("i")
        for text in texts:
            words = tokenize(text)
            numbers.extend([known.setdefault(word, len(known)) for word in words])
            lengths.append(len(words))
        words = sorted(known)
        place = np.empty(len(words), np.int64)
        place[[known[word] for word in words]] = np.arange(len(words))
        # One number for each pair of a word and a text, in the order of both.
        rows = np.repeat(np.arange(len(lengths)), lengths)
        pairs, counts = np.unique(place[np.asarray(numbers)] * len(lengths) + rows, return_counts=True)
        of_word, rows = np.divmod(pairs, max(1, len(lengths)))
        starts = np.searchsorted(of_word, np.arange(len(words) + 1))
        columns = {
            "words": pa.array(words, pa.string()),
            "starts": pa.array(starts, pa.int64()),
            "rows": pa.array(rows, pa.int32()),
            "counts": pa.array(counts, pa.int32()),
            "lengths": pa.array(np.asarray(lengths), pa.int32()),
        }
        lists = {
            name: pa.LargeListArray.from_arrays(pa.array([0, len(one)], pa.int64()), one)
            for name, one in columns.items()
        }
        return cls(pa.table(lists))

    def __len__(self) -> int:
        return len(self.lengths)

    def postings(self, word: str) -> Postings:
        """Rows of the texts with a word, ascending, and how often it is in each."""
        place = bisect.bisect_left(self._words, word, key=_text)
        if place == len(self._words) or self._words[place].as_py() != word:
            return self._rows[:0], self._counts[:0]
        part = slice(self._starts[place], self._starts[place + 1])
        return self._rows[part], self._counts[part]


class Corpus:
    """Several parts of texts, of which some are left out, as one corpus.

    Scores are those that a corpus of the texts which are not left out would give.

    Args:
        parts: Counts of each part, and which of its texts are in, (N,) bool.
        k1: Saturation of repeated words, at least 0.
        b: Strength of length normalisation, in [0, 1].
    """

    def __init__(self, parts: Sequence[tuple[WordCounts, BoolArray]], *, k1: float = 1.2, b: float = 0.75) -> None:
        self._parts, self._k1, self._b = parts, k1, b
        self._count = sum(int(np.count_nonzero(there)) for _, there in parts)
        total = sum(int(counts.lengths[there].sum()) for counts, there in parts)
        self._mean = max(1, total) / max(1, self._count)

    def scores(self, query: str) -> tuple[list[FloatArray], float]:
        """BM25 of all texts (Lucene's variant, whose inverse document frequency is never negative).

        Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009; variant: Kamphuis
        et al., Which BM25 Do You Mean?, ECIR 2020.

        Args:
            query: A text.

        Returns:
            Of each part float32 (N,), 0 for texts without a word of the query; and what no text can reach, the sum of
            the inverse document frequencies of the query's words.
        """
        found = [np.zeros(len(counts)) for counts, _ in self._parts]
        most = 0.0
        for word, times in Counter(query_words(query)).items():
            postings = [_those(counts.postings(word), there) for counts, there in self._parts]
            texts = sum(len(rows) for rows, _ in postings)
            weight = times * float(np.log1p((self._count - texts + 0.5) / (texts + 0.5)))
            most += weight
            for scores, (counts, _), (rows, often) in zip(found, self._parts, postings, strict=True):
                length = 1 - self._b + self._b * counts.lengths[rows] / self._mean
                scores[rows] += weight * often / (often + self._k1 * length)
        return [scores.astype(np.float32) for scores in found], most


def _those(postings: Postings, there: BoolArray) -> Postings:
    rows, counts = postings
    kept = there[rows]
    return rows[kept], counts[kept]


def _text(word: pa.Scalar) -> str:
    text: str = word.as_py()
    return text
