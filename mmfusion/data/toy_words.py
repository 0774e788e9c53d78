"""The words of the toy catalogue: what can be drawn, what can only be said, and the synonyms for both.

Everything here is invented. A *fact* is one attribute of a product; ``colour`` and ``pattern`` can be seen on its
photo, ``brand`` and ``material`` can only be read. The silhouette (the product type) is asked by every query.
"""

from __future__ import annotations

from typing import Final, NamedTuple

VISIBLE_FACTS: Final = ("colour", "pattern")
TEXT_FACTS: Final = ("brand", "material")


class Phrase(NamedTuple):
    """One way to name a fact: before the noun (``striped dress``) or after it (``dress with stripes``)."""

    before: str
    after: str


class Silhouette(NamedTuple):
    """A product type: its names, the materials it can be made of and its price range in no particular currency."""

    names: tuple[str, ...]
    materials: tuple[str, ...]
    prices: tuple[float, float]


_FABRICS: Final = ("cotton", "linen", "wool", "silk", "denim")
_TOUGH: Final = ("leather", "canvas", "suede", "wool")
_HOUSEHOLD: Final = ("wood", "steel", "rattan", "bamboo")

SILHOUETTES: Final[dict[str, Silhouette]] = {
    "dress": Silhouette(("dress", "gown", "frock"), _FABRICS, (25.0, 150.0)),
    "t-shirt": Silhouette(("t-shirt", "tee"), _FABRICS, (8.0, 45.0)),
    "trousers": Silhouette(("trousers", "pants", "slacks"), _FABRICS, (20.0, 110.0)),
    "skirt": Silhouette(("skirt",), _FABRICS, (15.0, 80.0)),
    "shoe": Silhouette(("shoe", "sneaker", "trainer"), _TOUGH, (30.0, 160.0)),
    "bag": Silhouette(("bag", "handbag", "tote"), _TOUGH, (20.0, 220.0)),
    "hat": Silhouette(("hat", "headwear"), _TOUGH, (10.0, 60.0)),
    "mug": Silhouette(("mug", "cup"), ("ceramic", "glass", "enamel", "steel"), (5.0, 30.0)),
    "lamp": Silhouette(("lamp", "light"), _HOUSEHOLD, (18.0, 190.0)),
    "chair": Silhouette(("chair", "seat"), _HOUSEHOLD, (40.0, 320.0)),
    "umbrella": Silhouette(("umbrella", "parasol"), ("nylon", "polyester", "cotton", "silk"), (9.0, 55.0)),
    "cushion": Silhouette(("cushion", "pillow"), _FABRICS, (9.0, 60.0)),
}

COLOURS: Final[dict[str, tuple[str, ...]]] = {
    "red": ("red", "scarlet", "crimson"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "lemon"),
    "green": ("green", "emerald"),
    "turquoise": ("turquoise", "teal"),
    "blue": ("blue", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "brown": ("brown", "chocolate"),
    "black": ("black", "jet"),
    "grey": ("grey", "gray"),
    "white": ("white", "ivory"),
}

PATTERNS: Final[dict[str, tuple[Phrase, ...]]] = {
    "plain": (Phrase("plain", "in a solid colour"), Phrase("solid", "without a print")),
    "striped": (Phrase("striped", "with stripes"), Phrase("stripy", "with stripes")),
    "dotted": (Phrase("dotted", "with dots"), Phrase("polka dot", "with polka dots"), Phrase("spotted", "with spots")),
    "checked": (Phrase("checked", "with checks"), Phrase("chequered", "with checks"), Phrase("plaid", "in plaid")),
    "floral": (Phrase("floral", "with flowers"), Phrase("flowery", "with blossoms")),
}

# Few, so that a brand alone does not single out a product: a mixed query has to look at the photo as well.
BRANDS: Final = ("acme", "belmora", "corvex", "dunwick", "elorane", "fernbank")

# Words of titles, descriptions and likely searches that name no fact.
FILLERS: Final = (
    "a an and by for from in is it its made of on or the this to with without you your everyday favourite new classic "
    "soft sturdy comes brand piece item care wipe clean wash cold gift summer winter"
)


def phrases(fact: str, value: str) -> tuple[Phrase, ...]:
    """The ways to name ``value`` of ``fact`` (one of `VISIBLE_FACTS` or `TEXT_FACTS`)."""
    if fact == "colour":
        return tuple(Phrase(name, f"in {name}") for name in COLOURS[value])
    if fact == "pattern":
        return PATTERNS[value]
    if fact == "brand":
        return (Phrase(value, f"by {value}"), Phrase(value, f"from {value}"))
    return (Phrase(value, f"made of {value}"),)


def all_words() -> list[str]:
    """Every lower-case word of the toy catalogue, sorted and without duplicates (the tokenizer's word list)."""
    texts: list[str] = [FILLERS, *BRANDS]
    for silhouette in SILHOUETTES.values():
        texts += [*silhouette.names, *silhouette.materials]
    for names in COLOURS.values():
        texts += names
    for choices in PATTERNS.values():
        texts += [word for phrase in choices for word in phrase]
    return sorted({word for text in texts for word in text.replace("-", " ").split()})
