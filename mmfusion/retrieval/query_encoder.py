"""What turns texts into vectors to search with, whatever runs the query tower."""

from collections.abc import Sequence
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from mmfusion.model import VIEWS, MMFusionModel, MMFusionProcessor
from mmfusion.retrieval.fingerprint import model_fingerprint


class QueryEncoder(Protocol):
    """Embeds queries; safe to use from several threads."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model, which an index of its products has, too."""

    @property
    def dimension(self) -> int:
        """D, the width of the vectors: that of all views together."""

    @property
    def views(self) -> int:
        """Number of views side by side in a vector: 3 with a query router, otherwise 1."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeds texts together.

        Args:
            texts: Q queries, Q >= 1; longer ones than the model reads are truncated.

        Returns:
            float32 (Q, D); each view is L2-normalised, and weighted where there are several.

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

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """As [`QueryEncoder.encode`]."""
        # A tokenizer of transformers is set to the lengths of each call, which fails while another thread reads it.
        with self._tokenizing:
            inputs = self._processor.process_queries(texts)
        with torch.inference_mode():
            embeds = self._model.get_query_features(**inputs.to(self._model.device))
        return embeds.float().cpu().numpy()
