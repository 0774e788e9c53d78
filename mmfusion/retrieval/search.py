"""Search by words and photos: what indexes find, what indexes and encoders have in common, and a searcher of both."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
import pyarrow as pa
import torch

from mmfusion.model.configuration_mmfusion import MMFusionConfig
from mmfusion.model.errors import MMFusionError
from mmfusion.model.heads import shorten
from mmfusion.model.processing_mmfusion import query_texts
from mmfusion.retrieval.filters import Filter
from mmfusion.retrieval.hits import Hits, PhotoSource
from mmfusion.retrieval.products import Ids, products_table
from mmfusion.retrieval.ranking import CALIBRATED, PLAIN, Ranking, RankingError
from mmfusion.retrieval.vectors import FloatArray, as_float32


@dataclass(frozen=True)
class Hit:
    """One found product.

    Attributes:
        product_id: the catalogue's id.
        score: inner product of query and product embedding (exact or, with a compressing index, approximate), unless
            the search asked for another [`Ranking`].
        rank: place from 1.
        modality_weights: how much the fused embedding draws on "text" and "image", as the model reported it; empty
            where the index holds none.
        metadata: further columns of the product, such as its title; empty where the index holds none.
        parts: what the score was made of, where that is more than one thing: "vectors" and "words" (see [`Ranking`]),
            and "boost:COLUMN".
    """

    product_id: str
    score: float
    rank: int
    modality_weights: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredProduct:
    """What an index holds of a product.

    Attributes:
        product_id: the catalogue's id.
        vector: (D,) float32; with a compressing index, an approximation.
        modality_weights: as of a [`Hit`].
        metadata: as of a [`Hit`].
    """

    product_id: str
    vector: FloatArray
    modality_weights: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def ranked(found: Iterable[tuple[float, dict[str, Any]]]) -> list[Hit]:
    """Scores and products of one query as hits, best first; equal scores by product id, descending, as in evaluation.

    Args:
        found: Scores with rows of a table of products (`product_id` and perhaps `modality_weights` and `metadata`).
    """
    best = sorted(found, key=lambda one: (one[0], one[1]["product_id"]), reverse=True)
    return [
        Hit(row["product_id"], score, rank, row.get("modality_weights", {}), row.get("metadata", {}))
        for rank, (score, row) in enumerate(best, start=1)
    ]


class SearchIndex(ABC):
    """An index of product embeddings that knows its products and its model.

    Attributes:
        description: With at least `dimension` (of the embeddings) and `model_fingerprint`.
        place: What and where it is, for messages.
    """

    place: str = "index"

    @property
    @abstractmethod
    def description(self) -> Any: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a service reports about the index: engine, kind, dimension, and recall where it was measured."""

    @abstractmethod
    def product(self, product_id: str) -> StoredProduct:
        """What the index holds of a product.

        Raises:
            KeyError: there is no such product.
        """

    def metadata_types(self) -> dict[str, pa.DataType]:
        """Columns of the metadata that `metadata_column` reads, and their types; none where it cannot."""
        return {}

    def metadata_column(self, name: str) -> pa.ChunkedArray:
        """A column of the metadata, for all products that can be found, in their order."""
        raise NotImplementedError

    @abstractmethod
    def search(
        self,
        query_embeds: Any,
        k: int,
        *,
        filter: Filter | None = None,
        ranking: Ranking = PLAIN,
        texts: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """Finds the k products with the largest inner product for each query, or those that another ranking puts first.

        Args:
            query_embeds: float [Q, D], numpy or tensor; None where words alone count.
            k: hits wanted, at least 1; more than there are products gives all products.
            filter: conditions on metadata that hits fulfil, for example `[("price", "<", 50)]`, see [`filter_rows`].
            ranking: what to rank by.
            texts: the queries, where their words count.

        Returns:
            For each query its hits, best first: k, or as many as there are (that the filter lets through).

        Raises:
            ValueError: k is below 1, or the embeddings have another dimension or a NaN; or the filter names what is
                not there.
            RankingError: the index has no words, or no such column, for the ranking.
        """

    def check_model(self, model_fingerprint: str) -> None:
        """Raises an error for vectors of another model, whose scores would be noise.

        Raises:
            ValueError: the fingerprint is not the index's.
        """
        if model_fingerprint != self.description.model_fingerprint:
            raise ValueError(
                f"the {self.place} was built with model {self.description.model_fingerprint!r} but the vectors come "
                f"from model {model_fingerprint!r}; load the index's model or build the index again with this one"
            )

    def _checked(self, embeds: Any, what: str = "query embeddings") -> FloatArray:
        vectors = as_float32(embeds, what=what)
        if vectors.shape[1] != self.description.dimension:
            raise ValueError(
                f"{what} have dimension {vectors.shape[1]} but the index {self.description.dimension}; embed with the "
                f"model that built the index ({self.description.model_fingerprint!r})"
            )
        return vectors

    def _checked_products(
        self,
        embeds: Any,
        product_ids: Ids,
        model_fingerprint: str,
        metadata: pa.Table | None,
        modality_weights: np.ndarray | None,
    ) -> tuple[FloatArray, pa.Table]:
        """Vectors and table of products that are to be added."""
        self.check_model(model_fingerprint)
        vectors = self._checked(embeds, "product embeddings")
        table = products_table(product_ids, metadata, modality_weights)
        if len(table) != len(vectors):
            raise ValueError(f"{len(vectors)} product embeddings for {len(table)} product ids; pass one each")
        return vectors, table


def check_width(config: MMFusionConfig, truncate_dim: int | None, allow_untrained: bool) -> None:
    """Raises an error for a number of components per view that a model was not trained for.

    Args:
        config: The model's.
        truncate_dim: Components to keep; None keeps all.
        allow_untrained: Whether any number will do.

    Raises:
        ValueError: It will not, or there are not so many; names the trained ones.
    """
    if truncate_dim is None or truncate_dim in config.trained_widths():
        return
    trained = ", ".join(map(str, config.trained_widths()))
    if not 1 <= truncate_dim <= config.embedding_dim:
        raise ValueError(f"truncate_dim is {truncate_dim}; give 1 to {config.embedding_dim} (trained: {trained}).")
    if not allow_untrained:
        raise ValueError(
            f"truncate_dim is {truncate_dim}, a width that this model was not trained for (trained: {trained}); give "
            "one of those, or --allow_untrained_width true."
        )


class QueryEncoder(Protocol):
    """Embeds queries; safe to use from several threads."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model; the index of its products has the same one."""

    @property
    def dimension(self) -> int:
        """D, the width of the vectors: that of all views together."""

    @property
    def views(self) -> int:
        """Number of views side by side in a vector: 3 with a query router, otherwise 1."""

    def encode_queries(self, queries: Sequence[str], /) -> FloatArray:
        """Embeds texts.

        Args:
            queries: Q queries, Q >= 1; texts that are longer than what the model reads are truncated.

        Returns:
            float32 (Q, D); each view has unit length, and is weighted where there are several.

        Raises:
            ValueError: There is no text, or one is blank.
        """


@runtime_checkable
class PhotoQueryEncoder(Protocol):
    """Embeds photos as queries, with or without words; safe to use from several threads."""

    def encode_photo_queries(self, photos: Sequence[Any], texts: Sequence[str | None] | None = None, /) -> FloatArray:
        """Embeds photos, and the words that go with them.

        Args:
            photos: Q photos, as a [`Retriever`] takes them.
            texts: Words for each photo, None or blank where it comes alone; None: all do.

        Returns:
            float32 (Q, D), as of [`QueryEncoder.encode_queries`].

        Raises:
            PhotoQueryError: The model cannot search by photo, or a photo cannot be read.
        """


class PhotoQueryError(MMFusionError):
    """A photo cannot be searched with."""


Index = TypeVar("Index", bound=SearchIndex)


class Searcher(Generic[Index]):
    """Embeds queries and finds products; safe to use from several threads.

    Args:
        encoder: The query tower of the model that embedded the products, for example a [`Retriever`].
        index: Their index (a [`ProductIndex`] or a [`MilvusIndex`]), perhaps with fewer components per view.
        photos: Where photos of products come from, to show hits in a notebook or on a page; None: nowhere.

    Raises:
        ValueError: The index is of another model, or of a dimension that its vectors cannot be shortened to.

    Example:
        >>> searcher = Searcher(retriever, ProductIndex.load("outputs/index/index"))  # doctest: +SKIP
        >>> searcher.search("red dress", k=10, filter=[("price", "<", 50)])  # doctest: +SKIP
        [Hit(product_id='b', score=0.71, rank=1, ...), ...]
        >>> searcher.search(["red dress", "mug"])  # doctest: +SKIP
        [[Hit(...), ...], [Hit(...), ...]]
    """

    def __init__(self, encoder: QueryEncoder, index: Index, photos: PhotoSource | None = None) -> None:
        index.check_model(encoder.fingerprint)
        dimension = index.description.dimension
        if dimension > encoder.dimension or dimension % encoder.views:
            raise ValueError(
                f"the index has dimension {dimension}, which query vectors of dimension {encoder.dimension} with "
                f"{encoder.views} view(s) cannot be shortened to; build the index again from embeddings of this model"
            )
        self.encoder = encoder
        self.index = index
        self.photos = photos

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Vectors to search the index with.

        Args:
            texts: Q queries, Q >= 1, which are embedded together.

        Returns:
            float32 (Q, D) with the dimension D of the index.

        Raises:
            ValueError: There is no text, or one is blank.
        """
        return self._fitted(self.encoder.encode_queries(texts))

    def embed_photos(self, photos: Sequence[Any], texts: Sequence[str | None] | None = None) -> FloatArray:
        """Vectors to search the index with, of photos and the words that go with them.

        Args:
            photos: Q photos, Q >= 1, each a path, the bytes of a file or a PIL image.
            texts: Words for each photo, None or blank where it comes alone; None: all do.

        Returns:
            float32 (Q, D) with the dimension D of the index.

        Raises:
            PhotoQueryError: The encoder has no vision encoder or learned nothing of photos, or a photo cannot be read.
        """
        if not isinstance(self.encoder, PhotoQueryEncoder):
            raise PhotoQueryError(
                f"a {type(self.encoder).__name__} reads words alone; search by photo with a Retriever of the whole "
                "model."
            )
        return self._fitted(self.encoder.encode_photo_queries(photos, texts))

    def _fitted(self, embeds: FloatArray) -> FloatArray:
        """Vectors shortened to what the index holds."""
        dimension, views = self.index.description.dimension, self.encoder.views
        if dimension == self.encoder.dimension:
            return embeds
        return shorten(torch.from_numpy(embeds), dimension // views, views).numpy()

    @overload
    def search(
        self,
        queries: str | None = None,
        k: int = 10,
        *,
        image: Any = None,
        filter: Filter | None = None,
        **ranking: Any,
    ) -> Hits: ...

    @overload
    def search(
        self, queries: Sequence[str], k: int = 10, *, image: None = None, filter: Filter | None = None, **ranking: Any
    ) -> list[Hits]: ...

    def search(
        self,
        queries: str | Sequence[str] | None = None,
        k: int = 10,
        *,
        image: Any = None,
        filter: Filter | None = None,
        **ranking: Any,
    ) -> Hits | list[Hits]:
        """The k best products of a query, or of each of several.

        Args:
            queries: A text, or several, which are embedded together; None: the photo alone is searched for.
            k: At least 1.
            image: A photo to search with, alone or with a text: a path, the bytes of a file or a PIL image.
            filter: Conditions on metadata, see [`ProductIndex.search`].
            ranking: What to rank by, fields of [`Ranking`]: `mode`, `weight`, `group_by`, `boosts`, `min_score`.

        Returns:
            Hits of the text or photo, best first; of several texts, a list of them for each.

        Raises:
            ValueError: A query is blank, k is below 1, or the filter names what is not there.
            RankingError: The ranking is out of range, or not one that the index can give.
            PhotoQueryError: There is neither text nor photo, or several texts with a photo; or the photo cannot be
                searched with, see [`embed_photos`][Searcher.embed_photos].
        """
        by = Ranking(**ranking)
        if image is not None:
            if not (queries is None or isinstance(queries, str)):
                raise PhotoQueryError(f"there are {len(queries)} texts and one photo; give one text, or None.")
            if by.mode == "words":
                raise RankingError("mode is 'words', and a photo has none; give mode 'vectors' or 'hybrid'.")
            if by.min_score == CALIBRATED:
                raise RankingError("min_score is calibrated for words alone; give a number to search by photo.")
            photo = self.embed_photos([image], [queries])
            found = self.index.search(photo, k, filter=filter, ranking=by, texts=[queries or ""])
            return self._shown(found, [queries], image)[0]
        if queries is None:
            raise PhotoQueryError("there is nothing to search for; give words, an image, or both.")
        if isinstance(queries, str):
            return self.search([queries], k, filter=filter, **ranking)[0]
        if not queries:
            return []
        embeds = None if by.mode == "words" else self.embed(queries)
        found = self.index.search(embeds, k, filter=filter, ranking=by, texts=query_texts(queries, ""))
        return self._shown(found, queries)

    def _shown(self, found: list[list[Hit]], queries: Sequence[str | None], image: Any = None) -> list[Hits]:
        return [
            Hits(hits, query=query, image=image, photos=self.photos) for hits, query in zip(found, queries, strict=True)
        ]
