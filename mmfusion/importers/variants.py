"""Which rows become one product: variants of a product, rows with one id, variants that share a photo."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import groupby
from typing import Any, Literal

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.items import ImportLog, Item, Variants

Duplicates = Literal["first", "merge", "error"]

# The best of a product's variants is what a shopper can get of it.
_AVAILABILITY = ("in_stock", "backorder", "preorder", "out_of_stock")


def products_of(
    items: Iterable[Item],
    variants: Variants,
    *,
    gather: bool,
    adjacent: bool = False,
    duplicates: Duplicates,
    log: ImportLog,
    product_of: dict[str, str],
) -> Iterator[Item]:
    """Turns items into products, in the order of their first item.

    - `product`: one per group, named by `group_id`; items without a group stay alone.
    - `item`: one per item that is no parent; what it lacks comes from its parent.
    - `photo`: one per group and first photo, named by the first item that shows it.

    Items of one product are merged by `merged`.

    Args:
        items: In the order of the file.
        variants: As above.
        gather: Whether items of a group may be apart or parents describe others; all items are then held in memory.
            False: an item is a product, and passes at once.
        adjacent: Whether the items of a group follow each other: one group at a time is then held in memory.
        duplicates: What to do with an id that comes again (within a group, where items are grouped): keep the first
            one and count the others, merge them, or raise an error.
        log: Gets the counts.
        product_of: Gets the product id of each item whose own id is another one, by which a click log may name it.

    Raises:
        CatalogueError: An id comes again, with `duplicates="error"`.
    """
    if not gather and duplicates != "merge":
        yield from _without_duplicates(items, lambda item: item.item_id, duplicates, log)
        return
    by_group = gather and variants == "product"
    key: Callable[[Item], Hashable] = (lambda item: (item.group_id, item.item_id)) if by_group else _item_id
    if duplicates != "merge":
        items = _without_duplicates(items, key, duplicates, log)
    for name, group in _groups(items, adjacent=adjacent and gather):
        parts = [(name, group)]
        if variants != "product":
            parts = _parts(group, by_photo=variants == "photo", merge=duplicates == "merge")
        for product_id, part in parts:
            product_of.update((item.item_id, product_id) for item in part if item.item_id != product_id)
            yield merged(part, product_id) if len(part) > 1 or variants == "product" else part[0]


def _groups(items: Iterable[Item], *, adjacent: bool) -> Iterable[tuple[str, list[Item]]]:
    """Names and items of groups, in the order of their first item."""
    if adjacent:
        return ((name, list(group)) for name, group in groupby(items, _group_of))
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(_group_of(item), []).append(item)
    return groups.items()


def _group_of(item: Item) -> str:
    return item.item_id if item.group_id is None else item.group_id


def merged(items: list[Item], item_id: str) -> Item:
    """One product of several items: first text that is there, all photos once, lowest price, best availability.

    Of other metadata, values that differ are joined by a comma; `num_variants` counts the items that are no parents.
    A parent's texts, photos and metadata go before those of its variants.
    """
    ordered = sorted(items, key=lambda item: not item.is_parent)
    product = Item(item_id, place=items[0].place, photo_name=ordered[0].photo_name, group_id=items[0].group_id)
    for item in ordered:
        product.title = product.title or item.title
        product.description = product.description or item.description
        product.photos += [photo for photo in item.photos if photo not in product.photos]
    for name in dict.fromkeys(name for item in ordered for name in item.metadata):
        values = [item.metadata[name] for item in ordered if item.metadata.get(name) not in (None, "")]
        product.metadata[name] = _joined(name, values, own=ordered[0].is_parent and bool(ordered[0].metadata.get(name)))
    sold = sum(not item.is_parent for item in items)
    if sold > 1 or any(item.group_id is not None for item in items):
        product.metadata["num_variants"] = max(sold, 1)
    return product


def _joined(name: str, values: list[Any], *, own: bool) -> Any:
    distinct = [value for at, value in enumerate(values) if value not in values[:at]]
    if not distinct or len(distinct) == 1:
        return distinct[0] if distinct else None
    if name == "price":
        return min(distinct)
    if name == "availability":
        return min(distinct, key=lambda value: _AVAILABILITY.index(value) if value in _AVAILABILITY else 9)
    if own or not all(isinstance(value, str) for value in distinct):
        return distinct[0]
    return ", ".join(distinct)


def _parts(group: list[Item], *, by_photo: bool, merge: bool) -> list[tuple[str, list[Item]]]:
    """Products of a group whose items stay apart, or those that show one photo together: id and items."""
    parents = [item for item in group if item.is_parent]
    sold = [item for item in group if not item.is_parent] or parents[:1]
    parts: dict[Hashable, list[Item]] = {}
    for item in sold:
        for parent in parents:
            item.title = item.title or parent.title
            item.description = item.description or parent.description
            item.photos = item.photos or list(parent.photos)
            item.metadata = {**parent.metadata, **{k: v for k, v in item.metadata.items() if v not in (None, "")}}
        first = item.photos[0] if item.photos else None
        parts.setdefault(first if by_photo else item.item_id if merge else id(item), []).append(item)
    return [(part[0].item_id, part) for part in parts.values()]


def _without_duplicates(
    items: Iterable[Item], key: Callable[[Item], Hashable], duplicates: Duplicates, log: ImportLog
) -> Iterator[Item]:
    seen: set[Hashable] = set()
    for item in items:
        known = key(item)
        if known in seen and not item.is_parent:
            if duplicates == "error":
                remedy = "Remove one of them, or use --duplicates first or --duplicates merge."
                raise CatalogueError(f"the id {item.item_id!r} comes again", item.place, remedy)
            log.leave_out("the id came before: the first row is kept")
            continue
        seen.add(known)
        yield item


def _item_id(item: Item) -> str:
    return item.item_id
