"""An index of product embeddings in Milvus, which searches, changes and refuses as a [`ProductIndex`] does."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from mmfusion.retrieval.filters import Filter
from mmfusion.retrieval.hits import Hit, StoredProduct
from mmfusion.retrieval.index_files import created_by
from mmfusion.retrieval.milvus.collection import find_description, kind_of_index, prepare_collection
from mmfusion.retrieval.milvus.columns import ID_FIELD, VECTOR_FIELD, Column, check_values, columns_of
from mmfusion.retrieval.milvus.connection import Connection, MilvusError, is_file
from mmfusion.retrieval.milvus.description import (
    SCHEMA_VERSION,
    CollectionDescription,
    encoded_schema,
)
from mmfusion.retrieval.milvus.expression import among_ids, milvus_expression
from mmfusion.retrieval.milvus.upload import BATCH_ROWS, digest_of, part_rows_of, upload, upsert
from mmfusion.retrieval.products import Ids, ids_column, like, products_table
from mmfusion.retrieval.vectors import as_float32, checked_blocks

# What Milvus finds for one query at most, and how many hits are asked for in one request: servers take no more queries
# than that in one, and send no more than 100 MB back.
MAX_HITS = 16_384
_HITS_PER_REQUEST = 16_384
TIMEOUT = 60.0
# For the index of all products to be built.
_LOAD_TIMEOUT = 3600.0


class MilvusIndex:
    """Product embeddings with their ids, modality weights and metadata in a collection of Milvus.

    Make one with `build` or [`ProductIndex.to`], or `connect` to one that is there. Close it, or use it in a `with`
    statement: a file of Milvus Lite is open in one process at a time. Searches may run in several threads.
    """

    def __init__(self, connection: Connection, description: CollectionDescription) -> None:
        self._connection = connection
        self.description = description
        self._columns: tuple[Column, ...] = columns_of(pa.schema(list(description.schema)[1:]))
        self._nothing = description.schema.empty_table()

    @classmethod
    def build(
        cls,
        embeds: Any | Iterable[Any],
        product_ids: Ids,
        *,
        model_fingerprint: str,
        uri: str | os.PathLike[str],
        collection: str = "products",
        token: str | None = None,
        metadata: pa.Table | None = None,
        modality_weights: np.ndarray | None = None,
        index_type: str | None = None,
        index_params: Mapping[str, Any] | None = None,
        search_params: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        timeout: float = TIMEOUT,
    ) -> "MilvusIndex":
        """Upload product embeddings into a new collection for search by inner product.

        An upload that is cut off leaves a collection that `connect` refuses; with the same arguments it goes on.

        Args:
            embeds: float [N, D] (numpy, memory-mapped or tensor), or an iterable of blocks [n, D] of N rows in all.
            product_ids: N different strings of any characters, of at most 65,535 bytes.
            model_fingerprint: identifies the model that made the embeddings.
            uri: file that ends in ".db" (Milvus Lite, embedded), or address of a server such as "http://host:19530".
            collection: name; on a server where it is an alias that searches use, build into another one and
                switch the alias.
            token: "user:password" or an API key of the server.
            metadata: N rows; numbers, texts, booleans and times become fields of Milvus that filters look at, lists and
                structs of them JSON.
            modality_weights: float [N, 2], shares of text and image; returned with each hit.
            index_type: of Milvus, "FLAT", "HNSW", "IVF_FLAT" …; default: FLAT, which is exact, in a file, and
                AUTOINDEX, the server's choice, on a server.
            index_params: of that index, for example {"M": 16, "efConstruction": 200}.
            search_params: of searches in it, for example {"ef": 128}.
            overwrite: drop a collection of that name first, if mmfusion made it.
            timeout: seconds that a request may take.

        Raises:
            ImportError: pymilvus is not installed.
            MilvusError: there is such a collection, or Milvus refuses or cannot be reached.
            ValueError: as of [`ProductIndex.build`]; or a column, id or value that Milvus cannot hold, or a kind of
                index that Milvus Lite does not have.
        """
        if not model_fingerprint:
            raise ValueError("model_fingerprint is empty; pass the fingerprint of the model that made the embeddings")
        table = products_table(product_ids, metadata, modality_weights)
        shape = getattr(embeds, "shape", None)
        if shape and shape[0] != len(table):
            raise ValueError(f"{shape[0]} product embeddings for {len(table)} product ids; pass one each")
        columns = columns_of(pa.schema(list(table.schema)[1:]))
        check_values(table, columns)
        blocks = checked_blocks(embeds)
        first = next(blocks, None)
        if first is None:
            raise ValueError("no product embedding to index; check that the catalogue is not empty")
        kind = kind_of_index(os.fspath(uri), index_type)
        connection = Connection(uri, collection, token, timeout)
        try:
            wanted = CollectionDescription(
                schema_version=SCHEMA_VERSION,
                dimension=first.shape[1],
                model_fingerprint=model_fingerprint,
                index_type=kind,
                search_params=dict(search_params or {}),
                products_schema=encoded_schema(table.schema),
                created_by=created_by(),
                source=digest_of(table),
                part_rows=part_rows_of(len(table)),
            )
            begun = prepare_collection(connection, wanted, columns, index_params or {}, overwrite)
            description = upload(connection, _chained(first, blocks), table, columns, begun)
            return cls(connection, _completed(connection, description, len(table)))
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
        model_fingerprint: str | None = None,
        timeout: float = TIMEOUT,
    ) -> "MilvusIndex":
        """An index that is there; arguments as of `build`.

        Args:
            model_fingerprint: the model whose queries will be searched; None leaves the check to `search`.

        Raises:
            ImportError: pymilvus is not installed.
            FileNotFoundError: there is no such file.
            MilvusError: there is no such collection, its upload was cut off, or Milvus cannot be reached.
            ValueError: the fingerprint differs.
        """
        if is_file(os.fspath(uri)) and not os.path.exists(uri):
            raise FileNotFoundError(f"{os.fspath(uri)} is not there; build an index in it with index.py --milvus_uri")
        connection = Connection(uri, collection, token, timeout)
        try:
            description = find_description(connection)
            if description is None:
                raise MilvusError(f"there is no {connection.place}; build it with index.py --milvus_uri")
            if not description.complete:
                raise MilvusError(
                    f"the upload to the {connection.place} was cut off, so that products are missing; run it again "
                    "with the same arguments, and it goes on"
                )
            connection.ask("load_collection")
            index = cls(connection, description)
            if model_fingerprint is not None:
                index.check_model(model_fingerprint)
            return index
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close the connection, and with the last one the embedded file."""
        self._connection.close()

    def __enter__(self) -> "MilvusIndex":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def place(self) -> str:
        """The collection and where it is, without credentials."""
        return self._connection.place

    def __len__(self) -> int:
        return _count(self._connection)

    def check_model(self, model_fingerprint: str) -> None:
        """Refuse queries of another model, whose scores would be noise.

        Raises:
            ValueError: the fingerprint is not the index's.
        """
        if model_fingerprint != self.description.model_fingerprint:
            raise ValueError(
                f"the {self.place} was built with model {self.description.model_fingerprint!r} but the "
                f"vectors come from model {model_fingerprint!r}; load the index's model or build the index again with "
                "this one"
            )

    def search(
        self, query_embeds: Any, k: int, *, filter: Filter | None = None, model_fingerprint: str | None = None
    ) -> list[list[Hit]]:
        """Find the k products with the largest inner product for each query, as [`ProductIndex.search`] does.

        Args:
            query_embeds: float [Q, D], numpy or tensor.
            k: hits wanted, from 1 to 16,384; more than there are products gives all products.
            filter: conditions on metadata that hits fulfil, for example `[("price", "<", 50)]`, see [`filter_rows`].
            model_fingerprint: the model that made the query embeddings; None skips the check.

        Returns:
            For each query its hits, best first.

        Raises:
            ValueError: as of [`ProductIndex.search`], or k is more than Milvus finds.
            MilvusError: Milvus refuses or cannot be reached.
        """
        if model_fingerprint is not None:
            self.check_model(model_fingerprint)
        queries, k = self._checked(query_embeds, "query embeddings"), self._checked_k(k)
        expression: str | None = ""
        if filter is not None:
            expression = milvus_expression(filter, self._columns, self._metadata)
        if expression is None or k == 0:
            return [[] for _ in queries]
        found: list[Any] = []
        step = max(1, _HITS_PER_REQUEST // k)
        for start in range(0, len(queries), step):
            found += self._connection.ask(
                "search",
                data=list(queries[start : start + step]),
                anns_field=VECTOR_FIELD,
                limit=k,
                filter=expression,
                output_fields=[column.field for column in self._columns if column.field is not None],
                search_params={"metric_type": "IP", "params": self.description.search_params},
            )
        return self._hits(found)

    def facts(self) -> dict[str, Any]:
        """What a service tells of the index: engine, kind and dimension."""
        return {"engine": "milvus", "kind": self.description.index_type, "dimension": self.description.dimension}

    def product(self, product_id: str) -> StoredProduct:
        """What the index holds of a product.

        Raises:
            KeyError: there is no such product.
            MilvusError: Milvus refuses or cannot be reached.
        """
        fields = [column.field for column in self._columns if column.field is not None]
        found = self._connection.ask(
            "query", filter=among_ids(ID_FIELD, [product_id]), output_fields=[VECTOR_FIELD, *fields]
        )
        if not found:
            raise KeyError(f"product {product_id!r} is not in the index")
        vector = np.asarray(found[0][VECTOR_FIELD], np.float32)
        (hits,) = self._hits([[{"distance": 0.0, ID_FIELD: product_id, "entity": found[0]}]])
        return StoredProduct(product_id, vector, hits[0].modality_weights, hits[0].metadata)

    def update(
        self,
        embeds: Any,
        product_ids: Ids,
        *,
        model_fingerprint: str,
        metadata: pa.Table | None = None,
        modality_weights: np.ndarray | None = None,
    ) -> None:
        """Add products, or replace those that have the same ids; arguments as of `build`.

        Products come in requests of a few hundred; if one of them fails, those before it are there.

        Raises:
            ValueError: as of `build`; or embeddings of another model or dimension, or other columns than the index has.
            MilvusError: Milvus refuses or cannot be reached.
        """
        self.check_model(model_fingerprint)
        vectors = self._checked(embeds, "product embeddings")
        table = products_table(product_ids, metadata, modality_weights)
        if len(table) != len(vectors):
            raise ValueError(f"{len(vectors)} product embeddings for {len(table)} product ids; pass one each")
        table = like(table, self._nothing)
        check_values(table, self._columns)
        for start in range(0, len(table), BATCH_ROWS):
            rows = table.slice(start, BATCH_ROWS)
            upsert(self._connection, vectors[start : start + len(rows)], rows, self._columns)

    def delete(self, product_ids: Ids) -> None:
        """Take products away.

        Raises:
            ValueError: the index has no such product, or an id is no string; none is taken away then.
            MilvusError: Milvus refuses or cannot be reached.
        """
        ids = ids_column(product_ids).to_pylist()
        groups = [ids[start : start + BATCH_ROWS] for start in range(0, len(ids), BATCH_ROWS)]
        there = {name for group in groups for name in self._among(group)}
        missing = next((name for name in ids if name not in there), None)
        if missing is not None:
            raise ValueError(f"product {missing!r} is not in the index; nothing was deleted")
        for group in groups:
            self._connection.change("delete", filter=among_ids(ID_FIELD, group))

    def _among(self, ids: list[str]) -> set[str]:
        """Those of the ids that the index has."""
        found = self._connection.ask("query", filter=among_ids(ID_FIELD, ids), output_fields=[ID_FIELD])
        return {row[ID_FIELD] for row in found}

    @property
    def _metadata(self) -> pa.StructArray | None:
        """The metadata of no product, which says what columns there are."""
        known = "metadata" in self._nothing.column_names
        return self._nothing.column("metadata").combine_chunks() if known else None

    def _checked(self, embeds: Any, what: str) -> np.ndarray:
        vectors = as_float32(embeds, what=what)
        if vectors.shape[1] != self.description.dimension:
            raise ValueError(
                f"{what} have dimension {vectors.shape[1]} but the index {self.description.dimension}; embed with the "
                f"model that built the index ({self.description.model_fingerprint!r})"
            )
        return vectors

    def _checked_k(self, k: int) -> int:
        if k < 1:
            raise ValueError(f"k={k}: ask for at least one hit")
        wanted = k if k <= MAX_HITS else min(k, len(self))
        if wanted > MAX_HITS:
            raise ValueError(f"k={k}: Milvus finds at most {MAX_HITS:,} hits for a query; ask for fewer")
        # Milvus takes no numbers of NumPy.
        return int(wanted)

    def _hits(self, found: list[Any]) -> list[list[Hit]]:
        rows = [row for one in found for row in one]
        columns = [
            (
                column,
                column.restored([None if column.field is None else row["entity"].get(column.field) for row in rows]),
            )
            for column in self._columns
        ]
        hits, place = [], 0
        for one in found:
            products = [
                (float(row["distance"]), row[ID_FIELD], _structs(columns, place + offset))
                for offset, row in enumerate(one)
            ]
            place += len(one)
            products.sort(key=lambda product: product[:2], reverse=True)
            hits.append(
                [
                    Hit(name, score, rank, structs.get("modality_weights", {}), structs.get("metadata", {}))
                    for rank, (score, name, structs) in enumerate(products, start=1)
                ]
            )
        return hits


def _structs(columns: list[tuple[Column, list[Any]]], row: int) -> dict[str, dict[str, Any]]:
    structs: dict[str, dict[str, Any]] = {}
    for column, values in columns:
        structs.setdefault(column.struct, {})[column.name] = values[row]
    return structs


def _chained(first: np.ndarray, rest: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    yield first
    yield from rest


def _count(connection: Connection) -> int:
    return int(connection.ask("query", filter="", output_fields=["count(*)"])[0]["count(*)"])


def _completed(connection: Connection, description: CollectionDescription, expected: int) -> CollectionDescription:
    """Says that all products are there, once they are."""
    connection.ask("flush")
    # Of an upload that went on, nobody has loaded it since.
    connection.ask("load_collection", timeout=_LOAD_TIMEOUT)
    count = _count(connection)
    if count != expected:
        raise MilvusError(
            f"the {connection.place} holds {count} products after {expected} were uploaded; see that nothing else "
            "writes to it, and run the upload again with overwrite=True"
        )
    whole = replace(description, complete=True, source="", parts=())
    connection.ask("alter_collection_properties", properties=whole.as_properties())
    return whole
