"""Texts through any text encoder of transformers: token states and a pooled vector."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from .families import pads_to_full_length
from .heads import Encoded, pool_text


def encode_text(
    encoder: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    pooling: str,
    role: Tensor | None,
    at_once: int | None = None,
) -> Encoded:
    """Token states and a pooled vector of a batch of texts.

    Args:
        encoder: Any transformers text encoder.
        input_ids: (batch, length) int64.
        attention_mask: (batch, length) int64 or bool, at least one 1 in each row.
        pooling: One of `TEXT_POOLINGS`.
        role: (hidden,) vector added to every token embedding, or None.
        at_once: Texts that run together, those of similar length without the padding that they share; None: all.
            States of padding are zero then.
    """
    if at_once is not None and len(input_ids) > at_once and not pads_to_full_length(encoder.config):
        ends = text_ends(attention_mask)
        order = ends.argsort()
        parts = []
        for rows in order.split(at_once):
            end = int(ends[rows].max())
            part = encode_text(encoder, input_ids[rows, :end], attention_mask[rows, :end], pooling, role)
            parts.append(Encoded(F.pad(part.tokens, (0, 0, 0, input_ids.shape[1] - end)), part.pooled))
        tokens, pooled = (torch.cat(states)[order.argsort()] for states in zip(*parts, strict=True))
        return Encoded(tokens, pooled)
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if pads_to_full_length(encoder.config):
        # SigLIP was trained on texts padded to full length and without a mask.
        del inputs["attention_mask"]
    if encoder.config.model_type == "aimv2_text_model":
        # It would read texts of one length both ways, and padded ones from left to right, as it was trained.
        inputs["attention_mask"] = _causal(attention_mask, encoder.dtype)
    if role is not None:
        check_takes_embeddings(encoder)
        inputs["inputs_embeds"] = encoder.get_input_embeddings()(inputs.pop("input_ids")) + role
    output = encoder(**inputs, return_dict=True)
    return Encoded(output.last_hidden_state, pool_text(output, output.last_hidden_state, attention_mask, pooling))


def text_ends(attention_mask: Tensor) -> Tensor:
    """Where the text of each row of (texts, length) ends, (texts,) int64: padding on the left counts, 0 has no text."""
    return (attention_mask.bool() * torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)).amax(1)


def _causal(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(texts, length) -> (texts, 1, length, length), to be added to attention scores."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    seen = attention_mask.bool()[:, None, None, :] & (places[:, None] >= places)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def encoded_text(states: Tensor, attention_mask: Tensor, pooling: str) -> Encoded:
    """Pools token states (batch, length, hidden) that were computed before.

    Raises:
        ValueError: The pooling is `pooler`, which is a layer of the encoder and not in its token states.
    """
    if pooling == "pooler":
        raise ValueError("text_pooling 'pooler' needs the text encoder itself; text_states serve every other pooling.")
    return Encoded(states, pool_text(None, states, attention_mask, pooling))


def check_takes_embeddings(encoder: PreTrainedModel) -> None:
    """Raises a ValueError if the text encoder cannot be given token embeddings, to which a role embedding is added."""
    if "inputs_embeds" not in inspect.signature(encoder.forward).parameters:
        raise ValueError(
            f"role_embedding needs a text encoder that takes inputs_embeds, which {type(encoder).__name__} does not; "
            "tell the roles apart with query_prompt and product_prompt instead."
        )


def not_empty(attention_mask: Tensor) -> Tensor:
    """The mask (rows, length) with the first token of each row that has none."""
    # Attention over a row without any token is NaN, so a missing text is encoded as its first token and masked later.
    first = torch.zeros_like(attention_mask)
    first[:, 0] = 1
    return torch.where(attention_mask.any(1, keepdim=True), attention_mask, first)
