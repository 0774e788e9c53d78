"""An index of product embeddings in Milvus, which searches and changes as a [`ProductIndex`] does."""

import base64
import itertools
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa

from mmfusion.lexical import query_words
from mmfusion.model.missing import is_missing
from mmfusion.retrieval.filters import Filter
from mmfusion.retrieval.milvus.columns import (
    BM25_FIELD,
    ID_FIELD,
    VECTOR_FIELD,
    among,
    check_values,
    columns_of,
    milvus_expression,
)
from mmfusion.retrieval.milvus.connection import Connection, MilvusError, is_file
from mmfusion.retrieval.milvus.upload import (
    BATCH_ROWS,
    SCHEMA_VERSION,
    CollectionDescription,
    count_products,
    find_description,
    kind_of_index,
    spelled,
    upload,
    upsert,
)
from mmfusion.retrieval.products import Ids, ids_column, lexical_columns, like, products_table
from mmfusion.retrieval.ranking import (
    CALIBRATED,
    FIRST_DEPTH,
    FUSED_DEPTH,
    PLAIN,
    RRF_K,
    Ranking,
    RankingError,
    check_groups,
)
from mmfusion.retrieval.search import Hit, SearchIndex, StoredProduct, ranked
from mmfusion.retrieval.vectors import checked_blocks, created_by

# What Milvus finds for one query at most, and how many hits are asked for in one request: servers take no more queries
# than that in one, and send no more than 100 MB back.
MAX_HITS = 16_384
_HITS_PER_REQUEST = 16_384
TIMEOUT = 60.0

# Scores with rows of the table of products.
Scored = list[tuple[float, dict[str, Any]]]


