"""Pretrained encoders of transformers: loading one, or a half of a dual one, and making one anew from its config."""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .errors_mmfusion import HubError, explained
from .remote_code_mmfusion import is_known, remote_class, trusting
from .weights_mmfusion import fetch_weights, refuse_adapter


class Half(NamedTuple):
    """A whole encoder, or one half of a dual one.

    Attributes:
        encoder: The encoder.
        projection: Its projection, if it has one.
        missing: Names of weights of the encoder that its checkpoint lacks; they are newly drawn.
    """

    encoder: PreTrainedModel
    projection: nn.Linear | None
    missing: frozenset[str]


def load_half(source: str | PreTrainedModel, half: str, dtype: torch.dtype, *, trust_remote_code: bool = False) -> Half:
    """Loads an encoder, or the named half of a dual encoder such as CLIP, SigLIP or SigLIP 2.

    Args:
        source: Local folder, Hub id, or a model already in memory (its own modules are returned, not copies).
        half: `"text"` or `"vision"`.
        dtype: Floating-point type of the weights.
        trust_remote_code: Whether code that comes with the weights may run.

    Raises:
        HubError: As for [`read_model`].
    """
    model, missing = (
        (source, frozenset[str]())
        if isinstance(source, PreTrainedModel)
        else read_model(source, dtype, trust_remote_code=trust_remote_code)
    )
    encoder = getattr(model, f"{half}_model", model)
    projection = getattr(model, {"text": "text_projection", "vision": "visual_projection"}[half], None)
    prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if module is encoder)
    own = frozenset(name.removeprefix(prefix) for name in missing if name.startswith(prefix))
    return Half(encoder, projection if isinstance(projection, nn.Linear) else None, own)


def read_config(source: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of an encoder. Code of transformers goes before code that comes with the weights.

    Args:
        source: Local folder or Hub id.
        trust_remote_code: Whether code that comes with the weights may run.

    Raises:
        HubError: There is none, it cannot be read, or it needs code that is not trusted.
    """
    with explained(source):
        fields, _ = PreTrainedConfig.get_config_dict(source)
        name = fields.get("model_type")
        if name is not None and not is_known(name):
            with trusting(source, trust_remote_code):
                # Says in one line what transformers says in many.
                remote_class(fields, "AutoConfig", where=source)
            return AutoConfig.from_pretrained(source, trust_remote_code=True)
        try:
            return AutoConfig.from_pretrained(source, trust_remote_code=False)
        except ValueError as error:
            if name is None:
                raise HubError(f"{source} has no config.json that names a model_type; check the folder.") from error
            raise


def read_model(
    source: str, dtype: torch.dtype, *, trust_remote_code: bool = False, model_class: type[Any] = AutoModel
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Loads a pretrained model from safetensors.

    Args:
        source: Local folder or Hub id.
        dtype: Floating-point type of the weights.
        trust_remote_code: Whether code that comes with the weights may run.
        model_class: Class to load, if it is not the one that `AutoModel` chooses.

    Returns:
        The model, and the names of its weights that the checkpoint lacks.

    Raises:
        HubError: There is no such model, it holds pickles or an adapter, it is damaged or incomplete, or it needs code
            that is not trusted.
    """
    with explained(source):
        refuse_adapter(source, {})
        config = read_config(source, trust_remote_code=trust_remote_code)
        fetch_weights(source, {})
        trusts = trust_remote_code and not is_known(config.model_type)
        loaded: Any = model_class.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **({"trust_remote_code": trusts} if model_class is AutoModel else {}),
        )
    model, info = loaded
    return model, frozenset(info["missing_keys"])


def check_complete(source: str | PreTrainedModel, encoder: PreTrainedModel, missing: Collection[str]) -> None:
    """Raises an error if a checkpoint lacks weights that are read.

    Args:
        source: Where the encoder comes from.
        encoder: The encoder after [`freeze_unread`]: parameters without gradients are never read.
        missing: Names of weights of the encoder that its checkpoint lacks.

    Raises:
        HubError: It lacks some.
    """
    unread = {name for name, value in encoder.named_parameters() if not value.requires_grad}
    absent = sorted(set(missing) - unread)
    if absent:
        raise HubError(
            f"{source} lacks {len(absent)} weights that a {encoder.config.model_type!r} encoder reads, such as "
            f"{absent[0]}; they would be drawn at random. Fetch or copy the checkpoint again, or choose a whole one."
        )


def new_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder with new weights, also for halves of dual encoders that `AutoModel` leaves out (SigLIP's text)."""
    if type(config) in transformers.MODEL_MAPPING:
        return AutoModel.from_config(config, trust_remote_code=False)
    own_class = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    if own_class is None:
        own_class = remote_class(config, "AutoModel")
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
