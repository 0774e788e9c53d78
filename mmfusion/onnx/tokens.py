"""The tokenizer of queries by itself: one file that cuts and pads by its own account."""

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from mmfusion.model import MMFusionProcessor
from mmfusion.model.processing_mmfusion import query_texts
from mmfusion.onnx.extra import OnnxError

IntArray = npt.NDArray[np.int64]


def query_tokenizer(processor: MMFusionProcessor) -> Tokenizer:
    """A copy of the processor's tokenizer that truncates and pads as the processor does for queries.

    Raises:
        OnnxError: It is no tokenizer of the library `tokenizers`, which alone can be written as a tokenizer.json.
    """
    if not isinstance(getattr(processor.tokenizer, "backend_tokenizer", None), Tokenizer):
        raise OnnxError(
            f"{type(processor.tokenizer).__name__} runs in Python alone and has no tokenizer.json, which an exported "
            "query tower needs; use a fast tokenizer (tokenizer.is_fast)"
        )
    # transformers sets truncation and padding of the tokenizer beneath with each call.
    processor.encode_queries(["a"])
    return Tokenizer.from_str(processor.tokenizer.backend_tokenizer.to_str())


def max_length(tokenizer: Tokenizer) -> int:
    """Tokens that it cuts longer queries to."""
    assert tokenizer.truncation is not None
    return int(tokenizer.truncation["max_length"])


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> dict[str, IntArray]:
    """`input_ids` and `attention_mask`, both (Q, length) int64, of texts with their prompt."""
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
    }


def check_tokens(tokenizer: Tokenizer, processor: MMFusionProcessor, texts: list[str]) -> None:
    """Raises an OnnxError if a tokenizer gives other tokens than the processor for a text."""
    for text in texts:
        expected = processor.encode_queries([text])
        found = tokenize(tokenizer, query_texts([text], processor.query_prompt))
        if any(not np.array_equal(found[name], expected[name].numpy()) for name in found):
            raise OnnxError(
                f"{type(processor.tokenizer).__name__} gives other tokens in transformers than from its tokenizer.json "
                f"for the query {text[:60]!r}, so it does more than the file says; use another tokenizer"
            )