class MilvusIndex(SearchIndex, AbstractContextManager["MilvusIndex"]):
    """Product embeddings with their ids, modality weights and metadata in a collection of Milvus.

    Make one with `build` or [`ProductIndex.to`], or `connect` to one that is there. Close it, or use it in a `with`
    statement: a file of Milvus Lite is open in one process at a time. Searches may run in several threads.
    """

    def __init__(self, connection: Connection, description: CollectionDescription) -> None:
        self._connection = connection
        self._description = description
        self._nothing = description.schema.empty_table()
        self._columns = columns_of(description.schema)
        self._fields = [column.field for column in self._columns if column.field is not None]
        self.place = connection.place

    @property
    def description(self) -> CollectionDescription:
        """What the collection says about itself."""
        return self._description

    @classmethod
    def build(
        cls,
        embeds: Any | Iterable[Any],
        product_ids: Ids,
        *,
        metadata: pa.Table | None = None,
        modality_weights: np.ndarray | None = None,
        **options: Any,
    ) -> "MilvusIndex":
        """Uploads product embeddings into a new collection for search by inner product.

        Args:
            embeds: float [N, D] (numpy, memory-mapped or tensor), or an iterable of blocks [n, D] of N rows in all.
            product_ids: N different strings of any characters, of at most 65,535 bytes.
            metadata: N rows; numbers, texts, booleans and times become fields of Milvus that filters look at, lists and
                structs of them JSON.
            modality_weights: float [N, 2], shares of text and image; returned with each hit.
            options: `model_fingerprint`, `uri` and others, as of `upload`.

        Raises:
            ImportError, MilvusError: as of `upload`.
            ValueError: as of [`ProductIndex.build`] and of `upload`.
        """
        return cls.upload(embeds, products_table(product_ids, metadata, modality_weights), **options)

    @classmethod
    def upload(
        cls,
        embeds: Any | Iterable[Any],
        products: pa.Table,
        *,
        model_fingerprint: str,
        uri: str | os.PathLike[str],
        collection: str = "products",
        token: str | None = None,
        index_type: str | None = None,
        index_params: Mapping[str, Any] | None = None,
        search_params: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        timeout: float = TIMEOUT,
        lexical: bool | Sequence[str] = False,
    ) -> "MilvusIndex":
        """Uploads product embeddings with a table of their ids, weights and metadata into a new collection.

        After an upload that was cut off, `connect` raises an error; the same call continues with the upload.

        Args:
            embeds: as of `build`.
            products: N rows, as [`products_table`] makes them.
            model_fingerprint: identifies the model that made the embeddings.
            uri: file that ends in ".db" (Milvus Lite, embedded), or address of a server such as "http://host:19530".
            collection: name; on a server where it is an alias that searches use, build into another one and
                switch the alias.
            token: "user:password" or an API key of the server.
            index_type: of Milvus, "FLAT", "HNSW", "IVF_FLAT" …; default: FLAT, which is exact, in a file, and
                AUTOINDEX, the server's choice, on a server.
            index_params: of that index, for example {"M": 16, "efConstruction": 200}.
            search_params: of searches in it, for example {"ef": 128}.
            overwrite: drop a collection of that name first, if mmfusion made it.
            timeout: seconds that a request may take.
            lexical: columns of the metadata whose words are searched, too, as of [`ProductIndex.build`], by Milvus's
                full-text search.

        Raises:
            ImportError: pymilvus is not installed.
            MilvusError: there is such a collection, or Milvus rejects the request or cannot be reached.
            ValueError: there is no fingerprint; or a column, id or value that Milvus cannot hold, or a kind of index
                that Milvus Lite does not have.
        """
        if not model_fingerprint:
            raise ValueError("model_fingerprint is empty; pass the fingerprint of the model that made the embeddings")
        columns = columns_of(products.schema)
        check_values(products, columns)
        blocks = checked_blocks(embeds, len(products))
        first = next(blocks)
        wanted = CollectionDescription(
            schema_version=SCHEMA_VERSION,
            dimension=first.shape[1],
            model_fingerprint=model_fingerprint,
            index_type=kind_of_index(os.fspath(uri), index_type),
            search_params=dict(search_params or {}),
            products_schema=base64.b64encode(products.schema.remove_metadata().serialize().to_pybytes()).decode(),
            created_by=created_by(),
            lexical=lexical_columns(lexical, products.schema),
        )
        connection = Connection(uri, collection, token, timeout)
        try:
            every = itertools.chain([first], blocks)
            return cls(connection, upload(connection, every, products, columns, wanted, index_params or {}, overwrite))
        except BaseException:
            connection.close()
            raise

    @classmethod
    def connect(
        cls,
        uri: str | os.PathLike[str],
        collection: str = "products",
        *,
        token: str | None = None,
        timeout: float = TIMEOUT,
    ) -> "MilvusIndex":
        """An index that is there; arguments as of `upload`.

        Raises:
            ImportError: pymilvus is not installed.
            FileNotFoundError: there is no such file.
            MilvusError: there is no such collection, its upload was cut off, or Milvus cannot be reached.
        """
        if is_file(os.fspath(uri)) and not os.path.exists(uri):
            raise FileNotFoundError(f"{os.fspath(uri)} is not there; build it with mmfusion index --milvus_uri")
        connection = Connection(uri, collection, token, timeout)
        try:
            description = find_description(connection)
            if description is None:
                raise MilvusError(f"there is no {connection.place}; build it with mmfusion index --milvus_uri")
            if not description.complete:
                raise MilvusError(
                    f"the upload to the {connection.place} was cut off, so that products are missing; run it again "
                    "with the same arguments to continue"
                )
            connection.ask("load_collection")
            return cls(connection, description)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Closes the connection, and with the last one the embedded file."""
        self._connection.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return count_products(self._connection)

    def search(
        self,
        query_embeds: Any,
        k: int,
        *,
        filter: Filter | None = None,
        ranking: Ranking = PLAIN,
        texts: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """As [`SearchIndex.search`]; k is at most 16,384.

        By words, the score is BM25 as Milvus computes it. Boosts, a weight of vectors, and a lowest score in the other
        modes need an index with FAISS.

        Raises:
            ValueError: as of [`SearchIndex.search`], or k is more than Milvus finds.
            RankingError: as of [`SearchIndex.search`], or the ranking needs an index with FAISS.
            MilvusError: Milvus rejects the request or cannot be reached.
        """
        self._check(ranking)
        queries = None if ranking.mode == "words" else self._checked(query_embeds)
        if k < 1:
            raise ValueError(f"k={k}: ask for at least one hit")
        # Milvus takes no numbers of NumPy.
        wanted = int(k if k <= MAX_HITS else min(k, len(self)))
        if wanted > MAX_HITS:
            raise ValueError(f"k={k}: Milvus finds at most {MAX_HITS:,} hits for a query; ask for fewer")
        expression: str | None = ""
        if filter is not None:
            known = "metadata" in self._nothing.column_names
            metadata = self._nothing.column("metadata").combine_chunks() if known else None
            expression = milvus_expression(filter, self._columns, metadata)
        count = len(texts or ()) if queries is None else len(queries)
        if expression is None or wanted == 0:
            return [[] for _ in range(count)]
        if queries is not None and ranking.is_plain:
            return [ranked(found) for found in self._found(list(queries), wanted, expression)]
        asked = zip([None] * count if queries is None else queries, texts or [""] * count, strict=True)
        return [self._ranked(query, text, wanted, expression, ranking) for query, text in asked]

    def _check(self, ranking: Ranking) -> None:
        if ranking.mode != "vectors" and not self.description.lexical:
            raise RankingError(
                f"the {self.place} has no index of words, which modes 'words' and 'hybrid' need; build it again with "
                "mmfusion index --lexical true, or lexical=True in Python."
            )
        known = {column.name: column.type for column in self._columns if column.struct == "metadata"}
        if ranking.group_by is not None:
            if ranking.group_by not in known:
                raise RankingError(
                    f"group_by names the column {ranking.group_by!r}; this index has {', '.join(known)}."
                )
            check_groups(known[ranking.group_by], ranking.group_by)
        by_words = ranking.min_score is not None and ranking.mode != "vectors"
        beyond = {
            "boosts": bool(ranking.boosts),
            "weight": ranking.weight is not None,
            "min_score": ranking.min_score == CALIBRATED or by_words,
        }
        for name in [name for name, asked in beyond.items() if asked]:
            raise RankingError(
                f"{name} {getattr(ranking, name)!r} with mode {ranking.mode!r} needs an index with FAISS; leave it out."
            )

    def _found(self, data: list[Any], limit: int, expression: str, field: str = VECTOR_FIELD) -> list[Scored]:
        """The best products of each query: scores with rows of the table of products."""
        by_vectors = {"metric_type": "IP", "params": self.description.search_params}
        found: list[Any] = []
        step = max(1, _HITS_PER_REQUEST // limit)
        for start in range(0, len(data), step):
            found += self._connection.ask(
                "search",
                data=data[start : start + step],
                anns_field=field,
                limit=limit,
                filter=expression,
                output_fields=self._fields,
                search_params=by_vectors if field == VECTOR_FIELD else {"metric_type": "BM25"},
            )
        products = iter(self._products([{**row["entity"], ID_FIELD: row[ID_FIELD]} for rows in found for row in rows]))
        # Milvus Lite gives BM25, which is never negative, as a distance: with a minus.
        scores = [[float(row["distance"]) for row in rows] for rows in found]
        scores = scores if field == VECTOR_FIELD else [[abs(score) for score in one] for one in scores]
        return [[(score, next(products)) for score in one] for one in scores]

    def _ranked(self, query: Any, text: str, k: int, expression: str, ranking: Ranking) -> list[Hit]:
        """Hits of one query; lists grow until there are k groups."""
        words = spelled(query_words(text))
        depth = min(MAX_HITS, max(FUSED_DEPTH if ranking.mode == "hybrid" else FIRST_DEPTH, k))
        lowest = -math.inf if ranking.min_score is None else float(ranking.min_score)
        while True:
            lists = [] if query is None else self._found([query], depth, expression)
            if ranking.mode != "vectors":
                lists += self._found([words], depth, expression, BM25_FIELD) if words else [[]]
            lists = [sorted(found, key=_in_order, reverse=True) for found in lists]
            best = _fused(lists) if len(lists) == 2 else lists[0]
            best = _one_of_each([one for one in best if one[0] >= lowest], ranking.group_by)
            if len(best) >= k or depth == MAX_HITS or all(len(one) < depth or one[-1][0] < lowest for one in lists):
                return ranked(best[:k])
            depth = min(MAX_HITS, 4 * depth)

    def facts(self) -> dict[str, Any]:
        """As [`SearchIndex.facts`]."""
        described = self.description
        facts = {"kind": described.index_type, "dimension": described.dimension, "lexical": list(described.lexical)}
        return {"engine": "milvus", **facts}

    def product(self, product_id: str) -> StoredProduct:
        """As [`SearchIndex.product`].

        Raises:
            KeyError: there is no such product.
            MilvusError: Milvus rejects the request or cannot be reached.
        """
        fields = [ID_FIELD, VECTOR_FIELD, *self._fields]
        found = self._connection.ask("query", filter=among(ID_FIELD, [product_id]), output_fields=fields)
        if not found:
            raise KeyError(f"product {product_id!r} is not in the index")
        (fields_of_it,) = self._products(found)
        return StoredProduct(vector=np.asarray(found[0][VECTOR_FIELD], np.float32), **fields_of_it)

    def update(
        self,
        embeds: Any,
        product_ids: Ids,
        *,
        model_fingerprint: str,
        metadata: pa.Table | None = None,
        modality_weights: np.ndarray | None = None,
    ) -> None:
        """Adds products, or replaces those that have the same ids; arguments as of `build`.

        Products come in requests of a few hundred; if one of them fails, those before it are there.

        Raises:
            ValueError: as of `build`; or embeddings of another model or dimension, or other columns than the index has.
            MilvusError: Milvus rejects the request or cannot be reached.
        """
        vectors, table = self._checked_products(embeds, product_ids, model_fingerprint, metadata, modality_weights)
        table = like(table, self._nothing)
        check_values(table, self._columns)
        upsert(self._connection, vectors, table, self._columns, self.description.lexical)

    def delete(self, product_ids: Ids) -> None:
        """Removes products.

        Raises:
            ValueError: the index has no such product, or an id is not a string; none is removed then.
            MilvusError: Milvus rejects the request or cannot be reached.
        """
        ids = ids_column(product_ids).to_pylist()
        groups = [among(ID_FIELD, ids[start : start + BATCH_ROWS]) for start in range(0, len(ids), BATCH_ROWS)]
        found = (self._connection.ask("query", filter=one, output_fields=[ID_FIELD]) for one in groups)
        there = {row[ID_FIELD] for rows in found for row in rows}
        missing = next((name for name in ids if name not in there), None)
        if missing is not None:
            raise ValueError(f"product {missing!r} is not in the index; nothing was deleted")
        for group in groups:
            self._connection.change("delete", filter=group)

    def _products(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of Milvus as rows of the table of products."""
        products: list[dict[str, Any]] = [{ID_FIELD: row[ID_FIELD]} for row in rows]
        for column in self._columns:
            values = column.restored([None if column.field is None else row.get(column.field) for row in rows])
            for product, value in zip(products, values, strict=True):
                product.setdefault(column.struct, {})[column.name] = value
        return products


def _in_order(found: tuple[float, dict[str, Any]]) -> tuple[float, str]:
    return found[0], found[1][ID_FIELD]


def _fused(lists: Sequence[Scored]) -> Scored:
    """Two lists, best first, by reciprocal rank, see [`Ranking`]."""
    products = {product[ID_FIELD]: product for found in lists for _, product in found}
    scores: dict[str, float] = defaultdict(float)
    for found in lists:
        for place, (_, product) in enumerate(found):
            scores[product[ID_FIELD]] += (RRF_K + 1) / 2 / (RRF_K + 1 + place)
    return sorted(((score, products[name]) for name, score in scores.items()), key=_in_order, reverse=True)


def _one_of_each(found: Scored, group_by: str | None) -> Scored:
    """The first of each value of a column; a product without one is a group of its own."""
    groups: dict[Any, tuple[float, dict[str, Any]]] = {}
    for score, product in found:
        value = None if group_by is None else product["metadata"][group_by]
        missing = is_missing(value) or (isinstance(value, str) and not value.strip())
        groups.setdefault(("id", product[ID_FIELD]) if missing else ("value", value), (score, product))
    return [*groups.values()]
