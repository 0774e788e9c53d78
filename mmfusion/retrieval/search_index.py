"""What all indexes have in common, whatever engine holds the vectors: hits, and checks of what they are given."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mmfusion.retrieval.filters import Filter
from mmfusion.retrieval.products import Ids, products_table
from mmfusion.retrieval.vectors import as_float32


@dataclass(frozen=True)
class Hit:
    """One found product.

    Attributes:
        product_id: the catalogue's id.
        score: inner product of query and product embedding (exact or, with a compressing index, approximate).
        rank: place from 1.
        modality_weights: how much the fused embedding draws on "text" and "image", as the model reported it; empty
            where the index holds none.
        metadata: further columns of the product, such as its title; empty where the index holds none.
    """

    product_id: str
    score: float
    rank: int
    modality_weights: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


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
    vector: npt.NDArray[np.float32]
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
        """What a service tells of the index: engine, kind, dimension, and recall where it was measured."""

    @abstractmethod
    def product(self, product_id: str) -> StoredProduct:
        """What the index holds of a product.

        Raises:
            KeyError: there is no such product.
        """

    @abstractmethod
    def search(self, query_embeds: Any, k: int, *, filter: Filter | None = None) -> list[list[Hit]]:
        """Finds the k products with the largest inner product for each query.

        Args:
            query_embeds: float [Q, D], numpy or tensor.
            k: hits wanted, at least 1; more than there are products gives all products.
            filter: conditions on metadata that hits fulfil, for example `[("price", "<", 50)]`, see [`filter_rows`].

        Returns:
            For each query its hits, best first: k, or as many as there are (that the filter lets through).

        Raises:
            ValueError: k is below 1, or the embeddings have another dimension or a NaN; or the filter names what is
                not there.
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

    def _checked(self, embeds: Any, what: str = "query embeddings") -> npt.NDArray[np.float32]:
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
    ) -> tuple[npt.NDArray[np.float32], pa.Table]:
        """Vectors and table of products that are to be added."""
        self.check_model(model_fingerprint)
        vectors = self._checked(embeds, "product embeddings")
        table = products_table(product_ids, metadata, modality_weights)
        if len(table) != len(vectors):
            raise ValueError(f"{len(vectors)} product embeddings for {len(table)} product ids; pass one each")
        return vectors, table
