"""Pretrained encoders of transformers: loading one, or a half of a dual one, and making one anew from its config."""

from typing import NamedTuple

import torch
import transformers
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel


class Half(NamedTuple):
    """A whole encoder or one half of a dual one: the `encoder`, and its projection if it has one."""

    encoder: PreTrainedModel
    projection: nn.Linear | None


def load_half(source: str | PreTrainedModel, half: str, dtype: torch.dtype) -> Half:
    """Loads an encoder, or the named half of a dual encoder such as CLIP, SigLIP or SigLIP 2.

    Args:
        source: Local folder, Hub id, or a model already in memory (its own modules are returned, not copies).
        half: `"text"` or `"vision"`.
        dtype: Floating-point type of the weights.
    """
    model = source if isinstance(source, PreTrainedModel) else AutoModel.from_pretrained(source, dtype=dtype)
    encoder = getattr(model, f"{half}_model", model)
    projection = getattr(model, {"text": "text_projection", "vision": "visual_projection"}[half], None)
    return Half(encoder, projection if isinstance(projection, nn.Linear) else None)


def new_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder with new weights, also for halves of dual encoders that `AutoModel` leaves out (SigLIP's text)."""
    if type(config) in transformers.MODEL_MAPPING:
        return AutoModel.from_config(config)
    own_class = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    if own_class is None:
        raise ValueError(
            f"transformers has no encoder for a {config.model_type!r} config; use an encoder that it knows."
        )
    return own_class._from_config(config)


def freeze_unread(encoder: PreTrainedModel, pooling: str) -> None:
    """Turns gradients off in what no output of ours depends on: it never gets one, which DDP treats as an error."""
    for name, value in encoder.named_parameters():
        if name.rpartition(".")[2] == "mask_token":
            value.requires_grad_(False)
    if pooling == "pooler":
        return
    names = ["pooler", "head", *_POOLED_ONLY.get(encoder.config.model_type, ())]
    for module in (getattr(encoder, name, None) for name in names):
        if isinstance(module, nn.Module):
            module.requires_grad_(False)


# Norms that an encoder applies to its pooled output alone, beside `pooler` and `head`.
_POOLED_ONLY = {
    "clip_vision_model": ("post_layernorm",),
    "convnext": ("layernorm",),
    "convnextv2": ("layernorm",),
    "dinov3_convnext": ("layer_norm",),
}


def hidden_size(config: PreTrainedConfig) -> int:
    """Width of an encoder's token states, for transformers and for convolutional backbones."""
    if config.model_type == "mobilenet_v2":
        return _mobilenet_v2_width(config)
    if getattr(config, "hidden_sizes", None):
        return int(config.hidden_sizes[-1])
    if getattr(config, "hidden_size", None):
        return int(config.hidden_size)
    raise ValueError(
        f"Cannot tell the width of a {config.model_type!r} encoder: its config has neither hidden_size nor "
        "hidden_sizes. Use an encoder whose last_hidden_state has a fixed width."
    )


def _mobilenet_v2_width(config: PreTrainedConfig) -> int:
    if config.finegrained_output and config.depth_multiplier < 1.0:
        return 1280
    scaled = 1280 * config.depth_multiplier
    divisor = config.depth_divisible_by
    rounded = max(config.min_depth, int(scaled + divisor / 2) // divisor * divisor)
    return int(rounded + divisor if rounded < 0.9 * scaled else rounded)
