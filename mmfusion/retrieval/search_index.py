"""What a searcher needs of an index, whatever engine holds the vectors."""

from typing import Any, Protocol

from mmfusion.retrieval.filters import Filter
from mmfusion.retrieval.hit import Hit, StoredProduct


class HasDimension(Protocol):
    """What an index says about itself."""

    @property
    def dimension(self) -> int:
        """Of the embeddings."""


class SearchIndex(Protocol):
    """An index of product embeddings; see [`ProductIndex`] for what each does."""

    @property
    def description(self) -> HasDimension: ...

    def __len__(self) -> int: ...

    def facts(self) -> dict[str, Any]: ...

    def product(self, product_id: str) -> StoredProduct: ...

    def check_model(self, model_fingerprint: str) -> None: ...

    def search(
        self, query_embeds: Any, k: int, *, filter: Filter | None = None, model_fingerprint: str | None = None
    ) -> list[list[Hit]]: ...
