"""Perturbed inputs: what they change, what they must leave alone, and what the model then makes of them."""

from random import Random
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from two_ranks import build_model

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.feature_cache import build_feature_cache
from mmfusion.data.tables import ProductTable, QueryTable, text_lengths
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.evaluation.perturb import COLOURS, Perturbation, PerturbedInputs, mislead, perturbed_inputs, typo
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.retrieval.embedding import EmbeddedProducts, embed_products, embed_queries

TEXT, PHOTO = 0, 1
BASIC_NAME = {word: words[0] for words in COLOURS for word in words}
CASES = (str, str.upper, str.title)

seeds = st.integers(0, 2**32)
coloured_titles = st.lists(
    st.one_of(
        st.builds(lambda word, case: case(word), st.sampled_from(list(BASIC_NAME)), st.sampled_from(CASES)),
        st.sampled_from(["Dress", "redder", "blueberry", "Größe", "连衣裙", "-", "🧥", "T-Shirt"]),
    ),
    max_size=8,
).map(" ".join)


def named_colours(text: str) -> set[str]:
    """Slow twin: colours by whole words, which white space separates in the titles above."""
    return {BASIC_NAME[word.lower()] for word in text.split() if word.lower() in BASIC_NAME}


# ---------------------------------------------------------------- texts


@settings(deadline=None)
@given(st.one_of(coloured_titles, st.text()), seeds)
@example("blac\u212a d\u0131m\u0130n \u017filver", 0)  # letters that only ignoring case makes ASCII
@example("", 0)
@example(" \n", 0)
def test_a_title_never_stays_the_same_unless_it_is_blank(title: str, seed: int) -> None:
    misled = mislead(title, Random(seed))
    assert (misled == title) == (not title.strip())
    assert misled == mislead(title, Random(seed))


@settings(deadline=None)
@given(coloured_titles.filter(str.strip), seeds)
def test_only_colours_that_the_title_does_not_name_are_put_in(title: str, seed: int) -> None:
    before, after = named_colours(title), named_colours(mislead(title, Random(seed)))
    assert after and not before & after
    others = [word for word in title.split() if word.lower() not in BASIC_NAME]
    assert [word for word in mislead(title, Random(seed)).split() if word.lower() not in BASIC_NAME] == others


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Navy Blue Shirt, blue", "Red Shirt, red"),
        ("NIKE TEE", "RED NIKE TEE"),
        ("redder blueberry", "red redder blueberry"),
        ("off-blue\u00a0 navy cap", "off-red cap"),
        ("🧥 coat", "red 🧥 coat"),
    ],
)
def test_a_wrong_colour_takes_the_place_and_the_case_of_the_right_one(title: str, expected: str) -> None:
    colours = (("red",), ("blue", "navy"))
    # Titles that name no colour may get either: red is drawn with this seed.
    assert mislead(title, Random(1), colours) == expected


def test_a_title_that_names_all_colours_has_them_exchanged() -> None:
    assert mislead("Red hat, blue brim", Random(0), (("red",), ("blue",))) == "Blue hat, red brim"
    with pytest.raises(ValueError, match=r"names 1 colour.*at least 2"):
        mislead("red", Random(0), (("red",),))


def test_no_word_stands_for_two_colours() -> None:
    words = [word for words in COLOURS for word in words]
    assert len(words) == len(set(words)) and all(word == word.strip().lower() for word in words)


