"""Search by text: a query tower and an index that belong together."""

from collections.abc import Sequence

import torch

from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.retrieval.filters import Filter
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.hit import Hit
from mmfusion.retrieval.index import ProductIndex


class Searcher:
    """Embeds queries and finds products; safe to use from several threads.

    Args:
        model: The model that embedded the products, or its query tower alone.
        processor: The model's.
        index: Their index, perhaps with fewer components per view.

    Raises:
        ValueError: The index is of another model.
    """

    def __init__(self, model: MMFusionModel, processor: MMFusionProcessor, index: ProductIndex) -> None:
        index.check_model(model_fingerprint(model, processor))
        self.model = model.eval()
        self.processor = processor
        self.index = index
        self._width = model.config.embedding_dim * index.description.dimension // model.config.vector_dim

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
        blank = next((place for place, text in enumerate(texts) if not text.strip()), None)
        if blank is not None:
            raise ValueError(f"query {blank} is {texts[blank]!r}; give a text to search for")
        if not texts:
            return []
        with torch.inference_mode():
            inputs = self.processor(queries=texts).to(self.model.device)
            embeds = self.model.get_query_features(**inputs, truncate_dim=self._width)
        return self.index.search(embeds.float(), k, filter=filter)
