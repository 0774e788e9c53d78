"""Search by words: what a word is, and BM25 over the words of product texts."""

from mmfusion.lexical.bm25 import Corpus, WordCounts
from mmfusion.lexical.words import query_words, tokenize

__all__ = ["Corpus", "WordCounts", "query_words", "tokenize"]
