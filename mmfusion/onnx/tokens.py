"""The tokenizer of queries by itself: one file that cuts and pads by its own account."""

import re
import string

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import SiglipTokenizer

from mmfusion.model import MMFusionProcessor
from mmfusion.model.processing_mmfusion import query_texts
from mmfusion.onnx.query_tower import OnnxError, tokenize


def query_tokenizer(processor: MMFusionProcessor) -> Tokenizer:
    """A copy of the processor's tokenizer that truncates and pads as the processor does for queries.

    Raises:
        OnnxError: It is not a tokenizer of the library `tokenizers`, which alone can be written as a tokenizer.json.
    """
    if isinstance(processor.tokenizer, SiglipTokenizer):
        return _of_siglip(processor)
    if not isinstance(getattr(processor.tokenizer, "backend_tokenizer", None), Tokenizer):
        raise OnnxError(
            f"{type(processor.tokenizer).__name__} runs in Python alone and has no tokenizer.json, which an exported "
            "query tower needs; use a fast tokenizer (tokenizer.is_fast)"
        )
    # transformers sets truncation and padding of the tokenizer beneath with each call.
    processor.process_queries(["a"])
    return Tokenizer.from_str(processor.tokenizer.backend_tokenizer.to_str())


# SigLIP was trained on texts without it.
_PUNCTUATION = re.escape(string.punctuation)


def _of_siglip(processor: MMFusionProcessor) -> Tokenizer:
    """SigLIP's tokenizer, which transformers has in Python alone, from its SentencePiece model."""
    from sentencepiece import sentencepiece_model_pb2

    slow = processor.tokenizer
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # made when it is imported
    model.ParseFromString(slow.sp_model.serialized_model_proto())
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=slow.unk_token_id))
    steps = [
        *([normalizers.Lowercase()] if slow.do_lower_case else []),
        # A text's own mark of a blank is a blank.
        normalizers.Replace("▁", " "),
        normalizers.Replace(Regex(rf"^[\s{_PUNCTUATION}]+$"), ""),
        # Without anything at its first place, a text would get no mark there.
        normalizers.Replace(Regex(rf"^[\s{_PUNCTUATION}]+"), " "),
        normalizers.Replace(Regex(f"[{_PUNCTUATION}]"), ""),
        normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap),
        normalizers.Replace(Regex(r"^\s+"), "▁"),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(left=False),
    ]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    end = (slow.eos_token, slow.eos_token_id)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    special = [str(token) for token in slow.added_tokens_decoder.values()]
    tokenizer.add_special_tokens([AddedToken(token, lstrip=True, rstrip=True, normalized=False) for token in special])
    limit = min(processor.max_query_length, slow.model_max_length)
    tokenizer.enable_truncation(limit)
    length = limit if processor.pad_to_max_length else None
    tokenizer.enable_padding(pad_id=slow.pad_token_id, pad_token=slow.pad_token, length=length)
    return tokenizer


def max_length(tokenizer: Tokenizer) -> int:
    """Tokens that it cuts longer queries to."""
    assert tokenizer.truncation is not None
    return int(tokenizer.truncation["max_length"])


def check_tokens(tokenizer: Tokenizer, processor: MMFusionProcessor, texts: list[str]) -> None:
    """Raises an OnnxError if a tokenizer gives other tokens than the processor for a text."""
    for text in texts:
        expected = processor.process_queries([text])
        found = tokenize(tokenizer, query_texts([text], processor.query_prompt))
        if any(not np.array_equal(found[name], expected[name].numpy()) for name in found):
            raise OnnxError(
                f"{type(processor.tokenizer).__name__} gives other tokens in transformers than from its tokenizer.json "
                f"for the query {text[:60]!r}, so it does more than the file says; use another tokenizer"
            )
