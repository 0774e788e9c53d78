"""Titles and attributes stand in for queries: from which products, of what kind, and the same every time."""

import io
from collections import Counter
from typing import Any

import pytest
from PIL import Image

from mmfusion.data.catalogue import Catalogue, CatalogueError
from mmfusion.data.pseudo_queries import attribute_columns, with_pseudo_queries

COLOURS, KINDS = ("teal", "ochre", "plum", "sand"), ("Home > Lamp", "Home > Vase", "Kitchen > Jug")


def photo() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def products(count: int = 60) -> list[dict[str, Any]]:
    """Every tenth one without a photo, every twentieth without a title, two of one title."""
    return [
        {
            "product_id": f"p{n}",
            "title": "" if n % 20 == 19 else f"Handmade {'Twin' if n in (3, 4) else f'Piece {n}'} by Ada",
            "image": None if n % 10 == 9 else photo(),
            "product_type": KINDS[n % 3],
            "colour": COLOURS[n % 4] if n % 5 else None,
            "vendor_sku": f"S-{n % 4}",
            "note": f"remark {n}",
            "price": 3.0 * n,
        }
        for n in range(count)
    ]


def queries_of(catalogue: Catalogue) -> list[dict[str, Any]]:
    return list(catalogue.queries)


def answers(catalogue: Catalogue, row: int) -> list[str]:
    return [str(catalogue.product_ids[at]) for at in catalogue.qrels.for_query(row)[0]]


def test_columns_that_people_ask_for_are_found_by_their_values() -> None:
    catalogue = Catalogue.from_records(products())
    assert attribute_columns(catalogue, catalogue.product_rows(None)) == ["colour", "product_type"]


def test_each_product_is_asked_for_by_title_words_and_attributes() -> None:
    catalogue = with_pseudo_queries(Catalogue.from_records(products()))
    rows, train = queries_of(catalogue), set(catalogue.product_rows("train").tolist())
    by_text = {row["query"]: at for at, row in enumerate(rows) if row["split"] == "train"}
    assert Counter(row["kind"] for row in rows if row["split"] == "train").keys() == {"title", "attributes"}
    assert answers(catalogue, by_text["teal lamp"]) == [
        one["product_id"]
        for n, one in enumerate(products())
        if n in train and one["colour"] == "teal" and one["product_type"] == "Home > Lamp" and one["title"]
    ]
    for at, row in enumerate(rows):
        if row["query_id"].startswith("words:"):
            words, title = row["query"].split(), catalogue.titles(catalogue.qrels.for_query(at)[0])[0].lower().split()
            assert 2 <= len(words) < len(title) and all(word in title for word in words)
    twins = [answers(catalogue, by_text[text]) for text in by_text if text == "handmade twin by ada"]
    assert all(set(found) <= {"p3", "p4"} for found in twins)
    assert set(catalogue.qrels.grade.tolist()) == {1}


def test_held_out_products_are_in_no_training_and_have_title_and_photo() -> None:
    catalogue = with_pseudo_queries(Catalogue.from_records(products()), held_out=0.3)
    held = catalogue.product_rows("val")
    assert 5 <= len(held) <= 27
    assert all(catalogue.product(row)["title"] and catalogue.product(row)["image"] for row in held)
    train = catalogue.split_qrels("train")
    assert len(train) and not set(train.product) & set(held)
    assert set(catalogue.split_qrels("val").product) == set(held)


def test_what_is_drawn_for_a_product_does_not_depend_on_the_others() -> None:
    few, many = (with_pseudo_queries(Catalogue.from_records(products(count))) for count in (60, 80))
    again = with_pseudo_queries(Catalogue.from_records(products(60)))
    assert queries_of(few) == queries_of(again) and few.contents_digest() == again.contents_digest()
    own = {row["query_id"]: row for row in queries_of(many)}
    assert all(own[row["query_id"]] == row for row in queries_of(few) if row["kind"] == "title")
    assert few.contents_digest() != with_pseudo_queries(Catalogue.from_records(products(60)), seed=1).contents_digest()


def test_splits_of_a_catalogue_are_kept_apart() -> None:
    records = [{**one, "split": ("train", "val", "test")[n % 3]} for n, one in enumerate(products())]
    catalogue = with_pseudo_queries(Catalogue.from_records(records))
    assert (
        set((catalogue.product_rows("train") % 3).tolist()) == {0} == set((catalogue.product_rows("val") % 3).tolist())
    )
    assert set((catalogue.product_rows("test") % 3).tolist()) == {2}


def test_the_queries_that_were_there_are_gone() -> None:
    asked = {"query_id": "q", "query": "a lamp", "split": "train"}
    judged = {"query_id": "q", "product_id": "p1", "grade": 3}
    catalogue = with_pseudo_queries(Catalogue.from_records(products(), [asked], [judged]))
    assert "a lamp" not in catalogue.queries["query"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{**one, "title": " "} for one in products(9)], "0 of 9 products to train on have a title"),
        (products(1), "1 of 1 products to train on have a title; .* at least 3.* or give queries with judgements"),
        ([{**one, "image": None} for one in products(9)], "no product with a title has a photo; .*Add photos, or give"),
    ],
)
def test_what_there_is_nothing_to_learn_from_is_an_error(records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(CatalogueError, match=message):
        with_pseudo_queries(Catalogue.from_records(records))
