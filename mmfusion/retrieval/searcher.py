"""Search by text: a query encoder and an index that belong together."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.model.vectors_mmfusion import shorten
from mmfusion.retrieval.filters import Filter
from mmfusion.retrieval.hit import Hit
from mmfusion.retrieval.query_encoder import QueryEncoder, TorchQueryEncoder
from mmfusion.retrieval.search_index import SearchIndex

Index = TypeVar("Index", bound=SearchIndex)


class Searcher(Generic[Index]):
    """Embeds queries and finds products; safe to use from several threads.

    Args:
        encoder: The query tower of the model that embedded the products.
        index: Their index (a [`ProductIndex`] or a [`MilvusIndex`]), perhaps with fewer components per view.

    Raises:
        ValueError: The index is of another model, or of a dimension that its vectors cannot be shortened to.
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
    def of(cls, model: MMFusionModel, processor: MMFusionProcessor, index: Index) -> "Searcher[Index]":
        """A searcher that runs the query tower in PyTorch; `model` may be the query tower alone."""
        return cls(TorchQueryEncoder(model, processor), index)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors to search the index with.

        Args:
            texts: Q queries, Q >= 1, which are embedded together.

        Returns:
            float32 (Q, D) with the dimension D of the index.

        Raises:
            ValueError: There is no text, or one is blank.
        """
        embeds = self.encoder.encode(texts)
        dimension, views = self.index.description.dimension, self.encoder.views
        if dimension == self.encoder.dimension:
            return embeds
        return shorten(torch.from_numpy(embeds), dimension // views, views).numpy()

    def search(self, queries: str | Sequence[str], k: int = 10, *, filter: Filter | None = None) -> list[list[Hit]]:
        """The k best products of each query.

        Args:
            queries: A text, or several, which are embedded together.
            k: At least 1.
            filter: Conditions on metadata, see [`ProductIndex.search`].

        Raises:
            ValueError: A query is blank, k is below 1, or the filter names what is not there.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        return self.index.search(self.embed(texts), k, filter=filter) if texts else []
