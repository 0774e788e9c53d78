"""A searchable index of product embeddings that knows its products and its model."""

import operator
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.files import whole_folder
from mmfusion.retrieval.calibration import Calibration
from mmfusion.retrieval.filters import Filter
from mmfusion.retrieval.index_files import (
    FILES,
    SCHEMA_VERSION,
    SEGMENTS,
    IndexDescription,
    Origin,
    read_files,
    write_files,
)
from mmfusion.retrieval.milvus import MilvusIndex
from mmfusion.retrieval.products import Ids, ids_column, lexical_columns, like, products_table, read_rows, words_of
from mmfusion.retrieval.ranking import CALIBRATED, PLAIN, Ranking, RankingError
from mmfusion.retrieval.search import Hit, SearchIndex, StoredProduct, ranked
from mmfusion.retrieval.segment import Segment, merged
from mmfusion.retrieval.snapshot import Chosen, Snapshot
from mmfusion.retrieval.vectors import (
    TRAIN_SIZE,
    FloatArray,
    IntArray,
    RecallMeter,
    as_float32,
    build_faiss,
    created_by,
    set_search_parameters,
    spread_rows,
)


class ProductIndex(SearchIndex):
    """Product embeddings with their ids, modality weights and metadata. Make one with `build` or `load`.

    The base that was built never changes. What `update` adds goes to a small exact index next to it, and searches skip
    what `delete` removed, until `compact` makes a new base of both. Searches may run in several
    threads, also while another one updates: each sees the index before a change or after it.
    """

    def __init__(
        self, segments: tuple[Segment, ...], description: IndexDescription, *, origin: Origin | None = None
    ) -> None:
        # Replaced as a whole, so that no reader sees half a change.
        self._snapshot = Snapshot(segments)
        self._built = description
        self._origin = origin
        self._changing = threading.Lock()

    @property
    def _segments(self) -> tuple[Segment, ...]:
        return self._snapshot.segments

    @property
    def description(self) -> IndexDescription:
        """What `index.json` says of the index as it is now."""
        return self._described(self._segments)

    def __len__(self) -> int:
        return sum(one.num_live for one in self._segments)

    @property
    def product_ids(self) -> list[str]:
        """Ids of all products that can be found: those of the base in its order, then those that were added."""
        return [name for one in self._segments for name in one.live_products().column("product_id").to_pylist()]

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
        lexical: bool | Sequence[str] = False,
    ) -> "ProductIndex":
        """Indexes product embeddings for search by inner product.

        Args:
            embeds: float [N, D] (numpy, memory-mapped or tensor), or an iterable of blocks [n, D] of N rows in all.
            product_ids: N different strings of any characters; an Arrow array spares memory.
            model_fingerprint: identifies the model that made the embeddings.
            metadata: N rows, any columns (title …); returned with each hit, and what filters look at.
            modality_weights: float [N, 2], shares of text and image; returned with each hit.
            factory: FAISS factory string: "Flat" is exact, "HNSW32" fast, "IVF256,PQ32" small; see [`choose_index`].
                With "Refine(SQ8)" or "RFlat" after a comma, candidates are scored again with vectors on disk.
            search_parameters: FAISS run-time parameters, for example "nprobe=16" (an IVF index looks into a single
                cluster otherwise), "efSearch=64", or "nprobe=16,k_factor_rf=4" (with rescoring, 4 k candidates).
            train_size: vectors that an index in need of training is trained on at most, where there is no sample:
                spread evenly over an array, the first ones of an iterable (often of a single category).
            sample: float [M, D], vectors of all kinds of products, to train on and to measure recall with.
            lexical: columns of the metadata whose words are searched, too (see [`Ranking`]); True: title and
                description, as far as there are such.

        Raises:
            ValueError: numbers of rows differ, an id or a name of a column appears twice, an embedding or weight is NaN
                or infinite, FAISS cannot make such an index, or there are too few vectors to train it; or a column
                whose words are to be searched is not there or holds no text.
        """
        if not model_fingerprint:
            raise ValueError("model_fingerprint is empty; pass the fingerprint of the model that made the embeddings")
        products = products_table(product_ids, metadata, modality_weights)
        columns = lexical_columns(lexical, products.schema)
        words = words_of(products, columns)
        shape: tuple[int, ...] = getattr(embeds, "shape", ())
        if sample is not None:
            sample = as_float32(sample, what="the sample")
        elif factory != "Flat" and len(shape) == 2 and shape[0]:
            sample = spread_rows(embeds, train_size)
        # Exact search would only find that an exact index is exact.
        recall = None if factory == "Flat" else RecallMeter(sample)
        index = build_faiss(embeds, len(products), factory, train_size, sample, search_parameters, recall)
        description = IndexDescription(
            schema_version=SCHEMA_VERSION,
            dimension=index.d,
            count=len(products),
            factory=factory,
            metric="inner_product",
            model_fingerprint=model_fingerprint,
            search_parameters=search_parameters,
            recall_at_100=1.0 if recall is None else recall.of(index),
            rows=(len(products),),
            created_by=created_by(),
            lexical=columns,
        )
        return cls((Segment(index, products, words=words),), description)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes `index.faiss`, `products.arrow` and `index.json` into a folder: all of them or none.

        The files are written into a hidden folder next to it, which then takes its place. Of an index that was loaded,
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
        segments = self._segments
        with whole_folder(folder, files=FILES, overwrite=overwrite) as new:
            write_files(new, segments, self._described(segments), self._origin)
        return folder

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        memory_map: bool = True,
        verify: bool = False,
    ) -> "ProductIndex":
        """Reads what `save` wrote, and compares it with its checksums.

        Args:
            folder: the folder.
            memory_map: leave vectors on disk until they are needed, where FAISS can. Of files above 64 MiB, only the
                size and the first and last 64 KiB are compared then.
            verify: compare all bytes even so, which reads the index once. An index that was saved before there were
                checksums has nothing to compare.

        Raises:
            FileNotFoundError: a file of the index is missing.
            ValueError: a file is damaged (the message names it), of a later layout or of another index.
        """
        segments, description, origin = read_files(Path(folder).absolute(), memory_map, verify)
        if description.search_parameters:
            set_search_parameters(segments[0].index, description.search_parameters)
        return cls(segments, description, origin=origin)

    def search(
        self,
        query_embeds: Any,
        k: int,
        *,
        filter: Filter | None = None,
        ranking: Ranking = PLAIN,
        texts: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """As [`SearchIndex.search`].

        Equal scores are ordered as in evaluation, by product id descending; which of several equal products gets the
        last place is FAISS's choice.

        Reciprocal rank fusion takes the best 1,000 products of each list (or k, and more where groups or the lowest
        score leave fewer than k). Everything else is what ranking all products would give, as far as the index is
        exact; but boosts look at no more than the best 10,000 products by score, unless k is larger.
        """
        snapshot, k = self._snapshot, _checked_k(k)
        if ranking.is_plain:
            scores, rows = snapshot.nearest(self._checked(query_embeds), k, snapshot.allowed(filter))
            found = rows >= 0
            products = iter(read_rows(snapshot.products, rows[found]))
            return [
                ranked([(float(score), next(products)) for score in one[there]])
                for one, there in zip(scores, found, strict=True)
            ]
        hits = []
        for rows, scores, made_of in self._ranked(snapshot, query_embeds, k, filter, ranking, texts):
            fields = zip(read_rows(snapshot.products, rows), scores.tolist(), made_of, strict=True)
            hits.append(
                [
                    Hit(row["product_id"], score, rank, row.get("modality_weights", {}), row.get("metadata", {}), parts)
                    for rank, (row, score, parts) in enumerate(fields, start=1)
                ]
            )
        return hits

    def search_rows(
        self, query_embeds: Any, k: int, *, ranking: Ranking = PLAIN, texts: Sequence[str] | None = None
    ) -> tuple[FloatArray, IntArray]:
        """Finds products as `search` does, but by their place in the index: for many queries and many hits.

        Args:
            query_embeds: float [Q, D], numpy or tensor; None where words alone count.
            k: hits wanted, at least 1.
            ranking: what to rank by.
            texts: the queries, where their words count.

        Returns:
            Scores float32 and places int64, both [Q, min(k, N)], best first, equal scores in FAISS's order (with a
            ranking, by id); score -inf and place -1 where no more was found. Places count deleted products and continue
            through those that were added.

        Raises:
            ValueError: as of `search`.
        """
        snapshot, k = self._snapshot, _checked_k(k)
        if ranking.is_plain:
            return snapshot.nearest(self._checked(query_embeds), k, None)
        chosen = self._ranked(snapshot, query_embeds, k, None, ranking, texts)
        shape = len(chosen), min(k, len(snapshot.products))
        scores, places = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
        for number, (rows, found, _) in enumerate(chosen):
            scores[number, : len(rows)], places[number, : len(rows)] = found, rows
        return scores, places

    def _ranked(
        self,
        snapshot: Snapshot,
        query_embeds: Any,
        k: int,
        filter: Filter | None,
        ranking: Ranking,
        texts: Sequence[str] | None,
    ) -> list[Chosen]:
        if ranking.min_score == CALIBRATED:
            ranking = replace(ranking, min_score=self._calibrated())
        queries = None if ranking.mode == "words" else self._checked(query_embeds)
        count = len(texts or ()) if queries is None else len(queries)
        texts = [""] * count if texts is None and ranking.mode == "vectors" else list(texts or ())
        if len(texts) != count:
            raise RankingError(f"mode {ranking.mode!r} got {len(texts)} texts for {count} queries; pass one each.")
        snapshot.check(ranking)
        return snapshot.ranked(queries, texts, k, snapshot.allowed(filter), ranking)

    def facts(self) -> dict[str, Any]:
        """As [`SearchIndex.facts`]."""
        built = self._built
        facts = {"kind": built.factory, "dimension": built.dimension, "recall_at_100": built.recall_at_100}
        return {"engine": "faiss", **facts, "lexical": list(built.lexical), "calibration": built.calibration}

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

    def metadata_types(self) -> dict[str, pa.DataType]:
        """As [`SearchIndex.metadata_types`]."""
        metadata = self._segments[0].metadata
        return {} if metadata is None else {field.name: field.type for field in metadata.type}

    def metadata_column(self, name: str) -> pa.ChunkedArray:
        """As [`SearchIndex.metadata_column`]."""
        place = [*self.metadata_types()].index(name)
        parts = [(pc.struct_field(one.metadata, [place]), one) for one in self._segments]
        live = [part if one.num_live == len(one) else part.filter(pa.array(one.live)) for part, one in parts]
        return pa.chunked_array([chunk for part in live for chunk in part.chunks], live[0].type)

    def prepare_ids(self) -> None:
        """Sorts the ids, which takes seconds for ten million, so that no later `product` has to."""
        for one in self._segments:
            one.ids.row_of("")

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

        Raises:
            ValueError: as of `build`; or embeddings of another model or dimension, or other columns than the index has.
        """
        vectors, table = self._checked_products(embeds, product_ids, model_fingerprint, metadata, modality_weights)
        if not len(table):
            return
        with self._changing:
            base, *rest = self._without(table.column("product_id"))
            # A new small index, as searches may be running in the present one.
            kept = [block for one in rest for block in one.live_blocks()]
            products = pa.concat_tables([*(one.live_products() for one in rest), like(table, base.products)])
            index = build_faiss([*kept, vectors], len(products), "Flat")
            products = products.combine_chunks()
            self._replace((base, Segment(index, products, words=words_of(products, self._built.lexical))))

    def delete(self, product_ids: Ids) -> None:
        """Removes products.

        Raises:
            ValueError: the index has no such product; none is removed then.
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

        The measured recall stays as it was, as clusters and codes do; build the index again when much has changed.

        Raises:
            ValueError: a file that this index was loaded from is damaged.
        """
        self._verify_base()
        description = self._built
        base = merged(self._segments, description.factory, train_size, description.lexical)
        if description.search_parameters:
            set_search_parameters(base.index, description.search_parameters)
        return ProductIndex((base,), description)

    def to(self, engine: Literal["milvus"], **options: Any) -> MilvusIndex:
        """Uploads the products that can be found into another engine.

        Args:
            engine: "milvus".
            options: where to, and how, as of [`MilvusIndex.build`]: `uri`, `collection`, `token`, `index_type` …

        Raises:
            ValueError: the engine is another one, the vectors of this index are compressed, or a file that it was
                loaded from is damaged; or as of [`MilvusIndex.build`].
        """
        if engine != "milvus":
            raise ValueError(f"the engine is {engine!r}; only 'milvus' is supported")
        segments = self._segments
        if not all(one.holds_exact_vectors() for one in segments):
            raise ValueError(
                f"an index {self._built.factory!r} holds compressed vectors; upload the embeddings themselves with "
                "MilvusIndex.build or mmfusion index --milvus_uri"
            )
        self._verify_base()
        blocks = (block for one in segments for block in one.live_blocks())
        products = pa.concat_tables([one.live_products() for one in segments])
        built: dict[str, Any] = {"model_fingerprint": self._built.model_fingerprint, "lexical": self._built.lexical}
        return MilvusIndex.upload(blocks, products, **built, **options)

    def calibrated(self, calibration: Calibration) -> "ProductIndex":
        """The same index with a lowest score, which `min_score="calibrated"` takes."""
        return ProductIndex(self._segments, replace(self._built, calibration=calibration), origin=self._origin)

    def _calibrated(self) -> float:
        if self._built.calibration is None:
            raise RankingError(
                "min_score is 'calibrated', and this index is not; give a number, or build the index again with "
                "mmfusion index --calibrate 0.5 (the precision asked for), which needs judged val queries."
            )
        return self._built.calibration.min_score

    def _verify_base(self) -> None:
        # Otherwise a damaged byte would be copied and get a checksum that agrees with it.
        if self._origin is not None:
            self._origin.verify()

    def _without(self, ids: pa.Array | pa.ChunkedArray) -> list[Segment]:
        rows = [one.rows_of(ids) for one in self._segments]
        return [one.without(found[found >= 0]) for one, found in zip(self._segments, rows, strict=True)]

    def _replace(self, segments: tuple[Segment, ...]) -> None:
        self._snapshot = Snapshot(segments[: len(SEGMENTS)] if len(segments[-1]) else segments[:1])

    def _described(self, segments: tuple[Segment, ...]) -> IndexDescription:
        count = sum(one.num_live for one in segments)
        return replace(self._built, count=count, rows=tuple(map(len, segments)))


def _checked_k(k: int) -> int:
    k = operator.index(k)
    if k < 1:
        raise ValueError(f"k={k}: ask for at least one hit")
    return k
