"""An index of product embeddings in Milvus, which searches and changes as a [`ProductIndex`] does."""

import base64
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa

from mmfusion.retrieval.filters import Filter
from mmfusion.retrieval.milvus.columns import (
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
    upload,
    upsert,
)
from mmfusion.retrieval.products import Ids, ids_column, like, products_table
from mmfusion.retrieval.ranking import PLAIN, Ranking, RankingError
from mmfusion.retrieval.search import Hit, SearchIndex, StoredProduct, ranked
from mmfusion.retrieval.vectors import checked_blocks, created_by

# What Milvus finds for one query at most, and how many hits are asked for in one request: servers take no more queries
# than that in one, and send no more than 100 MB back.
MAX_HITS = 16_384
_HITS_PER_REQUEST = 16_384
TIMEOUT = 60.0


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

        Raises:
            ValueError: as of [`SearchIndex.search`], or k is more than Milvus finds.
            MilvusError: Milvus rejects the request or cannot be reached.
        """
        if not ranking.is_plain:
            raise RankingError(
                "an index in Milvus ranks by vectors alone; leave out mode, group_by, boosts and min_score."
            )
        queries = self._checked(query_embeds)
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
        if expression is None or wanted == 0:
            return [[] for _ in queries]
        found: list[Any] = []
        step = max(1, _HITS_PER_REQUEST // wanted)
        for start in range(0, len(queries), step):
            found += self._connection.ask(
                "search",
                data=list(queries[start : start + step]),
                anns_field=VECTOR_FIELD,
                limit=wanted,
                filter=expression,
                output_fields=self._fields,
                search_params={"metric_type": "IP", "params": self.description.search_params},
            )
        products = iter(self._products([{**row["entity"], ID_FIELD: row[ID_FIELD]} for rows in found for row in rows]))
        return [ranked([(float(row["distance"]), next(products)) for row in rows]) for rows in found]

    def facts(self) -> dict[str, Any]:
        """As [`SearchIndex.facts`]."""
        return {"engine": "milvus", "kind": self.description.index_type, "dimension": self.description.dimension}

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
        upsert(self._connection, vectors, table, self._columns)

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
