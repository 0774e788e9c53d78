"""Writes the toy catalogue as the three Parquet tables of the catalogue format."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.data.toy_products import Product, assign_splits, draw_photos, make_product
from mmfusion.data.toy_queries import Judgements, Query, judge, make_queries
from mmfusion.data.toy_record import is_complete, write_record
from mmfusion.files import whole_file

MIN_PRODUCTS: Final = 40
TABLES: Final = ("products.parquet", "queries.parquet", "qrels.parquet")

# Changes whenever the same arguments give another catalogue, so that an old folder is not taken for a new one.
_VERSION: Final = 1
_ROWS_PER_GROUP: Final = 1_000
_JUDGEMENTS_PER_GROUP: Final = 500_000

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
    if seed < 0:
        raise ValueError(f"seed is {seed}; give an integer of 0 or more")
    folder = Path(folder)
    arguments = {"embedded_catalogue": _VERSION, "num_products": num_products, "seed": seed}
    if is_complete(folder, arguments, TABLES):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, arguments, complete=False)
    products = [make_product(number, seed) for number in range(num_products)]
    splits = assign_splits(num_products, seed)
    queries = make_queries(products, splits, seed)
    _write_products(folder / TABLES[0], products, splits, seed)
    _write_queries(folder / TABLES[1], queries)
    _write_qrels(folder / TABLES[2], queries, products, judge(queries, products, splits, seed))
    write_record(folder, arguments, complete=True)
    return folder


def _write_products(target: Path, products: Sequence[Product], splits: Sequence[str], seed: int) -> None:
    with whole_file(target, concurrent=True) as file, pq.ParquetWriter(file, _PRODUCTS_SCHEMA) as writer:
        for start in range(0, len(products), _ROWS_PER_GROUP):
            stop = min(start + _ROWS_PER_GROUP, len(products))
            rows = [_product_row(products[i], splits[i], seed) for i in range(start, stop)]
            writer.write_table(pa.Table.from_pylist(rows, schema=_PRODUCTS_SCHEMA))


def _product_row(product: Product, split: str, seed: int) -> dict[str, Any]:
    photos = [
        {"bytes": data, "path": f"{product.product_id}_{view}.png"}
        for view, data in enumerate(draw_photos(product, seed))
    ]
    return {
        "product_id": product.product_id,
        "title": product.title,
        "description": product.description,
        "image": photos or None,
        "split": split,
        "category": product.silhouette,
        "text_sparse": product.sparse,
        "price": product.price,
        "attributes": json.dumps({"silhouette": product.silhouette, **product.facts}),
    }


def _write_queries(target: Path, queries: Sequence[Query]) -> None:
    rows = [
        {
            "query_id": query.query_id,
            "query": query.text,
            "split": query.split,
            "kind": query.kind,
            "constraints": json.dumps({"silhouette": query.silhouette, **query.facts}),
        }
        for query in queries
    ]
    with whole_file(target, concurrent=True) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=_QUERIES_SCHEMA), file)


def _write_qrels(target: Path, queries: Sequence[Query], products: Sequence[Product], found: Judgements) -> None:
    query_ids = pa.array([query.query_id for query in queries])
    product_ids = pa.array([product.product_id for product in products])
    with whole_file(target, concurrent=True) as file, pq.ParquetWriter(file, _QRELS_SCHEMA) as writer:
        for start in range(0, len(found.grade), _JUDGEMENTS_PER_GROUP):
            part = np.s_[start : start + _JUDGEMENTS_PER_GROUP]
            columns = [query_ids.take(found.query[part]), product_ids.take(found.product[part]), found.grade[part]]
            writer.write_table(pa.Table.from_arrays([pa.array(c) for c in columns], schema=_QRELS_SCHEMA))
