"""A query tower in ONNX Runtime, which takes texts as the one in PyTorch does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from mmfusion.model.processing_mmfusion import query_texts
from mmfusion.onnx.description import GRAPH, TOKENIZER, OnnxDescription, read_description
from mmfusion.onnx.extra import OnnxError, first_line, library
from mmfusion.onnx.tokens import tokenize


class OnnxQueryTower:
    """Embeds queries without PyTorch; safe to use from several threads. A `QueryEncoder`, as `Searcher` takes it.

    Example:
        >>> encoder = OnnxQueryTower.load("outputs/onnx", threads=2)  # doctest: +SKIP
        >>> encoder.encode_queries(["red floral dress"]).shape  # doctest: +SKIP
        (1, 384)
    """

    def __init__(self, session: Any, tokenizer: Tokenizer, description: OnnxDescription) -> None:
        self.description = description
        self.fingerprint = description.model_fingerprint
        self.dimension = description.dimension
        self.views = description.views
        self._session, self._tokenizer = session, tokenizer

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> "OnnxQueryTower":
        """Loads what `export_query_tower` wrote.

        Args:
            folder: The folder.
            threads: Threads that one call computes with, at least 1; None: one per core.
            providers: Execution providers of ONNX Runtime, the first one preferred.

        Raises:
            OnnxError: The folder holds no query tower or a damaged one, ONNX Runtime is not installed or has no such
                provider, or `threads` is below 1.
        """
        return cls.open(Path(folder), read_description(Path(folder)), threads=threads, providers=providers)

    @classmethod
    def open(
        cls,
        folder: Path,
        description: OnnxDescription,
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> "OnnxQueryTower":
        """As [`load`], of a folder that is known to be what the description says."""
        runtime = library("onnxruntime")
        if threads is not None and threads < 1:
            raise OnnxError(f"threads is {threads}; give at least 1, or None for one per core")
        known = runtime.get_available_providers()
        unknown = [name for name in providers if name not in known]
        if unknown:
            raise OnnxError(f"ONNX Runtime has no provider {unknown[0]!r} here; it has {', '.join(known)}")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            session = runtime.InferenceSession(folder / GRAPH, options, providers=list(providers))
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # Both libraries raise exceptions of their own.
            raise OnnxError(
                f"{folder} cannot be loaded ({first_line(error)}); update onnxruntime and tokenizers, or export the "
                "query tower again with the versions that are installed here"
            ) from error
        return cls(session, tokenizer, description)

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeds texts together.

        Args:
            texts: Q queries, Q >= 1; longer ones than `max_length` are truncated.

        Returns:
            float32 (Q, D); each view is L2-normalised, and weighted where there are several.

        Raises:
            ValueError: There is no text, or one is blank.
        """
        inputs = tokenize(self._tokenizer, query_texts(texts, self.description.query_prompt))
        (embeds,) = self._session.run(None, inputs)
        return embeds
