"""The products of the toy catalogue: facts, titles, prices, splits and drawn photos.

Every product is made from its own random generator, seeded with the catalogue's seed and the product's number, so
that it is the same in every process and does not depend on how many products are made before it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from mmfusion.data.toy_photos import draw_photo
from mmfusion.data.toy_words import BRANDS, COLOURS, PATTERNS, SILHOUETTES, TEXT_FACTS, VISIBLE_FACTS, phrases

SPARSE_SHARE: Final = 0.7
SPLIT_SHARES: Final = {"train": 0.6, "val": 0.1, "test": 0.3}

# First words of the seeds: streams that must not run in step.
_STREAM_FACTS: Final = 1
_STREAM_PHOTO: Final = 2
_STREAM_SPLIT: Final = 3

_T = TypeVar("_T")


@dataclass(frozen=True)
class Product:
    """One product and what is true of it.

    Attributes:
        number: Position in the catalogue, from 0.
        silhouette: Product type, a key of `SILHOUETTES`.
        facts: Value by fact name. ``colour`` and ``pattern`` are always there. ``material`` only where a rich title
            states it: it cannot be seen, so a sparse product has none.
        title: May be empty (1 product in 100).
        description: Empty for sparse products and for half of the rich ones.
        sparse: Whether the title names nothing but brand and type.
        price: Metadata that is neither seen nor asked.
        photos: Number of photos, 0 to 2.
    """

    number: int
    silhouette: str
    facts: dict[str, str]
    title: str
    description: str
    sparse: bool
    price: float
    photos: int

    @property
    def product_id(self) -> str:
        return f"p{self.number:07d}"


def choose(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    """One of ``options``, each equally likely."""
    return options[int(rng.integers(len(options)))]


def make_product(number: int, seed: int) -> Product:
    """Makes product ``number`` (from 0) of the catalogue with this seed; its photos are drawn by `draw_photos`."""
    rng = np.random.default_rng([_STREAM_FACTS, seed, number])
    silhouette = choose(rng, tuple(SILHOUETTES))
    kind = SILHOUETTES[silhouette]
    empty_title = number % 100 == 13
    sparse = bool(rng.random() < SPARSE_SHARE) or empty_title
    facts = {
        "colour": choose(rng, tuple(COLOURS)),
        "pattern": choose(rng, tuple(PATTERNS)),
        "brand": choose(rng, BRANDS),
    }
    material = choose(rng, kind.materials)
    if not sparse:
        facts["material"] = material
    name = choose(rng, kind.names)
    title = "" if empty_title else _title(rng, facts, name, sparse=sparse)
    description = "" if sparse or rng.random() < 0.5 else _description(rng, facts, name)
    low, high = kind.prices
    price = round(low + (high - low) * float(rng.random()) ** 2, 2)
    return Product(number, silhouette, facts, title, description, sparse, price, _count_photos(number))


def draw_photos(product: Product, seed: int) -> list[bytes]:
    """Draws the photos of a product.

    Returns:
        ``product.photos`` PNG files of 64 x 64 RGB pixels; the second is mirrored and smaller. PNG, because its
        pixels do not depend on the version of an encoder.
    """
    rng = np.random.default_rng([_STREAM_PHOTO, seed, product.number])
    files = []
    for view in range(product.photos):
        picture = draw_photo(
            rng, product.silhouette, product.facts["colour"], product.facts["pattern"], second=view == 1
        )
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        files.append(buffer.getvalue())
    return files


def assign_splits(num_products: int, seed: int) -> list[str]:
    """The split of each product: a random 60 % train, 10 % val and 30 % test, counted exactly."""
    order = np.random.default_rng([_STREAM_SPLIT, seed]).permutation(num_products)
    stop_train = round(num_products * SPLIT_SHARES["train"])
    stop_val = stop_train + round(num_products * SPLIT_SHARES["val"])
    splits = ["test"] * num_products
    for position, number in enumerate(order.tolist()):
        if position < stop_val:
            splits[number] = "train" if position < stop_train else "val"
    return splits


def _count_photos(number: int) -> int:
    # By number and not by chance: a catalogue of 40 products has each of these cases too.
    if number % 50 == 7:
        return 0
    return 2 if number % 33 == 5 else 1


def _title(rng: np.random.Generator, facts: dict[str, str], name: str, *, sparse: bool) -> str:
    brand = facts["brand"]
    if sparse:
        return _headline(f"{brand} {name}" if rng.random() < 0.8 else f"{name} by {brand}")
    words = [choose(rng, phrases(fact, facts[fact])).before for fact in (*VISIBLE_FACTS, "material")]
    middle = " ".join(words[int(position)] for position in rng.permutation(len(words)))
    return _headline(f"{brand} {middle} {name}" if rng.random() < 0.7 else f"{middle} {name} by {brand}")


def _headline(text: str) -> str:
    return " ".join(word if word in {"by", "from"} else word[:1].upper() + word[1:] for word in text.split())


def _description(rng: np.random.Generator, facts: dict[str, str], name: str) -> str:
    said = {fact: choose(rng, phrases(fact, facts[fact])) for fact in (*VISIBLE_FACTS, *TEXT_FACTS)}
    opening = choose(rng, ("An everyday favourite", "A new classic", "The gift for summer"))
    care = choose(rng, ("Wipe clean.", "Wash cold.", "Comes with care this winter."))
    return (
        f"{opening}: a {said['colour'].before} {name} {said['pattern'].after}, "
        f"{said['material'].after}, {said['brand'].after}. {care}"
    )