def one_edit_apart(one: str, other: str) -> bool:
    """One letter put in, taken out or replaced, or two neighbours swapped."""
    start = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = one[start:], other[start:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


@settings(deadline=None)
@given(st.one_of(st.text(), st.text("abhÄßé连🧥 -1\u0301", max_size=30)), seeds)
@example("", 0)
@example("aaaa", 0)
@example("日本語の服", 1)
@example("AAA¼", 0)
def test_a_typo_is_one_edit_behind_the_first_letter_of_one_word(query: str, seed: int) -> None:
    wrong = typo(query, Random(seed))
    assert wrong == typo(query, Random(seed))
    assert one_edit_apart(query, wrong)
    words, wrong_words = query.split(), wrong.split()
    assert [word[0] for word in wrong_words] == [word[0] for word in words]
    changed = [word for word, other in zip(words, wrong_words, strict=True) if word != other]
    assert len(changed) <= 1 and all(sum(map(str.isalpha, word)) >= 4 for word in changed)


def test_typos_of_all_kinds_come_up_and_short_words_are_left_alone() -> None:
    wrong = {typo("red Wigs", Random(seed)) for seed in range(300)}
    assert {"red Wgis", "red Wgs", "red Wiigs", "red Wogs"} < wrong
    assert all(text.startswith("red W") and text != "red Wigs" for text in wrong)
    assert typo("red mug, 2000 x1y2", Random(0)) == "red mug, 2000 x1y2"


def test_upper_case_stays_upper_case() -> None:
    assert all(typo("DRESS", Random(seed)).isupper() for seed in range(50))


# ---------------------------------------------------------------- models


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("catalogue")
    return Catalogue.load(write_toy_catalogue(folder, num_products=120), cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> tuple[MMFusionModel, MMFusionProcessor]:
    model, processor = build_model(tmp_path_factory.mktemp("backbones"))
    return model.float().eval(), processor


def embed(tower: Any, catalogue: Catalogue, inputs: PerturbedInputs, **options: Any) -> EmbeddedProducts:
    rows = np.arange(len(catalogue.products))
    return embed_products(
        *tower,
        catalogue,
        rows,
        photos=inputs.photos,
        photo_of=inputs.photo_of,
        rewrite=inputs.product_text,
        **options,
    )


def inputs_of(perturbation: Perturbation, catalogue: Catalogue, seed: int = 0) -> PerturbedInputs:
    count = len(catalogue.products)
    return perturbed_inputs(perturbation, np.arange(count), count, seed)


def has_photo(catalogue: Catalogue) -> np.ndarray:
    column = catalogue.products.data.column("image")
    return np.array([bool(photos) for photos in column.to_pylist()])


def test_without_photos_is_as_a_catalogue_without_their_column(tower: Any, catalogue: Catalogue) -> None:
    dropped = embed(tower, catalogue, inputs_of("photos_dropped", catalogue))
    textual = Catalogue(catalogue.products.remove_columns("image"), catalogue.queries, catalogue.qrels)
    without = embed(tower, textual, PerturbedInputs())
    assert (dropped.modality_weights[:, PHOTO] == 0).all()
    np.testing.assert_array_equal(dropped.embeds, without.embeds)
    assert (embed(tower, catalogue, PerturbedInputs()).modality_weights[has_photo(catalogue), PHOTO] > 0).all()


def test_without_text_the_photo_has_all_the_weight(tower: Any, catalogue: Catalogue) -> None:
    inputs = inputs_of("text_dropped", catalogue)
    dropped, seen = embed(tower, catalogue, inputs), has_photo(catalogue)
    assert 0 < seen.sum() < len(seen)
    assert (dropped.modality_weights[seen] == [0, 1]).all()
    assert (dropped.modality_weights[~seen] == [1, 0]).all()
    blank = catalogue.products.remove_columns("title").add_column("title", [""] * len(seen))
    without = embed(tower, Catalogue(blank, catalogue.queries, catalogue.qrels), PerturbedInputs())
    np.testing.assert_array_equal(dropped.embeds, without.embeds)


def test_a_text_only_tower_looks_at_photos_once_the_text_is_dropped(tower: Any, catalogue: Catalogue) -> None:
    model, processor = tower
    config = type(model.config).from_dict({**model.config.to_dict(), "fusion": "text_only"})
    blind = MMFusionModel(config).eval()
    titled = np.array(catalogue.titles(range(len(catalogue.products)))) != ""
    weights = embed((blind, processor), catalogue, PerturbedInputs()).modality_weights
    assert (weights[titled] == [1, 0]).all()
    weights = embed((blind, processor), catalogue, inputs_of("text_dropped", catalogue)).modality_weights
    assert (weights[has_photo(catalogue)] == [0, 1]).all()


def test_shuffled_photos_are_the_same_photos_within_the_pool(tower: Any, catalogue: Catalogue) -> None:
    _, processor = tower
    pool = catalogue.product_rows("test")
    shown = perturbed_inputs("photos_shuffled", pool, len(catalogue.products), 0).photo_of
    assert shown is not None
    assert sorted(shown[pool]) == sorted(pool) and (shown[pool] != pool).any()
    outside = np.setdiff1d(np.arange(len(catalogue.products)), pool)
    np.testing.assert_array_equal(shown[outside], outside)
    own, shuffled = (ProductTable(catalogue, processor, photo_of=photo_of)[pool] for photo_of in (None, shown))

    def photos(batch: Any) -> list[bytes]:
        return sorted(photo.numpy().tobytes() for photo in batch["pixel_values"][batch["photo_mask"]])

    assert photos(own) == photos(shuffled)
    assert not torch.equal(own["pixel_values"], shuffled["pixel_values"])
    assert torch.equal(own["product_input_ids"], shuffled["product_input_ids"])


@pytest.mark.parametrize("perturbation", ["none", "misleading_titles", "text_dropped", "photos_shuffled"])
def test_cached_photos_serve_every_perturbation(
    tower: Any, catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory, perturbation: Perturbation
) -> None:
    model, processor = tower
    rows, inputs = np.arange(len(catalogue.products)), inputs_of(perturbation, catalogue)
    folder = tmp_path_factory.getbasetemp() / "features"
    plain = embed(tower, catalogue, inputs)
    model.freeze_vision(1)
    try:
        cache = build_feature_cache(folder, model, ProductTable(catalogue, processor), rows)
        cached = embed(tower, catalogue, inputs, cache=cache)
    finally:
        model.freeze_vision(0)
    np.testing.assert_allclose(cached.embeds, plain.embeds, atol=1e-5)


def test_misleading_titles_reach_the_product_tower_alone(tower: Any, catalogue: Catalogue) -> None:
    inputs = inputs_of("misleading_titles", catalogue)
    rows = np.arange(len(catalogue.products))
    plain = ProductTable(catalogue, tower[1]).texts(rows)
    misled = ProductTable(catalogue, tower[1], rewrite=inputs.product_text).texts(rows)
    assert "" in plain
    assert all((before == after) == (before == "") for before, after in zip(plain, misled, strict=True))
    assert inputs.query_text is None
    assert not np.array_equal(embed(tower, catalogue, inputs).embeds, embed(tower, catalogue, PerturbedInputs()).embeds)


def test_what_becomes_of_a_text_depends_on_id_and_seed_alone(tower: Any, catalogue: Catalogue) -> None:
    rows = np.arange(len(catalogue.queries))
    texts = catalogue.query_texts(rows)

    def typos(rows: np.ndarray, seed: int) -> list[str]:
        return QueryTable(catalogue, tower[1], rewrite=inputs_of("typos", catalogue, seed).query_text).texts(rows)

    assert typos(rows, 0) == list(reversed(typos(rows[::-1], 0)))
    assert typos(rows, 0) == typos(rows, 0) != typos(rows, 1)
    assert typos(rows[3:5], 0) == typos(rows, 0)[3:5]
    assert sum(one != other for one, other in zip(texts, typos(rows, 0), strict=True)) > len(texts) / 2
    # Two products of one title are misled independently, or a whole brand would turn one colour.
    rewrite = inputs_of("misleading_titles", catalogue).product_text
    assert rewrite is not None and len({rewrite(str(number), "Mug") for number in range(50)}) > 5


def test_queries_with_typos_are_embedded_as_such_in_their_order(tower: Any, catalogue: Catalogue) -> None:
    model, processor = tower
    rows, rewrite = np.array([5, 2, 9, 0]), inputs_of("typos", catalogue).query_text
    assert rewrite is not None
    found = embed_queries(model, processor, catalogue, rows, rewrite=rewrite, batch_size=2)
    typed = [
        rewrite(catalogue.query_ids[row], text) for row, text in zip(rows, catalogue.query_texts(rows), strict=True)
    ]
    with torch.inference_mode():
        expected = model.get_query_features(**processor.process_queries(typed)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, embed_queries(model, processor, catalogue, rows), atol=1e-6)


def test_products_are_embedded_in_the_order_asked_for(tower: Any, catalogue: Catalogue) -> None:
    rows = np.array([40, 3, 77, 12, 5])
    every = embed(tower, catalogue, PerturbedInputs()).embeds
    np.testing.assert_allclose(embed_products(*tower, catalogue, rows, batch_size=2).embeds, every[rows], atol=1e-5)


def test_text_lengths_of_queries_and_products_are_characters(catalogue: Catalogue) -> None:
    queries = catalogue.query_texts(range(len(catalogue.queries)))
    assert text_lengths(catalogue, ["query"], "queries").tolist() == [len(text) for text in queries]
    titles = catalogue.titles(range(len(catalogue.products)))
    assert text_lengths(catalogue, ["title"]).tolist() == [len(title) for title in titles]


def test_an_unknown_perturbation_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=f"'typo' is unknown; give one of {', '.join(get_args(Perturbation))}"):
        perturbed_inputs("typo", np.arange(2), 2, 0)  # type: ignore[arg-type]
