"""Words for attributes: where a text names them, and files of them."""

from pathlib import Path

import pytest

from mmfusion.audit.vocabulary import ENGLISH, Attribute, VocabularyError, read_vocabulary, used_in

COLOUR, PATTERN, AUDIENCE = ENGLISH[:3]


@pytest.mark.parametrize(
    ("attribute", "text", "values"),
    [
        (COLOUR, "Navy Blue shirt", ("blue",)),
        (COLOUR, "GREY/Black, grey", ("grey", "black")),
        (COLOUR, "Redmi phone, coloured tangerines", ()),
        (COLOUR, "ﬁne ＲＥＤ　dress", ("red",)),
        (PATTERN, "Polka  Dots dress", ("dotted",)),
        (AUDIENCE, "Women’s gown", ("women",)),
        (AUDIENCE, "Mens polo", ("men",)),
        (COLOUR, "", ()),
    ],
)
def test_a_text_names_values_by_whole_words(attribute: Attribute, text: str, values: tuple[str, ...]) -> None:
    assert attribute.named_in(text) == values


def test_words_of_scripts_without_blanks_are_found_inside(tmp_path: Path) -> None:
    file = tmp_path / "words.csv"
    file.write_text("attribute;value;word\n颜色;红色;大红\n颜色;蓝色\nFarbe;weiß\nFarbe;rot\n", "utf-8-sig")
    chinese, german = read_vocabulary(file)
    assert chinese.named_in("女士大红连衣裙") == ("红色",) and chinese.named_in("蓝色红色") == ("蓝色", "红色")
    assert german.named_in("WEISS") == ("weiss",) and german.named_in("rotes Kleid") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour,red\n", "'colour' has one value, 'red'"),
        ("colour,red\ncolour,blue,Red\n", "line 2: the colour 'red' stands in line 1"),
        ("colour,red\ncolour\n", "line 2: 'colour' has no value"),
        ("", "holds no words"),
        ("attribute,value\n\n", "holds no words"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "words.csv"
    file.write_text(text)
    with pytest.raises(VocabularyError, match=message):
        read_vocabulary(file)
    with pytest.raises(VocabularyError, match="cannot be read"):
        read_vocabulary(tmp_path)


def test_the_catalogue_decides_which_values_there_are() -> None:
    titles, queries = ["Red shirt", "blue shirt", "Blue jeans", "striped top"], ["red dress", "green hat"]
    (found,) = used_in(ENGLISH, titles, queries, 2)
    assert found.name == "colour" and list(found.values) == ["red", "blue"]
    with pytest.raises(VocabularyError, match="give words of the catalogue's language with --vocabulary"):
        used_in(ENGLISH, ["Rotes Hemd", "Blaue Hose"], [], 1)
