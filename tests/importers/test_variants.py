"""Rows of a shop's file as products: by product, by variant, by photo, and ids that come again."""

from typing import Any

import pytest

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.items import ImportLog, Item, Variants
from mmfusion.importers.variants import products_of

LAMP = [
    Item("lamp", "Lamp", "Of brass", ["all.jpg"], {"category": "light", "brand": ""}, group_id="lamp", is_parent=True),
    Item("L1", "", "", ["blue.jpg"], {"color": "Blue", "price": 30.0, "availability": "out_of_stock"}, group_id="lamp"),
    Item("cup", "Cup", "", [], {"color": "White", "price": 4.0}),
    Item("L2", "", "", ["red.jpg"], {"color": "Red", "price": 25.0, "availability": "in_stock"}, group_id="lamp"),
    Item("L3", "Big lamp", "", ["red.jpg"], {"color": "Red", "price": 45.0}, group_id="lamp"),
]


def products(items: list[Item], variants: Variants, **changes: Any) -> tuple[list[Item], ImportLog, dict[str, str]]:
    log, product_of = ImportLog(), dict[str, str]()
    options: dict[str, Any] = {"gather": True, "duplicates": "first", **changes}
    copies = [Item(**{name: getattr(item, name) for name in Item.__slots__}) for item in items]
    return list(products_of(copies, variants, log=log, product_of=product_of, **options)), log, product_of


def test_a_product_has_what_its_variants_have() -> None:
    (lamp, cup), _, product_of = products(LAMP, "product")
    assert (lamp.item_id, lamp.title, lamp.description) == ("lamp", "Lamp", "Of brass")
    assert lamp.photos == ["all.jpg", "blue.jpg", "red.jpg"]
    assert lamp.metadata == {
        "category": "light",
        "brand": None,
        "color": "Blue, Red",
        "price": 25.0,
        "availability": "in_stock",
        "num_variants": 3,
    }
    assert cup.item_id == "cup" and "num_variants" not in cup.metadata
    assert product_of == {"L1": "lamp", "L2": "lamp", "L3": "lamp"}


def test_a_variant_takes_from_its_parent_what_it_lacks() -> None:
    found, _, product_of = products(LAMP, "item")
    assert [item.item_id for item in found] == ["L1", "L2", "L3", "cup"]
    assert [item.title for item in found] == ["Lamp", "Lamp", "Big lamp", "Cup"]
    assert [item.photos for item in found] == [["blue.jpg"], ["red.jpg"], ["red.jpg"], []]
    assert found[0].metadata["category"] == "light" and found[2].metadata["price"] == 45.0
    assert not product_of


def test_variants_that_show_one_photo_are_one_product() -> None:
    found, _, product_of = products(LAMP, "photo")
    assert [item.item_id for item in found] == ["L1", "L2", "cup"]
    assert found[1].metadata["price"] == 25.0 and found[1].title == "Lamp"
    assert product_of == {"L3": "L2"}


@pytest.mark.parametrize("variants", ["product", "item", "photo"])
def test_groups_that_follow_each_other(variants: Variants) -> None:
    items = [*LAMP[:2], *LAMP[3:], LAMP[2]]
    assert products(items, variants, adjacent=True)[0] == products(items, variants)[0]


def test_a_parent_without_variants_is_sold() -> None:
    found, _, _ = products(LAMP[:1], "item")
    assert [item.item_id for item in found] == ["lamp"]


@pytest.mark.parametrize("gather", [True, False])
def test_an_id_that_comes_again(gather: bool) -> None:
    items = [
        Item("1", "One", "", ["a.jpg"]),
        Item("2", "Two"),
        Item("1", "Other", "Long", ["b.jpg"], place="x, line 4"),
    ]
    found, log, _ = products(items, "item", gather=gather)
    assert [item.title for item in found] == ["One", "Two"] and log.left_out.total() == 1
    found, log, _ = products(items, "item", gather=gather, duplicates="merge")
    assert [(item.title, item.description, item.photos) for item in found] == [
        ("One", "Long", ["a.jpg", "b.jpg"]),
        ("Two", "", []),
    ]
    assert not log.left_out
    with pytest.raises(CatalogueError, match=r"x, line 4: the id '1' comes again.*--duplicates merge"):
        products(items, "item", gather=gather, duplicates="error")


def test_one_sku_in_two_products_is_no_duplicate_of_theirs() -> None:
    items = [Item("S", "One", group_id="a"), Item("S", "Two", group_id="b"), Item("S", "Again", group_id="b")]
    found, log, _ = products(items, "product")
    assert [item.item_id for item in found] == ["a", "b"] and log.left_out.total() == 1


def test_products_pass_at_once_where_nothing_is_grouped() -> None:
    def endless() -> Any:
        number = 0
        while True:
            yield Item(str(number))
            number += 1

    stream = products_of(endless(), "item", gather=False, duplicates="first", log=ImportLog(), product_of={})
    assert [next(stream).item_id for _ in range(3)] == ["0", "1", "2"]
