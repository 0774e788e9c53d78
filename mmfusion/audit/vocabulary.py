"""Attributes that a title names and a photo shows: their values, the words for these, and where a text names them."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from mmfusion.evaluation.perturb import COLOURS
from mmfusion.model.errors import MMFusionError

# Scripts that put no blank between words, so that a word is found wherever its letters are.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")

_PATTERNS = (
    ("solid", "plain"),
    ("striped", "stripes", "stripe", "stripy", "pinstripe", "pinstriped"),
    ("checked", "checks", "check", "checkered", "chequered", "plaid", "gingham", "tartan"),
    ("printed", "print", "graphic"),
    ("floral", "flowery", "flowers"),
    ("dotted", "polka dot", "polka dots", "polka", "spotted"),
    ("leopard", "zebra", "animal print"),
    ("camouflage", "camo"),
)
_AUDIENCES = (
    ("men", "men's", "mens", "man", "gents", "male"),
    ("women", "women's", "womens", "woman", "ladies", "lady", "female"),
    ("boys", "boy's", "boy"),
    ("girls", "girl's", "girl"),
)
_MATERIALS = tuple(
    (word,) for word in ("cotton", "denim", "leather", "linen", "polyester", "nylon", "silk", "suede", "canvas", "wool")
)


class VocabularyError(MMFusionError):
    """A vocabulary cannot be used; the message names the value, its place and the remedy."""


@dataclass(frozen=True)
class Attribute:
    """Values that exclude one another, and the words for each.

    Attributes:
        name: For example "colour".
        values: Words by value; the first word is the value's own.
    """

    name: str
    values: Mapping[str, tuple[str, ...]]

    @cached_property
    def _value_of(self) -> dict[str, str]:
        return {word: value for value, words in self.values.items() for word in words}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # Longest first: "polka dots" before "polka".
        return re.compile("|".join(map(_bounded, sorted(self._value_of, key=len, reverse=True))))

    def named_in(self, text: str) -> tuple[str, ...]:
        """The values that a text names, each once, in the order of the text; ``()`` where it names none."""
        found = self._pattern.findall(folded(text))
        return tuple(dict.fromkeys(self._value_of[word] for word in found))

    def replaced(self, text: str, value: str) -> str:
        """The text in lower case, with another value in place of each word for one."""
        return self._pattern.sub(value, folded(text))

    def only(self, values: Iterable[str]) -> Attribute:
        """The attribute with some of its values."""
        kept = set(values)
        return Attribute(self.name, {value: words for value, words in self.values.items() if value in kept})


def _attribute(name: str, values: Iterable[tuple[str, ...]]) -> Attribute:
    return Attribute(name, {words[0]: words for words in values})


ENGLISH: Final = (
    _attribute("colour", COLOURS),
    _attribute("pattern", _PATTERNS),
    _attribute("audience", _AUDIENCES),
    _attribute("material", _MATERIALS),
)
"""Attributes of fashion and of many other goods, in English. Words of a value may be brands as well ("Red Tape")."""


def read_vocabulary(path: str | os.PathLike[str]) -> tuple[Attribute, ...]:
    """Reads attributes from a table: each row is an attribute, a value, and further words for the value.

    Cells are separated by commas, semicolons or tabs; a first row that begins with ``attribute`` is a header. Words may
    be of any language and of several words.

    Args:
        path: A CSV file in UTF-8.

    Raises:
        VocabularyError: The file cannot be read, a row has no value, a word is given twice, or an attribute has one
            value alone.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise VocabularyError(f"the vocabulary {str(path)!r} cannot be read ({error}); give a CSV in UTF-8") from None
    first = text.partition("\n")[0]
    separator = next((one for one in "\t;" if one in first), ",")
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    place_of: dict[tuple[str, str], int] = {}
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=separator), start=1):
        name, *words = [cell for cell in (folded(cell) for cell in row) if cell] or [""]
        if not name or (number == 1 and name == "attribute"):
            continue
        if not words:
            raise VocabularyError(f"{path}, line {number}: {name!r} has no value; write attribute,value,word,…")
        for word in dict.fromkeys(words):
            if (name, word) in place_of:
                raise VocabularyError(
                    f"{path}, line {number}: the {name} {word!r} stands in line {place_of[name, word]} already; give "
                    "each word once"
                )
            place_of[name, word] = number
        found.setdefault(name, {})[words[0]] = tuple(dict.fromkeys(words))
    for name, values in found.items():
        if len(values) < 2:
            raise VocabularyError(
                f"{path}: the attribute {name!r} has one value, {next(iter(values))!r}; give two or more, as an audit "
                "asks which one a photo shows"
            )
    if not found:
        raise VocabularyError(f"{path} holds no words; write one value in a line: attribute,value,word,…")
    return tuple(Attribute(name, values) for name, values in found.items())


def used_in(
    attributes: Iterable[Attribute], titles: Iterable[str], queries: Iterable[str], least: int
) -> tuple[Attribute, ...]:
    """The attributes with the values that titles and queries name in at least `least` texts; two values or more each.

    Raises:
        VocabularyError: None is left.
    """
    texts = [*titles, *queries]
    kept = []
    for attribute in attributes:
        counts = dict.fromkeys(attribute.values, 0)
        for text in texts:
            for value in attribute.named_in(text):
                counts[value] += 1
        values = [value for value, count in counts.items() if count >= least]
        if len(values) > 1:
            kept.append(attribute.only(values))
    if not kept:
        names = ", ".join(attribute.name for attribute in attributes)
        raise VocabularyError(
            f"titles and train queries name fewer than two values of each attribute ({names}) in {least} texts or "
            "more; "
            "give words of the catalogue's language with --vocabulary, or a lower --min_texts"
        )
    return tuple(kept)


def folded(text: str) -> str:
    """The text as words are compared: NFKC, without differences of case, one blank between words."""
    return " ".join(unicodedata.normalize("NFKC", text).replace("’", "'").casefold().split())


def _bounded(word: str) -> str:
    escaped = re.escape(word)
    return escaped if _UNSPACED.search(word) else rf"(?<!\w){escaped}(?!\w)"
