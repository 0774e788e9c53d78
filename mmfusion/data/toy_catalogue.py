"""The toy catalogue: drawn products, synthetic queries and grades, for the quick start and the tests.

Every product is made from its own random generator, seeded with the catalogue's seed and the product's number, so
that it is the same in every process and does not depend on how many products are made before it.

A query asks for a silhouette and one to three facts; no person asked or judged. Its grades follow from the facts of
the products: 3 = all that was asked, 1 = the right silhouette and all asked facts but one (only where two facts or more
were asked, otherwise every product of the type would be graded). A query is judged over the products of its own split.

Combinations are held out: a quarter of all combinations of a silhouette with what a query asks to *see* (or, for
queries that ask for nothing visible, to read) belongs to val and test; no train query asks for one of them.
"""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.data.toy_photos import draw_photo
from mmfusion.data.toy_words import BRANDS, COLOURS, PATTERNS, SILHOUETTES, TEXT_FACTS, VISIBLE_FACTS, phrases
from mmfusion.files import replace_text, whole_file

RECORD_NAME: Final = "embedded.json"
MIN_PRODUCTS: Final = 40
SPARSE_SHARE: Final = 0.7
SPLIT_SHARES: Final = {"train": 0.6, "val": 0.1, "test": 0.3}
GRADE_ALL: Final = 3
GRADE_ALL_BUT_ONE: Final = 1
QUERIES_PER_PRODUCT: Final = 0.6
QUERY_SHARES: Final = {"train": 0.8, "val": 0.03, "test": 0.17}
MAX_QUERIES: Final = 20_000
MAX_NEAR_MISSES: Final = 200

# Per kind: which facts are asked. The more specific ones come more often: they have fewer relevant products.
QUESTIONS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "visual": (("colour", "pattern"), ("colour", "pattern"), ("colour",), ("pattern",)),
    "textual": (("brand",), ("brand", "material"), ("material",)),
    "mixed": (("brand", "colour", "pattern"), ("brand", "colour"), ("brand", "pattern"), ("material", "colour")),
}
KIND_SHARES: Final = {"visual": 0.4, "textual": 0.2, "mixed": 0.4}

# Changes whenever the same arguments give another catalogue, so that an old folder is not taken for a new one.
_VERSION: Final = 1
_TABLES: Final = ("products.parquet", "queries.parquet", "qrels.parquet")
_ROWS_PER_GROUP: Final = 1_000
_JUDGEMENTS_PER_GROUP: Final = 500_000
_FACTS: Final = (*VISIBLE_FACTS, *TEXT_FACTS)
# First words of the seeds: streams that must not run in step.
_OF_FACTS, _OF_PHOTO, _OF_SPLIT, _OF_HOLD_OUT, _OF_QUERIES, _OF_NEAR_MISSES = range(1, 7)

