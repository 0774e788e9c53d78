"""A query tower in ONNX Runtime, which takes texts as the one in PyTorch does, and the folder that holds it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from mmfusion.extras import library
from mmfusion.files import sha256_of
from mmfusion.model.errors import MMFusionError
from mmfusion.model.processing_mmfusion import query_texts

SCHEMA_VERSION = 1
GRAPH, WEIGHTS, TOKENIZER, DESCRIPTION = "model.onnx", "model.onnx.data", "tokenizer.json", "query_tower.json"
# The weights are in the graph's own file unless they exceed what it can hold.
FILES = frozenset({GRAPH, WEIGHTS, TOKENIZER, DESCRIPTION})


class OnnxError(MMFusionError):
    """A query tower that cannot be exported, or a folder that holds none that can be used."""


def first_line(error: BaseException) -> str:
    """The beginning of another library's error, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


@dataclass(frozen=True)
class OnnxDescription:
    """What `query_tower.json` says.

    Attributes:
        schema_version: Version of the folder's layout.
        model_fingerprint: Of the whole model, by which an index of its products knows the vectors.
        dimension: Of the vectors, all views together.
        views: Views side by side in a vector: 3 with a query router, otherwise 1.
        matryoshka_dims: Shorter widths of a view that the model was trained for.
        query_prompt: Prefix of every query. The tokenizer does not add it.
        max_length: Tokens that longer queries are truncated to; the tokenizer does it.
        parameters: Number of the tower's parameters.
        opset: Version of the ONNX operators.
        parity: Largest difference of a component from PyTorch's that was found after the export.
        sha256: Checksum (hex) of each other file of the folder, by name.
        created_by: Software that exported it.
    """

    schema_version: int
    model_fingerprint: str
    dimension: int
    views: int
    matryoshka_dims: tuple[int, ...]
    query_prompt: str
    max_length: int
    parameters: int
    opset: int
    parity: float
    sha256: dict[str, str]
    created_by: str


def read_description(folder: Path) -> OnnxDescription:
    """Reads `query_tower.json` and compares the other files with their checksums.

    Raises:
        OnnxError: It is missing, damaged or of a later layout, or a file is missing or not the one that was exported.
    """
    path = folder / DESCRIPTION
    remedy = "export the query tower again with `mmfusion export`"
    if not path.is_file():
        raise OnnxError(f"{folder} holds no exported query tower: {DESCRIPTION} is missing; {remedy}")
    try:
        fields = json.loads(path.read_text("utf-8"))
        version = fields["schema_version"]
        if version != SCHEMA_VERSION:
            raise OnnxError(f"it has schema version {version}, this mmfusion reads {SCHEMA_VERSION}; update mmfusion")
        description = OnnxDescription(**{**fields, "matryoshka_dims": tuple(fields["matryoshka_dims"])})
    except (ValueError, KeyError, TypeError) as error:
        raise OnnxError(f"{path} is damaged or of a later layout ({error!r}); {remedy}") from error
    for name, expected in description.sha256.items():
        found = sha256_of(folder / name) if (folder / name).is_file() else "of no file"
        if found != expected:
            raise OnnxError(
                f"{folder / name} has the checksum {found[:12]}…, {DESCRIPTION} says {expected[:12]}…; it is damaged "
                f"or of another export: {remedy}"
            )
    return description


IntArray = npt.NDArray[np.int64]


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> dict[str, IntArray]:
    """`input_ids` and `attention_mask`, both (Q, length) int64, of texts with their prompt."""
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
    }


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
            threads: Threads that one call computes with; None: one per core.
            providers: Execution providers of ONNX Runtime, the first one preferred.

        Raises:
            OnnxError: The folder holds no query tower or a damaged one, or ONNX Runtime has no such provider.
            MissingLibraryError: ONNX Runtime is not installed.
        """
        folder = Path(folder)
        description = read_description(folder)
        runtime = library("onnxruntime", "onnx")
        known = runtime.get_available_providers()
        if unknown := [name for name in providers if name not in known]:
            # ONNX Runtime would compute without it.
            raise OnnxError(f"ONNX Runtime has no provider {unknown[0]!r} here; it has {', '.join(known)}")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            session = runtime.InferenceSession(folder / GRAPH, options, providers=list(providers))
            return cls(session, Tokenizer.from_file(str(folder / TOKENIZER)), description)
        except Exception as error:  # Both libraries raise exceptions of their own.
            raise OnnxError(
                f"{folder} cannot be loaded ({first_line(error)}); update onnxruntime and tokenizers, or export the "
                "query tower again with the versions that are installed here"
            ) from error

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
