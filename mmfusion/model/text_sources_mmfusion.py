"""A pretrained text encoder with all that its checkpoint says of how texts become vectors."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from .backbones_mmfusion import evaluating
from .configuration_mmfusion import TEXT_POOLINGS
from .pretrained_mmfusion import Half, hidden_size, load_half
from .sentence_transformers_folder_mmfusion import read_sentence_encoder
from .text_encoders_mmfusion import encode_text
from .text_families_mmfusion import (
    BOTH_WAYS,
    LEFT_TO_RIGHT,
    UNKNOWN,
    is_decoder,
    is_left_to_right,
    is_legacy_end,
    max_tokens,
    pads_to_full_length,
    pooled_size,
    text_end,
    text_family,
)
from .text_head_mmfusion import head_size
from .text_tokenizers_mmfusion import end_token

log = logging.getLogger("mmfusion")

# 1 - cosine of vectors of one text; rounding alone stays far below.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-5}
_HALF_TOLERANCE = 1e-2


class TextSource(NamedTuple):
    """A text encoder and what goes with it.

    Attributes:
        half: The encoder and its projection.
        fields: Fields of the configuration that follow from the checkpoint.
        head_weights: Weights of `text_head`.
        size: Width of the vector before our projection.
    """

    half: Half
    fields: dict[str, Any]
    head_weights: dict[str, Tensor]
    size: int


def load_text(
    source: str | PreTrainedModel, dtype: torch.dtype, given: Mapping[str, Any], *, trust_remote_code: bool = False
) -> TextSource:
    """Loads a text encoder, and finds out how its checkpoint pools, projects and prompts.

    Args:
        source: As for `load_half`.
        dtype: Floating-point type of the weights.
        given: Fields of the configuration that are decided already.
        trust_remote_code: Whether code that comes with the encoder may run.

    Raises:
        ValueError: The encoder cannot be a tower: it is an encoder-decoder, its vectors change from call to call or
            with the batch, or its folder says what has no counterpart here.
    """
    said = None if isinstance(source, PreTrainedModel) else read_sentence_encoder(source)
    half = load_half(source if said is None else said.folder, "text", dtype, trust_remote_code=trust_remote_code)
    if isinstance(source, str) and is_legacy_end(half.encoder.config):
        _correct_end(half.encoder, source if said is None else said.folder, trust_remote_code)
    fields: dict[str, Any] = {}
    if said is not None:
        fields = {"query_prompt": said.query_prompt, "product_prompt": said.product_prompt, "text_head": said.head}
        if said.pooling is not None:
            fields["text_pooling"] = said.pooling
    own_head, own_weights = (half.head.layers, half.head.weights) if said is None else (said.head, said.weights)
    if own_head:
        fields["text_head"] = own_head
    fields |= given
    if "text_pooling" not in fields:
        fields["text_pooling"] = default_pooling(half)
    pooling, head = fields["text_pooling"], fields.get("text_head", [])
    if pooling in TEXT_POOLINGS:
        check_text_encoder(half.encoder, pooling)
    size = head_size(head, pooled_size(half.encoder.config, pooling, hidden_size(half.encoder.config)))
    weights = own_weights if head == own_head else {}
    if said is not None and said.head:
        # The checkpoint's own layers come in place of another projection.
        half = half._replace(projection=None)
    return TextSource(half, fields, weights, size)


def _correct_end(encoder: PreTrainedModel, source: str, trust_remote_code: bool) -> None:
    # With the wrong one, a token that was added to the tokenizer would be taken for the end of a text.
    found = end_token(source, trust_remote_code=trust_remote_code)
    if found is not None:
        encoder.config.eos_token_id = found
        encoder.eos_token_id = found  # type: ignore[assignment]


def default_pooling(half: Half) -> str:
    """The pooling that a checkpoint was trained with; where it does not say, `mean`, with a warning."""
    if half.pooling is not None:
        return half.pooling
    config = half.encoder.config
    family = text_family(half.model_type, config.model_type)
    if family is None:
        with evaluating(half.encoder):
            last = _attempted(half.encoder, lambda: is_left_to_right(half.encoder))
        family = LEFT_TO_RIGHT if last else BOTH_WAYS if is_decoder(config) else UNKNOWN
    if family is UNKNOWN:
        log.warning(
            "The checkpoint does not say how a %r encoder was trained to make one vector of a text; text_pooling is "
            "'mean'. If it was another, as its card tells, give text_pooling: %s.",
            config.model_type,
            ", ".join(TEXT_POOLINGS),
        )
    return family.pooling


@torch.no_grad()
def check_text_encoder(encoder: PreTrainedModel, pooling: str) -> None:
    """Embeds a short text twice, and once more beside a longer one.

    Raises:
        ValueError: The vectors differ by more than rounding, or the encoder cannot embed token ids at all.
    """
    alone, beside = _attempted(encoder, lambda: _probes(encoder))
    with evaluating(encoder):
        first, again = (_attempted(encoder, lambda: _embed(encoder, alone, pooling)) for _ in range(2))
        padded = _attempted(encoder, lambda: _embed(encoder, beside, pooling))
    tolerance = _TOLERANCES.get(encoder.dtype, _HALF_TOLERANCE)
    for other, when in ((again, "from call to call"), (padded[:1], "with the texts beside it, and so with padding")):
        distance = float(1 - F.cosine_similarity(first.double(), other.double()).min())
        # Written so that a NaN is refused, too.
        if not distance <= tolerance:
            raise ValueError(
                f"A text's vector changes {when} in {type(encoder).__name__} (1 - cosine {distance:.1e}, at most "
                f"{tolerance:.0e} is rounding), so that products cannot be found again by it; use another text encoder."
            )


def _embed(encoder: PreTrainedModel, texts: list[list[int]], pooling: str) -> Tensor:
    length, pad = max(map(len, texts)), getattr(encoder.config, "pad_token_id", None)
    if pads_to_full_length(encoder.config):
        length = encoder.config.max_position_embeddings
    rows = [text + [pad or 0] * (length - len(text)) for text in texts]
    mask = [[1] * len(text) + [0] * (length - len(text)) for text in texts]
    ids, attention = (torch.tensor(values, device=encoder.device) for values in (rows, mask))
    return encode_text(encoder, ids, attention, pooling, None).pooled


def _probes(encoder: PreTrainedModel) -> tuple[list[list[int]], list[list[int]]]:
    """A short text by itself, and beside a longer one; both end as the encoder expects."""
    config = encoder.config
    size = len(encoder.get_input_embeddings().weight)  # type: ignore[arg-type]
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "cls", "sep", "mask")}
    words = [token for token in range(min(size - 1, 200)) if token not in special] or [0]
    end = text_end(config)
    ends: list[int] = [] if end is None else [config.eos_token_id if end == "end token" else size - 1]
    limit = min(max_tokens(config) or 12, 12)
    short, long = ([words[(7 * place + 3) % len(words)] for place in range(count)] for count in (3, limit - 1))
    return [short + ends], [short + ends, long + ends]


def _attempted(encoder: PreTrainedModel, act: Any) -> Any:
    try:
        return act()
    except Exception as error:  # Each family has its own.
        line = str(error).partition("\n")[0]
        raise ValueError(
            f"{type(encoder).__name__} does not turn token ids into states and a pooled vector "
            f"({type(error).__name__}: {line}); use a text encoder, or another text_pooling."
        ) from error
