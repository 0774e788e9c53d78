"""A searchable index of product embeddings that knows its products and its model."""

import operator
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mmfusion.files import whole_folder
from mmfusion.retrieval.compact import live_blocks, live_products, merge
from mmfusion.retrieval.filters import Filter, filter_rows
from mmfusion.retrieval.hits import Hit, StoredProduct, ranked
from mmfusion.retrieval.index_files import (
    FILES,
    SCHEMA_VERSION,
    SEGMENTS,
    IndexDescription,
    Origin,
    created_by,
    read_files,
    write_files,
)
from mmfusion.retrieval.milvus import MilvusIndex
from mmfusion.retrieval.products import Ids, ids_column, like, products_table
from mmfusion.retrieval.recall import ExactNeighbours
from mmfusion.retrieval.segment import IntArray, Segment, holds_exact_vectors
from mmfusion.retrieval.table_rows import read_rows
from mmfusion.retrieval.vectors import as_float32, build_faiss, set_search_parameters, spread_rows

TRAIN_SIZE = 262_144


class ProductIndex:
    """Product embeddings with their ids, modality weights and metadata. Make one with `build` or `load`.

    The base that was built never changes. What `update` adds goes to a small exact index beside it, and what `delete`
    takes away is passed over in each search, until `compact` makes a new base of both. Searches may run in several
    threads, also while another one updates: each sees the index before a change or after it.
    """

    def __init__(
        self, segments: tuple[Segment, ...], description: IndexDescription, *, origin: Origin | None = None
    ) -> None:
        # Both in one attribute, which is replaced at once, so that no reader sees half a change.
        self._state = segments, description
        self._origin = origin
        self._changing = threading.Lock()

    @property
    def description(self) -> IndexDescription:
        return self._state[1]

    @property
    def _segments(self) -> tuple[Segment, ...]:
        return self._state[0]

    def __len__(self) -> int:
        return self.description.count

    @property
    def product_ids(self) -> list[str]:
        """Ids of all products that can be found: those of the base in its order, then those that were added."""
        return [name for one in self._segments for name in _names(one.products.filter(pa.array(one.live)))]

    @classmethod
    def build(
        cls,
        embeds: Any | Iterable[Any],
        product_ids: Ids,
        *,
        model_fingerprint: str,
        metadata: pa.Table | None = None,
        modality_weights: np.ndarray | None = None,
        factory: str = "Flat",
        search_parameters: str = "",
        train_size: int = TRAIN_SIZE,
        sample: Any | None = None,
    ) -> "ProductIndex":
        """Index product embeddings for search by inner product.

        Args:
            embeds: float [N, D] (numpy, memory-mapped or tensor), or an iterable of blocks [n, D] of N rows in all.
            product_ids: N different strings of any characters; an Arrow array spares memory.
            model_fingerprint: identifies the model that made the embeddings.
            metadata: N rows, any columns (title …); returned with each hit, and what filters look at.
            modality_weights: float [N, 2], shares of text and image; returned with each hit.
            factory: FAISS factory string: "Flat" is exact, "HNSW32" fast, "IVF256,PQ32" small; see [`choose_index`].
                With "Refine(SQ8)" or "RFlat" behind a comma, candidates are scored again with vectors on disk.
            search_parameters: FAISS run-time parameters, for example "nprobe=16" (an IVF index looks into a single
                cluster otherwise), "efSearch=64", or "nprobe=16,k_factor_rf=4" (with rescoring, 4 k candidates).
            train_size: vectors that an index in need of training is trained on at most, where there is no sample:
                spread evenly over an array, the first ones of an iterable (often of a single category).
            sample: float [M, D], vectors of all kinds of products, to train on and to measure recall with.

        Raises:
            ValueError: numbers of rows differ, an id or a name of a column comes twice, an embedding or weight is NaN
                or infinite, FAISS cannot make such an index, or there are too few vectors to train it.
        """
        if not model_fingerprint:
            raise ValueError("model_fingerprint is empty; pass the fingerprint of the model that made the embeddings")
        products = products_table(product_ids, metadata, modality_weights)
        shape: tuple[int, ...] = getattr(embeds, "shape", ())
        if sample is not None:
            sample = as_float32(sample, what="the sample")
        elif factory != "Flat" and len(shape) == 2 and shape[0]:
            sample = spread_rows(embeds, train_size)
        exact = ExactNeighbours(sample)
        # Exact search would only find that an exact index is exact.
        watch = iter if factory == "Flat" else exact.watch
        index = build_faiss(embeds, factory, train_size, watch, sample, search_parameters)
        if index.ntotal != len(products):
            raise ValueError(f"{index.ntotal} product embeddings for {len(products)} product ids; pass one each")
        description = IndexDescription(
            schema_version=SCHEMA_VERSION,
            dimension=index.d,
            count=len(products),
            factory=factory,
            metric="inner_product",
            model_fingerprint=model_fingerprint,
            search_parameters=search_parameters,
            recall_at_100=1.0 if factory == "Flat" else exact.recall(index),
            rows=(len(products),),
            created_by=created_by(),
        )
        return cls((Segment(index, products, np.ones(len(products), dtype=bool)),), description)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `index.faiss`, `products.arrow` and `index.json` into a folder, as a whole or not at all.

        The files are written into a hidden folder beside it, which then takes its place. Of an index that was loaded,
        files that have not changed get a second name where the file system can do that.

        Args:
            folder: new or empty; with `overwrite` also one that holds an index.
            overwrite: replace an index that is there.

        Returns:
            The folder.

        Raises:
            FileExistsError: the folder holds an index and `overwrite` is off, or holds anything else.
        """
        folder = Path(folder).absolute()
        segments, description = self._state
        with whole_folder(folder, files=FILES, overwrite=overwrite) as new:
            write_files(new, segments, description, self._origin)
        return folder

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        model_fingerprint: str | None = None,
        memory_map: bool = True,
        verify: bool = False,
    ) -> "ProductIndex":
        """Read what `save` wrote, and compare it with its checksums.

        Args:
            folder: the folder.
            model_fingerprint: the model whose queries will be searched; None leaves the check to `search`.
            memory_map: leave vectors on disk until they are needed, where FAISS can. Of files above 64 MiB, only the
                size and the first and last 64 KiB are compared then.
            verify: compare all bytes even so, which reads the index once. An index that was saved before there were
                checksums has nothing to compare.

        Raises:
            FileNotFoundError: a file of the index is missing.
            ValueError: a file is damaged (the message names it), of a later layout or of another index, or the
                fingerprint differs.
        """
        segments, description, origin = read_files(Path(folder).absolute(), memory_map, verify)
        if description.search_parameters:
            set_search_parameters(segments[0].index, description.search_parameters)
        loaded = cls(segments, description, origin=origin)
        if model_fingerprint is not None:
            loaded.check_model(model_fingerprint)
        return loaded

    def check_model(self, model_fingerprint: str) -> None:
        """Refuse queries of another model, whose scores would be noise.

        Raises:
            ValueError: the fingerprint is not the index's.
        """
        if model_fingerprint != self.description.model_fingerprint:
            raise ValueError(
                f"the index was built with model {self.description.model_fingerprint!r} but the queries come from "
                f"model {model_fingerprint!r}; load the index's model or build the index again with this one"
            )

    def search(
        self, query_embeds: Any, k: int, *, filter: Filter | None = None, model_fingerprint: str | None = None
    ) -> list[list[Hit]]:
        """Find the k products with the largest inner product for each query.

        Equal scores are ordered as in evaluation, by product id descending; which of several equal products gets the
        last place is FAISS's choice.

        Args:
            query_embeds: float [Q, D], numpy or tensor.
            k: hits wanted, at least 1; more than there are products gives all products.
            filter: conditions on metadata that hits fulfil, for example `[("price", "<", 50)]`, see [`filter_rows`].
            model_fingerprint: the model that made the query embeddings; None skips the check.

        Returns:
            For each query its hits, best first: k, or as many as there are (that the filter lets through).

        Raises:
            ValueError: k is below 1, or the embeddings have another dimension, a NaN, or come from another model; or
                the filter names what is not there.
        """
        if model_fingerprint is not None:
            self.check_model(model_fingerprint)
        segments = self._segments
        scores, rows = self._search(segments, query_embeds, k, filter)
        products = _products(segments, rows)
        return [
            ranked((float(score), product) for score, row, product in zip(*one, strict=True) if row >= 0)
            for one in zip(scores, rows, products, strict=True)
        ]

    def search_rows(self, query_embeds: Any, k: int) -> tuple[npt.NDArray[np.float32], IntArray]:
        """Find products as `search` does, but by their place in the index: for many queries and many hits.

        Args:
            query_embeds: float [Q, D], numpy or tensor.
            k: hits wanted, at least 1.

        Returns:
            Scores float32 and places int64, both [Q, min(k, N)], best first in FAISS's order; place -1 where an index
            that is not exact found no more. Places count deleted products and go on through those that were added.

        Raises:
            ValueError: k is below 1, or the embeddings have another dimension or a NaN.
        """
        return self._search(self._segments, query_embeds, k, None)

    def _search(
        self, segments: tuple[Segment, ...], query_embeds: Any, k: int, filter: Filter | None
    ) -> tuple[npt.NDArray[np.float32], IntArray]:
        k = operator.index(k)
        if k < 1:
            raise ValueError(f"k={k}: ask for at least one hit")
        queries = as_float32(query_embeds, what="query embeddings")
        if queries.shape[1] != self.description.dimension:
            raise ValueError(
                f"query embeddings have dimension {queries.shape[1]} but the index {self.description.dimension}; embed "
                f"queries with the model that built the index ({self.description.model_fingerprint!r})"
            )
        k = min(k, sum(one.num_live for one in segments))
        if k == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        found, first = [], 0
        for one in segments:
            allowed = None if filter is None else filter_rows(_metadata(one), filter)
            scores, rows = one.search(queries, k, allowed)
            found.append((scores, np.where(rows < 0, -1, rows + first)))
            first += len(one)
        if len(found) == 1:
            return found[0]
        scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)

    def facts(self) -> dict[str, Any]:
        """What a service tells of the index: engine, kind, dimension and recall."""
        described = self.description
        return {
            "engine": "faiss",
            "kind": described.factory,
            "dimension": described.dimension,
            "recall_at_100": described.recall_at_100,
        }

    def product(self, product_id: str) -> StoredProduct:
        """What the index holds of a product; the first call sorts the ids, unless `prepare_ids` did.

        Raises:
            KeyError: there is no such product.
        """
        for one in self._segments:
            row = one.ids.row_of(product_id)
            if row is not None and one.live[row]:
                vector = one.vectors(np.array([row], np.int64))[0]
                (fields,) = read_rows(one.products, np.array([row]))
                return StoredProduct(product_id, vector, fields.get("modality_weights", {}), fields.get("metadata", {}))
        raise KeyError(f"product {product_id!r} is not in the index")

    def prepare_ids(self) -> None:
        """Sorts the ids, which takes seconds for ten million, so that no later `product` has to."""
        for one in self._segments:
            one.ids.prepare()

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

        Raises:
            ValueError: as of `build`; or embeddings of another model or dimension, or other columns than the index has.
        """
        self.check_model(model_fingerprint)
        vectors = as_float32(embeds, what="product embeddings")
        if vectors.shape[1] != self.description.dimension:
            raise ValueError(
                f"product embeddings have dimension {vectors.shape[1]} but the index {self.description.dimension}; "
                "embed products as those of the index were"
            )
        table = products_table(product_ids, metadata, modality_weights)
        if len(table) != len(vectors):
            raise ValueError(f"{len(vectors)} product embeddings for {len(table)} product ids; pass one each")
        if not len(table):
            return
        with self._changing:
            base, *rest = self._without(table.column("product_id"))
            table = like(table, base.products)
            # The small one is made anew, as searches may be going on in the one that is there.
            kept = [one.vectors(np.flatnonzero(one.live)) for one in rest]
            known = [one.products.filter(pa.array(one.live)) for one in rest]
            products = pa.concat_tables([*known, table]).combine_chunks()
            index = build_faiss(np.concatenate([*kept, vectors]), "Flat", 0)
            self._replace((base, Segment(index, products, np.ones(len(products), dtype=bool))))

    def delete(self, product_ids: Ids) -> None:
        """Take products away.

        Raises:
            ValueError: the index has no such product; none is taken away then.
        """
        ids = ids_column(product_ids)
        with self._changing:
            there = np.logical_or.reduce([one.rows_of(ids) >= 0 for one in self._segments])
            if not there.all():
                raise ValueError(
                    f"product {ids[int(there.argmin())].as_py()!r} is not in the index; nothing was deleted"
                )
            self._replace(tuple(self._without(ids)))

    def compact(self, *, train_size: int = TRAIN_SIZE) -> "ProductIndex":
        """A new index whose base holds what this one finds; see [`merge`].

        The recall that was measured stays beside it, as clusters and codes do; build anew when much has changed.

        Raises:
            ValueError: a file that this index was loaded from is damaged.
        """
        self._verify_base()
        segments, description = self._state
        base = merge(segments, description.factory, train_size)
        if description.search_parameters:
            set_search_parameters(base.index, description.search_parameters)
        return ProductIndex((base,), replace(description, count=len(base), rows=(len(base),)))

    def to(
        self,
        engine: Literal["milvus"],
        *,
        uri: str | os.PathLike[str],
        collection: str = "products",
        token: str | None = None,
        index_type: str | None = None,
        index_params: Mapping[str, Any] | None = None,
        search_params: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> MilvusIndex:
        """Upload the products that can be found into another engine; arguments as of [`MilvusIndex.build`].

        Raises:
            ValueError: the engine is another one, the vectors of this index are compressed, or a file that it was
                loaded from is damaged; or as of [`MilvusIndex.build`].
        """
        if engine != "milvus":
            raise ValueError(f"the engine is {engine!r}; 'milvus' is the one that there is")
        segments, description = self._state
        if not all(holds_exact_vectors(one.index) for one in segments):
            raise ValueError(
                f"an index {description.factory!r} holds compressed vectors; upload the embeddings themselves with "
                "MilvusIndex.build or index.py --milvus_uri"
            )
        self._verify_base()
        products = live_products(segments)
        names = products.column_names
        weights = (
            products.column("modality_weights").combine_chunks().flatten() if "modality_weights" in names else None
        )
        return MilvusIndex.build(
            (block for one in segments for block in live_blocks(one)),
            _names(products),
            model_fingerprint=description.model_fingerprint,
            uri=uri,
            collection=collection,
            token=token,
            metadata=_unpacked(products.column("metadata")) if "metadata" in names else None,
            modality_weights=None if weights is None else np.stack(weights, axis=1),
            index_type=index_type,
            index_params=index_params,
            search_params=search_params,
            overwrite=overwrite,
        )

    def _verify_base(self) -> None:
        # What is read whole and written anew would get checksums that a damaged byte agrees with.
        if self._origin is not None:
            self._origin.verify()

    def _without(self, ids: pa.Array | pa.ChunkedArray) -> list[Segment]:
        parted = []
        for one in self._segments:
            rows = one.rows_of(ids)
            parted.append(one.without(rows[rows >= 0]))
        return parted

    def _replace(self, segments: tuple[Segment, ...]) -> None:
        segments = segments[: len(SEGMENTS)] if len(segments[-1]) else segments[:1]
        count, rows = sum(one.num_live for one in segments), tuple(map(len, segments))
        self._state = segments, replace(self.description, count=count, rows=rows)


def _metadata(segment: Segment) -> Any:
    columns = segment.products.column_names
    return segment.products.column("metadata") if "metadata" in columns else None


def _unpacked(column: pa.ChunkedArray) -> pa.Table:
    return pa.Table.from_struct_array(column)


def _names(products: pa.Table) -> list[str]:
    names: list[str] = products.column("product_id").to_pylist()
    return names


def _products(segments: tuple[Segment, ...], rows: IntArray) -> list[list[dict[str, Any]]]:
    """Rows (Q, k) of all segments as dictionaries, an empty one where a row is -1."""
    found: list[dict[str, Any]] = [{} for _ in range(rows.size)]
    flat, first = rows.reshape(-1), 0
    for one in segments:
        places = np.flatnonzero((flat >= first) & (flat < first + len(one)))
        for place, product in zip(places, read_rows(one.products, flat[places] - first), strict=True):
            found[place] = product
        first += len(one)
    width = rows.shape[1]
    return [found[start : start + width] for start in range(0, rows.size, width)] if width else [[] for _ in rows]
