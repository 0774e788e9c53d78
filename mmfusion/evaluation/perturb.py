"""Inputs made worse on purpose, to see what a model leans on: wrong colours, typos, missing or shuffled photos."""

import re
from collections.abc import Mapping
from functools import lru_cache, partial
from itertools import cycle
from random import Random
from typing import Final, Literal, NamedTuple, get_args
from zlib import crc32

import numpy as np

from mmfusion.data.tables import Rewrite, Rows, no_text

Perturbation = Literal["none", "misleading_titles", "photos_dropped", "text_dropped", "typos", "photos_shuffled"]
Colours = tuple[tuple[str, ...], ...]

# Each line is one colour: its basic name, which is put in, then other words for it, which are recognised as well.
# Words that more often mean something else in a shop (cream, rose, wine, nude) are left out.
COLOURS: Final[Colours] = (
    ("red", "maroon", "burgundy", "crimson", "scarlet"),
    ("orange", "coral", "peach"),
    ("yellow", "mustard"),
    ("green", "olive", "khaki", "lime", "emerald"),
    ("turquoise", "teal", "aqua", "cyan"),
    ("blue", "navy", "indigo"),
    ("purple", "violet", "lavender", "lilac", "mauve", "magenta"),
    ("pink", "fuchsia"),
    ("brown", "tan"),
    ("beige",),
    ("black",),
    ("grey", "gray", "charcoal"),
    ("white", "ivory"),
    ("gold", "golden"),
    ("silver",),
)

_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
_KEY_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_KEYS_BESIDE = {key: row[max(at - 1, 0) : at] + row[at + 1 : at + 2] for row in _KEY_ROWS for at, key in enumerate(row)}


class PerturbedInputs(NamedTuple):
    """What the towers read; the arguments of `embed_products` and `embed_queries` that make it so.

    Attributes:
        query_text: From (query id, text) to the text that is read; None leaves it as it is.
        product_text: The same for the rendered text of a product; an empty text is a missing one.
        photos: False leaves all photos out.
        photo_of: Row whose photo each product shows, int64 (number of products,); None: its own.
    """

    query_text: Rewrite | None = None
    product_text: Rewrite | None = None
    photos: bool = True
    photo_of: Rows | None = None


def perturbed_inputs(perturbation: Perturbation, product_rows: Rows, num_products: int, seed: int) -> PerturbedInputs:
    """Inputs of one perturbed evaluation.

    What becomes of a text depends on its id and the seed alone, and not on the pool, the order or the batch.

    Args:
        perturbation: `misleading_titles` (see `mislead`), `photos_dropped`, `text_dropped`, `typos` in queries (see
            `typo`), `photos_shuffled` (photos permuted among the products of the pool), or `none`.
        product_rows: Rows of the pool, int64 (P,).
        num_products: Products of the catalogue.
        seed: Of everything that is drawn.

    Raises:
        ValueError: There is no such perturbation.
    """
    if perturbation not in get_args(Perturbation):
        raise ValueError(f"perturbation {perturbation!r} is unknown; give one of {', '.join(get_args(Perturbation))}.")
    products: dict[str, Rewrite] = {"misleading_titles": partial(_misleading, seed), "text_dropped": no_text}
    shuffled = perturbation == "photos_shuffled"
    return PerturbedInputs(
        query_text=partial(_with_typo, seed) if perturbation == "typos" else None,
        product_text=products.get(perturbation),
        photos=perturbation != "photos_dropped",
        photo_of=_permuted(product_rows, num_products, seed) if shuffled else None,
    )


def typo(text: str, rng: Random) -> str:
    """Makes one slip of the keyboard in one word: two letters swapped, one dropped, doubled, or hit next to its key.

    The word is drawn among runs of at least four letters without digits; a text that has none stays as it is. The first
    letter is never touched, and no word is split, joined or lost. Keys next to each other are those of a QWERTY row.

    Args:
        text: Any text, of any script.
        rng: Source of the draws.

    Returns:
        A text that differs from `text` by one edit, or `text`.
    """
    # The pattern takes fractions and superscripts for letters.
    words = [word for word in _LONG_WORD.finditer(text) if word.group().isalpha()]
    if not words:
        return text
    word = rng.choice(words)
    edits = [kind for kind in _misspellings(word.group()) if kind]
    return text[: word.start()] + rng.choice(rng.choice(edits)) + text[word.end() :]


