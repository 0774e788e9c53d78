"""Titles and attributes of products in place of queries, where nobody has logged any.

A title is asked for and its own product is the answer, which the photo has to tell, as captions and images do in CLIP
(arXiv:2103.00020). Titles with words left out, and values of the catalogue's own columns, are closer to what people
type. None of them is a query: what is measured with them says how well titles and photos belong together, and nothing
of how well people find what they ask for.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from zlib import crc32

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue import Catalogue, CatalogueError
from mmfusion.data.catalogue_schema import COLUMNS
from mmfusion.data.qrels import Qrels
from mmfusion.data.tables import Rows, photo_counts

TITLE, ATTRIBUTES = "title", "attributes"
"""Values of the column `kind` of pseudo-queries."""

_LEAST_PRODUCTS = 3
_LARGEST_SHARE, _ENOUGH = 0.25, 30
_MOST_COLUMNS = 4
# Of a column whose values describe products: words per value, and the share of different values.
_MOST_WORDS, _MOST_DIFFERENT = 4.0, 0.2
# A combination that so many products share tells few of them apart.
_MOST_SHARED = 0.1
# Columns that shops have and nobody asks for.
_NOT_ASKED_FOR = re.compile(
    r"(^|_)(id|ids|sku|gtin|ean|upc|mpn|isbn|barcode|handle|url|link|links|photo|photos|image|images|file|path|price|"
    r"currency|availability|condition|status|stock|inventory|date|created|updated|language|locale|country|shipping|tax|"
    r"taxable|weight|unit|split)(_|$)"
)
_WHAT_IT_IS = re.compile(r"category|type|class|department|group")


def with_pseudo_queries(catalogue: Catalogue, *, seed: int = 0, held_out: float = 0.1) -> Catalogue:
    """The catalogue with pseudo-queries instead of its queries, and with products held out for validation.

    Of each product in training there are its title and its title with words left out (`kind` "title"), and of the
    catalogue's columns combinations of up to three values (`kind` "attributes"), no more of them than products. One
    text is one query, and all products that it was made from are its answers, with grade 1. The queries of validation
    are titles of held-out products that have a photo.

    What is drawn for a product depends on its id and the seed alone, so that products that are added later change
    nothing for the others. (Of less than 300 products more are held out, up to a quarter: among a handful of photos any
    title finds its own.)

    Args:
        catalogue: Its products; of a catalogue with splits, those of train, and products of val are left alone.
        seed: Other seeds hold out other products and leave out other words.
        held_out: Share of the products that are held out, from 0 to 1.

    Raises:
        CatalogueError: Fewer than three products have a title, or none has a photo, so that there is nothing to learn.
    """
    rows = catalogue.product_rows("train")
    titles = dict(zip(rows.tolist(), catalogue.titles(rows), strict=True))
    titles = {row: " ".join(title.split()) for row, title in titles.items() if title}
    with_photo = photo_counts(catalogue, 1) > 0
    _check_enough(catalogue, titles, with_photo, len(rows))
    val = _held_out(catalogue, [row for row in titles if with_photo[row]], seed, held_out)
    train = {row: title for row, title in titles.items() if row not in val}
    asked: dict[tuple[str, str], tuple[str, list[int]]] = {}
    for row, title in train.items():
        name = str(catalogue.product_ids[row])
        for prefix, text in (("title", title), ("words", _words_left_out(title, f"{seed}:{name}"))):
            asked.setdefault(("train", text.lower()), (f"{prefix}:{name}", []))[1].append(row)
    kinds = {"train": [TITLE] * len(asked)}
    for text, answers in _attribute_queries(catalogue, np.array(sorted(train)), seed):
        if ("train", text) not in asked:
            asked["train", text] = f"{ATTRIBUTES}:{text}", answers.tolist()
            kinds["train"].append(ATTRIBUTES)
    before = len(asked)
    for row in sorted(val):
        asked.setdefault(("val", titles[row].lower()), (f"title:{catalogue.product_ids[row]}", []))[1].append(row)
    kinds["val"] = [TITLE] * (len(asked) - before)
    queries = {
        "query_id": [name for name, _ in asked.values()],
        "query": [text for _, text in asked],
        "split": [split for split, _ in asked],
        "kind": kinds["train"] + kinds["val"],
    }
    pairs = [(at, row) for at, (_, answers) in enumerate(asked.values()) for row in dict.fromkeys(answers)]
    query, product = np.array(pairs, dtype=np.int64).T
    return Catalogue(
        _with_split(catalogue, rows, val),
        datasets.Dataset.from_dict(queries),
        Qrels(query, product, np.ones(len(query), dtype=np.int64)),
        source=catalogue.source,
        photo_root=catalogue.photo_root,
    )


def attribute_columns(catalogue: Catalogue, rows: Rows) -> list[str]:
    """Columns whose values people may ask for, such as brand, colour and category, what a product is coming last.

    They hold short texts of which few are different; ids, addresses, prices and the like are left out, by their names.
    At most four, those that most products have.

    Args:
        catalogue: Products with further columns.
        rows: (N,) int64 product rows to look at.
    """
    found: dict[str, int] = {}
    columns = catalogue.product_schema.names
    for column in columns:
        texts = str(catalogue.product_schema.field(column).type) in ("string", "large_string")
        if texts and column not in COLUMNS["products"] and not _NOT_ASKED_FOR.search(column.lower()):
            values = Counter(_values(catalogue, column, rows))
            blank = values.pop("", 0)
            given = len(rows) - blank
            words = sum(len(value.split()) * count for value, count in values.items())
            few = 2 <= len(values) <= max(2, _MOST_DIFFERENT * given)
            if few and words <= _MOST_WORDS * given:
                found[column] = given
    chosen = sorted(found, key=lambda column: -found[column])[:_MOST_COLUMNS]
    return sorted(chosen, key=lambda column: (bool(_WHAT_IT_IS.search(column.lower())), columns.index(column)))


def _check_enough(catalogue: Catalogue, titles: dict[int, str], with_photo: np.ndarray, products: int) -> None:
    place = f"products of {catalogue.source}"
    clicks = "give queries with judgements or clicks"
    if len(titles) < _LEAST_PRODUCTS:
        raise CatalogueError(
            f"{len(titles)} of {products} products to train on have a title; without queries, training tells products "
            f"apart by their titles, of which it needs at least {_LEAST_PRODUCTS}",
            place,
            f"Write titles, or {clicks}.",
        )
    if not any(with_photo[row] for row in titles):
        raise CatalogueError(
            "no product with a title has a photo; without queries, which photo belongs to which title is all that "
            "there is to learn",
            place,
            f"Add photos, or {clicks}.",
        )


def _held_out(catalogue: Catalogue, rows: Sequence[int], seed: int, share: float) -> set[int]:
    numbers = {row: crc32(f"{seed}:{catalogue.product_ids[row]}".encode()) for row in rows}
    share = max(share, min(_LARGEST_SHARE, _ENOUGH / len(rows)))
    found = {row for row, number in numbers.items() if number < share * 2**32}
    # At least one, and not so many that nothing is left to compare.
    return found if 0 < len(found) <= len(rows) // 2 else {min(numbers, key=lambda row: (numbers[row], row))}


def _words_left_out(title: str, seed: str) -> str:
    """A third to two thirds of the words of a title, at least two and in their order."""
    words = title.split()
    draw = random.Random(seed)
    count = draw.randint(max(2, len(words) // 3), max(2, 2 * len(words) // 3))
    return " ".join(words[at] for at in sorted(draw.sample(range(len(words)), min(count, len(words)))))


def _attribute_queries(catalogue: Catalogue, rows: Rows, seed: int) -> Iterator[tuple[str, Rows]]:
    """Texts of combinations of values, and the rows (M,) int64 that have them; as many as rows at most."""
    columns = attribute_columns(catalogue, rows)
    values = {column: np.array(_values(catalogue, column, rows), dtype=object) for column in columns}
    most = max(2, int(_MOST_SHARED * len(rows)))
    found: dict[str, Rows] = {}
    for size in range(1, min(3, len(columns)) + 1):
        for names in combinations(columns, size):
            codes = [np.unique(values[name], return_inverse=True)[1] for name in names]
            complete = np.all([values[name] != "" for name in names], axis=0)
            _, first, which = np.unique(np.stack(codes, axis=1), axis=0, return_index=True, return_inverse=True)
            members = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which.ravel()))[:-1])
            for at, own in zip(first.tolist(), members, strict=True):
                if complete[at] and len(own) <= most:
                    found.setdefault(" ".join(dict.fromkeys(values[name][at] for name in names)), rows[own])
    order = sorted(found, key=lambda text: (crc32(f"{seed}:{text}".encode()), text))
    return ((text, found[text]) for text in order[: len(rows)])


def _values(catalogue: Catalogue, column: str, rows: Rows) -> list[str]:
    """Values of a column in lower case, of a path such as "Clothing > Shirts" the last part; "" where there is none."""
    read = catalogue.products.select_columns([column]).with_format("arrow")[:].column(column)
    texts = pc.fill_null(read.take(pa.array(rows)), "").to_pylist()
    return [" ".join(text.split(">")[-1].lower().split()) for text in texts]


def _with_split(catalogue: Catalogue, rows: Rows, val: set[int]) -> datasets.Dataset:
    products, splits = catalogue.products, np.full(len(catalogue.products), None, dtype=object)
    if "split" in products.column_names:
        splits[catalogue.product_rows("test")] = "test"
        products = products.remove_columns("split")
    splits[rows], splits[sorted(val)] = "train", "val"
    return products.add_column("split", pa.array(splits.tolist(), pa.string()))
