"""The toy catalogue: same bytes everywhere, honest splits, grades that follow their rule, encoders that load."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from mmfusion.data import toy_catalogue
from mmfusion.data.toy_catalogue import (
    assign_splits,
    combination,
    judge,
    make_product,
    make_queries,
    write_toy_catalogue,
)
from mmfusion.data.toy_encoders import MAX_TOKENS, ToyEncoders, write_toy_encoders
from mmfusion.data.toy_photos import COLOUR_RANGES, PAINTERS, PHOTO_SIZE, SHAPES, draw_photo
from mmfusion.data.toy_words import (
    BRANDS,
    COLOURS,
    PATTERNS,
    SILHOUETTES,
    TEXT_FACTS,
    VISIBLE_FACTS,
    all_words,
    phrases,
)

TABLES = ("products", "queries", "qrels")
Rows = dict[str, list[dict[str, Any]]]


def read(folder: Path) -> Rows:
    return {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in TABLES}


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / f"{name}.parquet").read_bytes()).hexdigest() for name in TABLES}


def grade_slowly(asked: dict[str, str], has: dict[str, str]) -> int:
    """The grading rule as one would tell it: all that was asked, or the type and all but one of two or more."""
    if asked["silhouette"] != has["silhouette"]:
        return 0
    missing = sum(has.get(fact) != value for fact, value in asked.items())
    facts = len(asked) - 1
    return 3 if missing == 0 else 1 if missing == 1 and facts > 1 else 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_catalogue(tmp_path_factory.mktemp("toy") / "catalogue", num_products=300, seed=3)


@pytest.fixture(scope="module")
def tables(folder: Path) -> Rows:
    return read(folder)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> ToyEncoders:
    return write_toy_encoders(tmp_path_factory.mktemp("toy") / "backbones", seed=3)


def test_two_processes_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    # Bare packages, because their __init__ imports torch and that takes longer than writing the catalogue.
    code = """
