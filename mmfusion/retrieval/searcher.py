"""Search by text: a query encoder and an index that belong together."""

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from mmfusion.model import VIEWS, MMFusionModel, MMFusionProcessor
from mmfusion.model.vectors_mmfusion import shorten
from mmfusion.retrieval.filters import Filter
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.index import ProductIndex
from mmfusion.retrieval.products import Ids
from mmfusion.retrieval.search_index import Hit, SearchIndex


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

    def encode_queries(self, queries: Sequence[str], /) -> npt.NDArray[np.float32]:
        """Embeds texts.

        Args:
            queries: Q queries, Q >= 1; texts that are longer than what the model reads are truncated.

        Returns:
            float32 (Q, D); each view has unit length, and is weighted where there are several.

        Raises:
            ValueError: There is no text, or one is blank.
        """


class TorchQueryEncoder:
    """The query tower in PyTorch, on the device that the model is on.

    Args:
        model: A model, or its query tower alone; it is put into evaluation mode.
        processor: The model's.
    """

    def __init__(self, model: MMFusionModel, processor: MMFusionProcessor) -> None:
        self.fingerprint = model_fingerprint(model, processor)
        self.dimension = model.config.vector_dim
        self.views = len(VIEWS) if model.config.query_router else 1
        self._model, self._processor = model.eval(), processor
        self._tokenizing = Lock()

    def encode_queries(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """As [`QueryEncoder.encode_queries`]; all texts together in one batch."""
        # A tokenizer of transformers is set to the lengths of each call, which fails while another thread reads it.
        with self._tokenizing:
            inputs = self._processor.process_queries(queries)
        with torch.inference_mode():
            embeds = self._model.get_query_features(**inputs.to(self._model.device))
        return embeds.float().cpu().numpy()


Index = TypeVar("Index", bound=SearchIndex)


class Searcher(Generic[Index]):
    """Embeds queries and finds products; safe to use from several threads.

    Args:
        encoder: The query tower of the model that embedded the products.
        index: Their index (a [`ProductIndex`] or a [`MilvusIndex`]), perhaps with fewer components per view.

    Raises:
        ValueError: The index is of another model, or of a dimension that its vectors cannot be shortened to.

    Example:
        >>> searcher = Searcher.build(encoder, embeds, ["a", "b"], metadata=table)  # doctest: +SKIP
        >>> searcher.search("red dress", k=10, filter=[("price", "<", 50)])  # doctest: +SKIP
        [Hit(product_id='b', score=0.71, rank=1, ...)]
        >>> searcher.index.save("outputs/index")  # doctest: +SKIP
        >>> Searcher(encoder, ProductIndex.load("outputs/index")).search(["red dress", "mug"])  # doctest: +SKIP
        [[Hit(...), ...], [Hit(...), ...]]
    """

    def __init__(self, encoder: QueryEncoder, index: Index) -> None:
        index.check_model(encoder.fingerprint)
        dimension = index.description.dimension
        if dimension > encoder.dimension or dimension % encoder.views:
            raise ValueError(
                f"the index has dimension {dimension}, which query vectors of dimension {encoder.dimension} with "
                f"{encoder.views} view(s) cannot be shortened to; build the index again from embeddings of this model"
            )
        self.encoder = encoder
        self.index = index

    @classmethod
    def build(
        cls,
        encoder: QueryEncoder,
        embeds: Any | Iterable[Any],
        product_ids: Ids,
        *,
        metadata: pa.Table | None = None,
        modality_weights: np.ndarray | None = None,
        factory: str = "Flat",
        search_parameters: str = "",
    ) -> "Searcher[ProductIndex]":
        """A searcher over a new FAISS index in memory, which gets the fingerprint of the encoder's model.

        Args:
            encoder: The query tower of the model that made the embeddings.
            embeds, product_ids, metadata, modality_weights, factory, search_parameters: As of [`ProductIndex.build`].

        Raises:
            ValueError: As of [`ProductIndex.build`].
        """
        index = ProductIndex.build(
            embeds,
            product_ids,
            model_fingerprint=encoder.fingerprint,
            metadata=metadata,
            modality_weights=modality_weights,
            factory=factory,
            search_parameters=search_parameters,
        )
        return Searcher(encoder, index)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors to search the index with.

        Args:
            texts: Q queries, Q >= 1, which are embedded together.

        Returns:
            float32 (Q, D) with the dimension D of the index.

        Raises:
            ValueError: There is no text, or one is blank.
        """
        embeds = self.encoder.encode_queries(texts)
        dimension, views = self.index.description.dimension, self.encoder.views
        if dimension == self.encoder.dimension:
            return embeds
        return shorten(torch.from_numpy(embeds), dimension // views, views).numpy()

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a sequence of str
        self, queries: str, k: int = 10, *, filter: Filter | None = None
    ) -> list[Hit]: ...

    @overload
    def search(self, queries: Sequence[str], k: int = 10, *, filter: Filter | None = None) -> list[list[Hit]]: ...

    def search(
        self, queries: str | Sequence[str], k: int = 10, *, filter: Filter | None = None
    ) -> list[Hit] | list[list[Hit]]:
        """The k best products of a query, or of each of several.

        Args:
            queries: A text, or several, which are embedded together.
            k: At least 1.
            filter: Conditions on metadata, see [`ProductIndex.search`].

        Returns:
            Hits of the text, best first; of several texts, a list of them for each.

        Raises:
            ValueError: A query is blank, k is below 1, or the filter names what is not there.
        """
        if isinstance(queries, str):
            return self.search([queries], k, filter=filter)[0]
        return self.index.search(self.embed(queries), k, filter=filter) if queries else []