_PRODUCTS_SCHEMA: Final = pa.schema(
    [
        ("product_id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("image", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("split", pa.string()),
        ("category", pa.string()),
        ("text_sparse", pa.bool_()),
        ("price", pa.float64()),
        ("attributes", pa.string()),
    ]
)
_QUERIES_SCHEMA: Final = pa.schema(
    [(name, pa.string()) for name in ("query_id", "query", "split", "kind", "constraints")]
)
_QRELS_SCHEMA: Final = pa.schema([("query_id", pa.string()), ("product_id", pa.string()), ("grade", pa.int64())])

_T = TypeVar("_T")
Combination = tuple[str, ...]


class Product(NamedTuple):
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
    """

    number: int
    silhouette: str
    facts: dict[str, str]
    title: str
    description: str
    sparse: bool
    price: float

    @property
    def product_id(self) -> str:
        return f"p{self.number:07d}"

    @property
    def photos(self) -> int:
        """Number of photos, 0 to 2."""
        # By number and not by chance: a catalogue of 40 products has each of these cases too.
        return 0 if self.number % 50 == 7 else 2 if self.number % 33 == 5 else 1


class Query(NamedTuple):
    """One query: its words and what they ask for.

    Attributes:
        query_id: Unique in the catalogue.
        text: Lower case, unique in its split.
        kind: ``visual``, ``textual`` or ``mixed``.
        split: ``train``, ``val`` or ``test``.
        silhouette: The type asked for.
        facts: Value by fact name, what else is asked for.
    """

    query_id: str
    text: str
    kind: str
    split: str
    silhouette: str
    facts: dict[str, str]


def write_toy_catalogue(folder: str | os.PathLike[str], *, num_products: int = 2000, seed: int = 0) -> Path:
    """Draws a catalogue of products and writes it as ``products.parquet``, ``queries.parquet`` and ``qrels.parquet``.

    The labels are synthetic by construction: queries and grades come from the facts that the products were drawn
    from, and no person judged them. Numbers measured on this catalogue show that code works, and nothing else.

    Three products in ten have a rich title that names everything; the others name brand and type only, so that their
    colour and pattern can only be seen. One product in 50 has no photo, one in 33 has two, one in 100 has no title.
    Products are split 60/10/30 into train, val and test, and a query is judged over its split's products. ``image``
    is a list of ``{bytes, path}`` or null. The JSON columns ``attributes`` (products) and ``constraints`` (queries)
    hold the facts for analysis; they are never a model's input. A query keeps at most 200 products of grade 1.

    The content depends on the arguments alone. Files appear under their names only when complete. A complete folder
    written with the same arguments is left as it is.

    Args:
        folder: Output folder; made if missing.
        num_products: At least 40. Memory grows by the facts (about 1 kB a product), not by the photos.
        seed: At least 0.

    Returns:
        ``folder`` as a path.

    Raises:
        ValueError: An argument is out of range, or the folder was written with other arguments.
        FileExistsError: The folder holds tables that were not written by this function.
        NotADirectoryError: ``folder`` is a file.
    """
    if num_products < MIN_PRODUCTS:
        raise ValueError(
            f"num_products is {num_products}; ask for {MIN_PRODUCTS} or more, so that every split has queries"
        )
    folder = Path(folder)
    arguments = {"embedded_catalogue": _VERSION, "num_products": num_products, "seed": seed}
    if begin_folder(folder, arguments, _TABLES):
        return folder
    products = [make_product(number, seed) for number in range(num_products)]
    splits = assign_splits(num_products, seed)
    queries = make_queries(products, splits, seed)
    _write_products(folder / _TABLES[0], products, splits, seed)
    rows = [
        (
            query.query_id,
            query.text,
            query.split,
            query.kind,
            json.dumps({"silhouette": query.silhouette, **query.facts}),
        )
        for query in queries
    ]
    with whole_file(folder / _TABLES[1], concurrent=True) as file:
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        pq.write_table(pa.table(columns, schema=_QUERIES_SCHEMA), file)
    _write_qrels(folder / _TABLES[2], queries, products, judge(queries, products, splits, seed))
    write_record(folder, arguments, complete=True)
    return folder


def begin_folder(folder: Path, arguments: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether ``folder`` already holds ``names``, completely written with ``arguments``; if not, it is made.

    A record in the folder says what is in it and whether it is complete. Its name and keys are of a time when the toy
    catalogue was called the embedded one.

    Args:
        folder: Output folder, which may not exist.
        arguments: What the content depends on; JSON values, among them ``seed``.
        names: Files or folders that a complete output has.

    Raises:
        ValueError: The seed is negative, or the folder was written with other arguments.
        FileExistsError: The folder holds one of ``names`` but no record: it is not ours to overwrite.
        NotADirectoryError: ``folder`` is a file.
    """
    if arguments["seed"] < 0:
        raise ValueError(f"seed is {arguments['seed']}; give an integer of 0 or more")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder to write to")
    path = folder / RECORD_NAME
    present = [name for name in names if (folder / name).exists()]
    if path.exists():
        try:
            record = json.loads(path.read_text("utf-8"))
            written, complete = record["arguments"], record["complete"] is True and len(present) == len(names)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not JSON of a record ({error}); delete its folder and write it again"
            ) from error
        if written != dict(arguments):
            raise ValueError(
                f"{folder} was written with {written}, but {dict(arguments)} is asked for; "
                "name another folder, ask for the same, or delete this one"
            )
        if complete:
            return True
    elif present:
        raise FileExistsError(
            f"{folder} already holds {present[0]} and no {RECORD_NAME}, so it was not written here; "
            "name another folder, or delete this one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, arguments, complete=False)
    return False


def write_record(folder: Path, arguments: Mapping[str, Any], *, complete: bool) -> None:
    """Notes what is in a folder: at the beginning, and once everything is there."""
    record = {"arguments": dict(arguments), "complete": complete}
    replace_text(folder / RECORD_NAME, json.dumps(record, indent=2) + "\n", concurrent=True)


def make_product(number: int, seed: int) -> Product:
    """Makes product ``number`` (from 0) of the catalogue with this seed; its photos are drawn by `draw_photos`."""
    rng = np.random.default_rng([_OF_FACTS, seed, number])
    silhouette = _choose(rng, tuple(SILHOUETTES))
    kind = SILHOUETTES[silhouette]
    empty_title = number % 100 == 13
    sparse = bool(rng.random() < SPARSE_SHARE) or empty_title
    facts = {
        "colour": _choose(rng, tuple(COLOURS)),
        "pattern": _choose(rng, tuple(PATTERNS)),
        "brand": _choose(rng, BRANDS),
    }
    material = _choose(rng, kind.materials)
    if not sparse:
        facts["material"] = material
    name = _choose(rng, kind.names)
    title = "" if empty_title else _title(rng, facts, name, sparse=sparse)
    description = "" if sparse or rng.random() < 0.5 else _description(rng, facts, name)
    low, high = kind.prices
    price = round(low + (high - low) * float(rng.random()) ** 2, 2)
    return Product(number, silhouette, facts, title, description, sparse, price)


def draw_photos(product: Product, seed: int) -> list[bytes]:
    """Draws the photos of a product.

    Returns:
        ``product.photos`` PNG files of 64 x 64 RGB pixels; the second is mirrored and smaller. PNG, because its
        pixels do not depend on the version of an encoder.
    """
    rng = np.random.default_rng([_OF_PHOTO, seed, product.number])
    look = product.silhouette, product.facts["colour"], product.facts["pattern"]
    files = []
    for number in range(product.photos):
        buffer = io.BytesIO()
        draw_photo(rng, *look, second=number == 1).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    return files


def assign_splits(num_products: int, seed: int) -> list[str]:
    """The split of each product: a random 60 % train, 10 % val and 30 % test, counted exactly."""
    order = np.random.default_rng([_OF_SPLIT, seed]).permutation(num_products)
    counts = [round(num_products * SPLIT_SHARES[split]) for split in ("train", "val")]
    splits = np.repeat(["train", "val", "test"], [*counts, num_products - sum(counts)])
    return [str(split) for split in splits[np.argsort(order)]]


def combination(silhouette: str, facts: Mapping[str, str]) -> Combination:
    """What holding out goes by: the silhouette with the visible facts asked for, or with the text facts if none is."""
    names = [fact for fact in VISIBLE_FACTS if fact in facts] or [fact for fact in TEXT_FACTS if fact in facts]
    return (silhouette, *(f"{fact}={facts[fact]}" for fact in names))


def make_queries(products: Sequence[Product], splits: Sequence[str], seed: int) -> list[Query]:
    """Makes the queries of all splits, train first.

    About `QUERIES_PER_PRODUCT` times as many as products, at most `MAX_QUERIES`, fewer where a split has no more
    combinations of its own. Every query is made from a product of its split, so that this product has grade 3.

    Args:
        products: The catalogue's products; at least one in each split.
        splits: The split of each.
        seed: Seed of the catalogue.
    """
    total = min(QUERIES_PER_PRODUCT * len(products), MAX_QUERIES)
    members = {split: [p for p, s in zip(products, splits, strict=True) if s == split] for split in QUERY_SHARES}
    owners = hold_out(members, seed)
    queries: list[Query] = []
    for stream, (split, share) in enumerate(QUERY_SHARES.items()):
        rng = np.random.default_rng([_OF_QUERIES, seed, stream])
        queries += _ask(rng, members[split], split, owners, max(3, round(total * share)))
    return queries


def hold_out(members: Mapping[str, Sequence[Product]], seed: int) -> dict[Combination, str]:
    """Gives every combination to the one split that may ask for it: 75 % train, 4 % val, 21 % test.

    Args:
        members: Products by split. The first product of val and of test always gets combinations of its own, so that
            the smallest catalogue has val and test queries of every kind.
        seed: Seed of the catalogue.

    Returns:
        Split by combination.
    """
    values: dict[str, Sequence[str]] = {"colour": tuple(COLOURS), "pattern": tuple(PATTERNS), "brand": BRANDS}
    asked: tuple[tuple[str, ...], ...] = (
        ("colour",),
        ("pattern",),
        VISIBLE_FACTS,
        ("brand",),
        ("material",),
        TEXT_FACTS,
    )
    combinations = [
        combination(silhouette, dict(zip(names, chosen, strict=True)))
        for silhouette, kind in SILHOUETTES.items()
        for names in asked
        for chosen in itertools.product(*({**values, "material": kind.materials}[name] for name in names))
    ]
    draws = np.random.default_rng([_OF_HOLD_OUT, seed]).random(len(combinations)).tolist()
    owners = {
        each: "train" if draw < 0.75 else "val" if draw < 0.79 else "test"
        for each, draw in zip(combinations, draws, strict=True)
    }
    for split in ("val", "test"):
        first = members[split][0]
        for names in (("colour", "pattern"), ("brand",)):
            owners[combination(first.silhouette, {fact: first.facts[fact] for fact in names})] = split
    return owners


def judge(
    queries: Sequence[Query], products: Sequence[Product], splits: Sequence[str], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grades the products of each query's split.

    Grade 3 is complete. Of the products with grade 1 a query keeps at most `MAX_NEAR_MISSES`, chosen at random, so
    that the judgements of 100,000 products stay in the millions; in a catalogue of less than about 30,000 products no
    val or test query has more.

    Args:
        queries: From `make_queries`.
        products: The catalogue's products.
        splits: The split of each product.
        seed: Seed of the catalogue.

    Returns:
        Positions of the queries, positions of the products and grades (1 or 3), int64 [n] each, in the order of the
        queries, products ascending within a query.
    """
    # A product without a material has "", which no query asks for.
    table = np.array([[product.facts.get(fact, "") for fact in _FACTS] for product in products])
    owners = np.array([f"{split} {product.silhouette}" for split, product in zip(splits, products, strict=True)])
    pools = {owner: np.flatnonzero(owners == owner) for owner in dict.fromkeys(owners.tolist())}
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for position, query in enumerate(queries):
        pool = pools[f"{query.split} {query.silhouette}"]
        columns = [_FACTS.index(fact) for fact in query.facts]
        matches = (table[pool][:, columns] == np.array(list(query.facts.values()))).sum(axis=1)
        grade = np.where(matches == len(columns), GRADE_ALL, 0).astype(np.int64)
        near = np.flatnonzero((matches == len(columns) - 1) & (len(columns) > 1))
        if len(near) > MAX_NEAR_MISSES:
            rng = np.random.default_rng([_OF_NEAR_MISSES, seed, position])
            near = rng.permutation(near)[:MAX_NEAR_MISSES]
        grade[near] = GRADE_ALL_BUT_ONE
        judged = np.flatnonzero(grade)
        found.append((pool[judged], grade[judged]))
    rows, grades = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return np.repeat(np.arange(len(found)), [len(own) for own, _ in found]), rows, grades


def _choose(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    """One of ``options``, each equally likely."""
    return options[int(rng.integers(len(options)))]


def _shuffled(rng: np.random.Generator, words: Sequence[str]) -> list[str]:
    return [words[int(position)] for position in rng.permutation(len(words))]


def _title(rng: np.random.Generator, facts: dict[str, str], name: str, *, sparse: bool) -> str:
    brand = facts["brand"]
    if sparse:
        text = f"{brand} {name}" if rng.random() < 0.8 else f"{name} by {brand}"
    else:
        words = [_choose(rng, phrases(fact, facts[fact])).before for fact in (*VISIBLE_FACTS, "material")]
        middle = " ".join(_shuffled(rng, words))
        text = f"{brand} {middle} {name}" if rng.random() < 0.7 else f"{middle} {name} by {brand}"
    return " ".join(word if word in {"by", "from"} else word[:1].upper() + word[1:] for word in text.split())


def _description(rng: np.random.Generator, facts: dict[str, str], name: str) -> str:
    said = {fact: _choose(rng, phrases(fact, facts[fact])) for fact in _FACTS}
    opening = _choose(rng, ("An everyday favourite", "A new classic", "The gift for summer"))
    care = _choose(rng, ("Wipe clean.", "Wash cold.", "Comes with care this winter."))
    return (
        f"{opening}: a {said['colour'].before} {name} {said['pattern'].after}, "
        f"{said['material'].after}, {said['brand'].after}. {care}"
    )


def _ask(
    rng: np.random.Generator, own: Sequence[Product], split: str, owners: Mapping[Combination, str], count: int
) -> list[Query]:
    """About ``count`` queries of one split, no two with the same text."""
    queries: dict[str, Query] = {}
    for kind, share in KIND_SHARES.items():
        wanted = len(queries) + max(1, round(count * share))
        for attempt in range(30 * wanted):
            if len(queries) == wanted:
                break
            # The first question is the one for which `hold_out` keeps a combination of the first product.
            product = _choose(rng, own) if attempt else own[0]
            asked = _choose(rng, QUESTIONS[kind]) if attempt else QUESTIONS[kind][0]
            if any(fact not in product.facts for fact in asked):
                continue
            facts = {fact: product.facts[fact] for fact in asked}
            text = _phrase(rng, product.silhouette, facts)
            if owners[combination(product.silhouette, facts)] == split and text not in queries:
                name = f"{split}-{len(queries):06d}"
                queries[text] = Query(name, text, kind, split, product.silhouette, facts)
    return list(queries.values())


def _phrase(rng: np.random.Generator, silhouette: str, facts: Mapping[str, str]) -> str:
    """Words for the facts, each before the noun (7 in 10) or after it, in any order."""
    before: list[str] = []
    after: list[str] = []
    for fact, value in facts.items():
        phrase = _choose(rng, phrases(fact, value))
        if rng.random() < 0.7:
            before.append(phrase.before)
        else:
            after.append(phrase.after)
    noun = _choose(rng, SILHOUETTES[silhouette].names)
    first = _shuffled(rng, before)
    return " ".join([*first, noun, *_shuffled(rng, after)])


def _write_products(target: Path, products: Sequence[Product], splits: Sequence[str], seed: int) -> None:
    with whole_file(target, concurrent=True) as file, pq.ParquetWriter(file, _PRODUCTS_SCHEMA) as writer:
        for start in range(0, len(products), _ROWS_PER_GROUP):
            rows = [
                {
                    "product_id": product.product_id,
                    "title": product.title,
                    "description": product.description,
                    "image": [
                        {"bytes": data, "path": f"{product.product_id}_{number}.png"}
                        for number, data in enumerate(draw_photos(product, seed))
                    ]
                    or None,
                    "split": split,
                    "category": product.silhouette,
                    "text_sparse": product.sparse,
                    "price": product.price,
                    "attributes": json.dumps({"silhouette": product.silhouette, **product.facts}),
                }
                for product, split in zip(products[start:][:_ROWS_PER_GROUP], splits[start:], strict=False)
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=_PRODUCTS_SCHEMA))


def _write_qrels(
    target: Path, queries: Sequence[Query], products: Sequence[Product], found: tuple[np.ndarray, ...]
) -> None:
    query_ids = pa.array([query.query_id for query in queries])
    product_ids = pa.array([product.product_id for product in products])
    with whole_file(target, concurrent=True) as file, pq.ParquetWriter(file, _QRELS_SCHEMA) as writer:
        for start in range(0, len(found[0]), _JUDGEMENTS_PER_GROUP):
            query, product, grade = (column[start : start + _JUDGEMENTS_PER_GROUP] for column in found)
            columns = [query_ids.take(pa.array(query)), product_ids.take(pa.array(product)), pa.array(grade)]
            writer.write_table(pa.Table.from_arrays(columns, schema=_QRELS_SCHEMA))