import sys, types
for name in ("mmfusion", "mmfusion.data"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [name.replace(".", "/")]
from mmfusion.data.toy_catalogue import (
    assign_splits,
    combination,
    judge,
    make_product,
    make_queries,
    write_toy_catalogue,
)
write_toy_catalogue(sys.argv[1], num_products=300, seed=3)
"""
    for hash_seed in ("1", "2"):
        target = tmp_path / hash_seed
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code, str(target)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env=environment)
        assert digests(target) == digests(folder)


def test_another_seed_writes_other_products(folder: Path, tmp_path: Path) -> None:
    other = digests(write_toy_catalogue(tmp_path, num_products=300, seed=4))
    assert all(other[name] != digest for name, digest in digests(folder).items())


def test_a_product_does_not_depend_on_how_many_there_are(tables: Rows, tmp_path: Path) -> None:
    few = read(write_toy_catalogue(tmp_path, num_products=40, seed=3))["products"]
    for small, large in zip(few, tables["products"], strict=False):
        assert {**small, "split": None} == {**large, "split": None}


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
def test_the_smallest_catalogue_has_every_split_and_kind(seed: int, tmp_path: Path) -> None:
    tables = read(write_toy_catalogue(tmp_path, num_products=40, seed=seed))
    assert Counter(row["split"] for row in tables["products"]) == {"train": 24, "val": 4, "test": 12}
    found = {(row["split"], row["kind"]) for row in tables["queries"]}
    assert found == set(itertools.product(("train", "val", "test"), ("visual", "textual", "mixed")))


def test_products_have_the_promised_columns_and_gaps(tables: Rows) -> None:
    products = tables["products"]
    assert len({row["product_id"] for row in products}) == len(products) == 300
    assert Counter(row["split"] for row in products) == {"train": 180, "val": 30, "test": 90}
    photos = Counter(0 if row["image"] is None else len(row["image"]) for row in products)
    assert photos[0] == 6 and 8 <= photos[2] <= 9 and sum(photos.values()) == 300
    assert sum(row["title"] == "" for row in products) == 3
    assert all(row["title"] or row["image"] for row in products), "nothing would describe such a product"
    assert 0.6 < np.mean([row["text_sparse"] for row in products]) < 0.8
    assert all(row["price"] > 0 for row in products)


def test_photos_are_small_rgb_pictures_and_the_second_is_another_view(tables: Rows) -> None:
    for row in tables["products"]:
        pictures = [Image.open(io.BytesIO(photo["bytes"])) for photo in row["image"] or []]
        assert all(picture.size == (PHOTO_SIZE, PHOTO_SIZE) and picture.mode == "RGB" for picture in pictures)
        if len(pictures) == 2:
            assert pictures[0].tobytes() != pictures[1].tobytes()


def test_sparse_titles_name_brand_and_type_only(tables: Rows) -> None:
    seen = {name for colour in COLOURS for name in names_of("colour", colour)}
    seen |= {name for pattern in PATTERNS for name in names_of("pattern", pattern)}
    for row in tables["products"]:
        facts = json.loads(row["attributes"])
        words = row["title"].lower()
        named = {name for name in seen if f" {name} " in f" {words} "}
        if row["text_sparse"]:
            assert not named and row["description"] == "" and "material" not in facts
        else:
            assert named & names_of("colour", facts["colour"]) and named & names_of("pattern", facts["pattern"])
            assert facts["material"] in words
        assert facts["brand"] in words or words == ""


def names_of(fact: str, value: str) -> set[str]:
    return {phrase.before for phrase in phrases(fact, value)}


def test_grades_equal_the_slow_twin(tables: Rows) -> None:
    expected = {}
    for query in tables["queries"]:
        asked = json.loads(query["constraints"])
        for product in tables["products"]:
            grade = grade_slowly(asked, json.loads(product["attributes"]))
            if grade and product["split"] == query["split"]:
                expected[query["query_id"], product["product_id"]] = grade
    found = {(row["query_id"], row["product_id"]): row["grade"] for row in tables["qrels"]}
    assert len(found) == len(tables["qrels"]), "a pair is judged twice"
    assert found == expected
    assert set(found.values()) == {1, 3}


def test_too_many_near_misses_are_cut_but_no_full_match(monkeypatch: pytest.MonkeyPatch) -> None:
    products = [make_product(number, 0) for number in range(400)]
    splits = assign_splits(400, 0)
    queries = make_queries(products, splits, 0)
    whole = judge(queries, products, splits, 0)
    monkeypatch.setattr(toy_catalogue, "MAX_NEAR_MISSES", 2)
    cut = judge(queries, products, splits, 0)
    pairs = {(q, p): g for q, p, g in zip(*whole, strict=True)}
    kept = {(q, p): g for q, p, g in zip(*cut, strict=True)}
    assert kept.items() <= pairs.items()
    assert {k for k, g in kept.items() if g == 3} == {k for k, g in pairs.items() if g == 3}
    per_query = Counter(q for (q, _), g in pairs.items() if g == 1)
    assert Counter(q for (q, _), g in kept.items() if g == 1) == {q: min(2, n) for q, n in per_query.items()}
    assert max(per_query.values()) > 2


def test_every_query_has_a_full_match_in_its_split_and_no_judgement_outside(tables: Rows) -> None:
    split_of_product = {row["product_id"]: row["split"] for row in tables["products"]}
    split_of_query = {row["query_id"]: row["split"] for row in tables["queries"]}
    best: dict[str, int] = defaultdict(int)
    for row in tables["qrels"]:
        assert split_of_query[row["query_id"]] == split_of_product[row["product_id"]]
        best[row["query_id"]] = max(best[row["query_id"]], row["grade"])
    assert best == dict.fromkeys(split_of_query, 3)


def test_held_out_combinations_are_asked_by_one_split_only(tables: Rows) -> None:
    asked: dict[tuple[str, ...], set[str]] = defaultdict(set)
    texts: dict[str, set[str]] = defaultdict(set)
    for row in tables["queries"]:
        facts = json.loads(row["constraints"])
        asked[combination(facts.pop("silhouette"), facts)].add(row["split"])
        texts[row["query"]].add(row["split"])
    assert all(len(splits) == 1 for splits in asked.values())
    assert all(len(splits) == 1 for splits in texts.values()), "the same words are asked in two splits"
    assert {"val", "test"} <= set().union(*asked.values())


def test_queries_ask_what_their_kind_says(tables: Rows) -> None:
    for row in tables["queries"]:
        facts = set(json.loads(row["constraints"])) - {"silhouette"}
        kind = {(True, False): "visual", (False, True): "textual", (True, True): "mixed"}
        assert row["kind"] == kind[bool(facts & set(VISIBLE_FACTS)), bool(facts & set(TEXT_FACTS))]
    assert len(tables["queries"]) >= 0.5 * len(tables["products"])
    assert len({(row["split"], row["query"]) for row in tables["queries"]}) == len(tables["queries"])


def test_no_name_means_two_things() -> None:
    names = [name for kind in SILHOUETTES.values() for name in kind.names]
    names += [name for values in COLOURS.values() for name in values]
    names += [name for value in PATTERNS for name in {phrase.before for phrase in phrases("pattern", value)}]
    names += [*BRANDS, *{material for kind in SILHOUETTES.values() for material in kind.materials}]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_every_silhouette_colour_and_pattern_gives_another_picture() -> None:
    assert set(SHAPES) == set(SILHOUETTES) and set(COLOUR_RANGES) == set(COLOURS) and set(PAINTERS) == set(PATTERNS)
    pictures = {
        draw_photo(np.random.default_rng(0), *look).tobytes() for look in itertools.product(SHAPES, COLOURS, PATTERNS)
    }
    assert len(pictures) == len(SHAPES) * len(COLOURS) * len(PATTERNS)


def test_no_two_colours_share_a_shade() -> None:
    for first, second in itertools.combinations(COLOUR_RANGES.values(), 2):
        overlaps = [a[0] <= b[1] and b[0] <= a[1] for a, b in zip(first, second, strict=True)]
        assert not all(overlaps)


def test_a_complete_folder_is_reused_and_an_incomplete_one_is_written_again(tmp_path: Path) -> None:
    write_toy_catalogue(tmp_path, num_products=40)
    before = digests(tmp_path)
    (tmp_path / "qrels.parquet").write_bytes(b"marker")
    write_toy_catalogue(tmp_path, num_products=40)
    assert (tmp_path / "qrels.parquet").read_bytes() == b"marker", "a complete folder was written again"
    (tmp_path / "products.parquet").unlink()
    write_toy_catalogue(tmp_path, num_products=40)
    assert digests(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["embedded.json", *(f"{t}.parquet" for t in TABLES)]
    )


def test_other_arguments_are_an_error_that_names_both(tmp_path: Path) -> None:
    write_toy_catalogue(tmp_path, num_products=40)
    before = digests(tmp_path)
    with pytest.raises(ValueError, match=r"'num_products': 40.*'num_products': 41.*another folder"):
        write_toy_catalogue(tmp_path, num_products=41)
    with pytest.raises(ValueError, match=r"'seed': 0.*'seed': 1"):
        write_toy_catalogue(tmp_path, num_products=40, seed=1)
    assert digests(tmp_path) == before


def test_somebody_elses_catalogue_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "queries.parquet").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"already holds queries\.parquet"):
        write_toy_catalogue(tmp_path, num_products=40)
    assert [path.name for path in tmp_path.iterdir()] == ["queries.parquet"]


def test_bad_arguments_name_the_value(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_products is 39; ask for 40"):
        write_toy_catalogue(tmp_path / "a", num_products=39)
    with pytest.raises(ValueError, match="seed is -1"):
        write_toy_catalogue(tmp_path / "a", seed=-1)
    with pytest.raises(ValueError, match="seed is -1"):
        write_toy_encoders(tmp_path / "a", seed=-1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file"):
        write_toy_catalogue(tmp_path / "file")


def test_an_unreadable_record_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "embedded.json").write_text("{")
    with pytest.raises(ValueError, match=r"embedded\.json is not JSON.*delete"):
        write_toy_catalogue(tmp_path, num_products=40)


def test_backbones_load_with_auto_classes_and_encode(backbones: ToyEncoders, tables: Rows) -> None:
    tokenizer = AutoTokenizer.from_pretrained(backbones.text)
    text = AutoModel.from_pretrained(backbones.text)
    batch = tokenizer(["red striped dress", "Acme mug"], padding=True, return_tensors="pt")
    assert text(**batch).last_hidden_state.shape == (2, 5, 64)
    processor = AutoImageProcessor.from_pretrained(backbones.vision)
    vision = AutoModel.from_pretrained(backbones.vision)
    photo = Image.open(io.BytesIO(tables["products"][0]["image"][0]["bytes"]))
    pixels = processor(images=[photo, photo.resize((30, 90))], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (2, 3, PHOTO_SIZE, PHOTO_SIZE) and pixels.abs().max() <= 1
    tokens = vision(pixels).last_hidden_state
    assert tokens.shape == (2, 64, 8, 8) and torch.isfinite(tokens).all()


def test_the_tokenizer_knows_every_word_and_survives_the_others(backbones: ToyEncoders) -> None:
    tokenizer = AutoTokenizer.from_pretrained(backbones.text)
    for word in all_words():
        assert tokenizer.tokenize(word) == [word]
    assert tokenizer.tokenize("ACME T-Shirt") == ["acme", "t", "-", "shirt"]
    assert "[UNK]" not in tokenizer.tokenize("zyxxov 4711 (50%)")
    for text in ("😀👗", "红色连衣裙", "فستان أحمر", "שמלה אדומה", "\u0000\u200f", ""):
        pieces = tokenizer.tokenize(text)
        assert set(pieces) <= {"[UNK]"}, text
        assert len(tokenizer(text)["input_ids"]) == len(pieces) + 2
    assert len(tokenizer("dress " * 20_000, truncation=True)["input_ids"]) == MAX_TOKENS


def test_backbones_depend_on_their_seed_alone(backbones: ToyEncoders, tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    again = write_toy_encoders(tmp_path / "again", seed=3)
    assert torch.equal(torch.rand(1), expected), "torch's global generator was used"
    other = write_toy_encoders(tmp_path / "other", seed=4)
    for name in ("text", "vision"):
        same = (getattr(again, name) / "model.safetensors").read_bytes()
        assert same == (getattr(backbones, name) / "model.safetensors").read_bytes()
        assert same != (getattr(other, name) / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"'seed': 4.*'seed': 3"):
        write_toy_encoders(tmp_path / "other", seed=3)
    assert write_toy_encoders(tmp_path / "again", seed=3) == again
