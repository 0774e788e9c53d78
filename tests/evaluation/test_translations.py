"""The table of translations that the benchmark of languages reads."""

from random import Random

import pytest
from benchmarks.translations import LANGUAGES, TABLE, Words, known, translated


def test_each_word_has_another_one_in_each_language() -> None:
    assert len(TABLE) > 120
    for word, others in TABLE.items():
        assert word == word.lower() and all(other.strip() == other and other for other in others), word
        assert known(word) == [word] and word not in others.back.lower().split(), word
        assert any("\u3400" <= letter <= "\u9fff" for letter in others.zh), word
    assert set(LANGUAGES) < set(Words._fields)
    changed = [word for word, others in TABLE.items() if word not in (others.es, others.de)]
    assert len(changed) > 0.95 * len(TABLE), "most words are others in the other languages"


@pytest.mark.parametrize(
    ("text", "into", "expected"),
    [
        ("red navy blue shirts for women", "de", "rot marineblau Hemd für Damen"),
        ("Puma Men's Black T-shirt", "es", "Puma hombre negro camiseta"),
        ("Nike women running shoes", "zh", "Nike 女士跑步鞋"),
        ("flip flops", "de", "Zehentrenner"),
        ("FLIP-FLOPS", "zh", "人字拖"),
        ("watches, dresses", "back", "timepiece, long skirt"),
        ("bluetooth shirting", "de", "bluetooth shirting"),
        ("", "zh", ""),
    ],
)
def test_words_are_replaced_in_their_place(text: str, into: str, expected: str) -> None:
    assert translated(text, into) == expected


def test_a_brand_stays_and_half_of_the_words_are_drawn() -> None:
    assert translated("red tape red shoes", "de", keep="Red Tape") == "red tape rot Schuhe"
    text = "red shirt " * 500
    half = translated(text, "de", 0.5, Random(0))
    assert half == translated(text, "de", 0.5, Random(0)) and 200 < half.count("rot") < 300