def mislead(text: str, rng: Random, colours: Colours = COLOURS) -> str:
    """Puts a wrong colour into a product's text, as machine translation does.

    Each colour that the text names, by whichever of its words, is replaced by another one throughout, under its basic
    name. The colours put in are ones that the text does not name; only a text that names all of them has them
    exchanged among each other. A text that names none gets one in front, which by chance may be that of the product.
    A blank text stays as it is: there is no title that could mislead.

    Args:
        text: Any text.
        rng: Source of the draws.
        colours: At least two colours, lower-case words, each word once; the first of each is its basic name.

    Raises:
        ValueError: There are fewer than two colours.
    """
    if len(colours) < 2:
        raise ValueError(f"colours names {len(colours)} colour(s); a wrong one needs at least 2.")
    basic_names = [words[0] for words in colours]
    if not text.strip():
        return text
    runs, basic_name = _colour_words(colours)
    named = list(dict.fromkeys(basic_name[word.lower()] for run in runs.findall(text) for word in run.split()))
    if not named:
        return f"{_cased(rng.choice(basic_names), text)} {text}"
    others = [colour for colour in basic_names if colour not in named]
    rng.shuffle(others)
    wrong = dict(zip(named, cycle(others or [*named[1:], named[0]]), strict=False))
    return runs.sub(lambda run: _replaced(run.group().split(), basic_name, wrong), text)


def _replaced(words: list[str], basic_name: Mapping[str, str], wrong: Mapping[str, str]) -> str:
    """Other colours for a run of colour words, each once: "Navy Blue" becomes "Green" and not "Green Green"."""
    originals: dict[str, str] = {}
    for word in words:
        originals.setdefault(wrong[basic_name[word.lower()]], word)
    return " ".join(_cased(colour, original) for colour, original in originals.items())


def _cased(colour: str, like: str) -> str:
    if like.isupper():
        return colour.upper()
    return colour.capitalize() if like.lstrip()[0].isupper() else colour


@lru_cache(maxsize=8)
def _colour_words(colours: Colours) -> tuple[re.Pattern[str], dict[str, str]]:
    """Pattern of runs of colour words in any case, and the basic name of each word."""
    basic_name = {word: words[0] for words in colours for word in words}
    # (?a): without it "i" would also match the dotless one of Turkish, which no lower-casing leads back to "i".
    word = f"(?ai:{'|'.join(map(re.escape, basic_name))})"
    return re.compile(rf"(?<!\w){word}(?:\s+{word})*(?!\w)"), basic_name


def _misspellings(word: str) -> list[list[str]]:
    """Wrong spellings of a word by kind of slip; a kind may be empty."""
    places = range(1, len(word))
    pairs = [at for at in places[:-1] if word[at].lower() != word[at + 1].lower()]
    return [
        [word[:at] + word[at + 1] + word[at] + word[at + 2 :] for at in pairs],
        [word[:at] + word[at + 1 :] for at in places],
        [word[:at] + word[at] + word[at:] for at in places],
        [word[:at] + key + word[at + 1 :] for at in places for key in _keys_beside(word[at])],
    ]


def _keys_beside(letter: str) -> str:
    keys = _KEYS_BESIDE.get(letter.lower(), "")
    return keys.upper() if letter.isupper() else keys


def _misleading(seed: int, product_id: str, text: str) -> str:
    return mislead(text, _rng(seed, product_id))


def _with_typo(seed: int, query_id: str, text: str) -> str:
    return typo(text, _rng(seed, query_id))


def _permuted(rows: Rows, num_products: int, seed: int) -> Rows:
    shown = np.arange(num_products)
    shown[rows] = np.random.default_rng(seed).permutation(rows)
    return shown


def _rng(seed: int, name: str) -> Random:
    return Random(crc32(f"{seed} {name}".encode()))
