"""Words of product texts and of queries, in all scripts."""

import unicodedata
from collections.abc import Iterator, Sequence

import regex

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
