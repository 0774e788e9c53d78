"""Pretrained encoders of transformers: loading one, or a half of a dual one, and making one anew from its config."""

import copy
import inspect
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .blip2_mmfusion import HALVES, blip2_half, is_blip2, is_read
from .encoder_classes_mmfusion import class_of_text, encoder_class, text_part, without_decoder
from .errors import HubError, explained
from .remote_code import is_known, remote_class, trusting
from .text_head_mmfusion import Projected, as_head
from .timm_mmfusion import check_timm, is_timm
from .vision_families_mmfusion import trained_pooling, vision_family
from .vision_halves_mmfusion import class_to_load, linear_projection, vision_part
from .weights_mmfusion import fetch_weights, read_weights, refuse_adapter


class Half(NamedTuple):
    """A whole encoder, or one half of a dual one.

    Attributes:
        encoder: The encoder.
        projection: Its projection into the space of a dual encoder, if it has one.
        model_type: That of the whole checkpoint's config.
        missing: Names of weights of the encoder that its checkpoint lacks; they are newly drawn.
        pooling: How its states become one vector, if it is known.
        head: Layers between that vector and the projection, of a text half.
    """

    encoder: PreTrainedModel
    projection: nn.Linear | None
    model_type: str
    missing: frozenset[str]
    pooling: str | None = None
    head: Projected = Projected([], {}, None)


def load_half(
    source: str | PreTrainedModel,
    half: Literal["text", "vision"],
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
) -> Half:
    """Loads an encoder, or the named half of a dual encoder such as CLIP, SigLIP or SigLIP 2.

    Args:
        source: Local folder, Hub id, or a model already in memory (its own modules are returned, not copies).
        half: `"text"` or `"vision"`.
        dtype: Floating-point type of the weights.
        trust_remote_code: Whether code that comes with the weights may run.

    Raises:
        HubError: As for [`read_model`].
        ValueError: A text half would be an encoder-decoder, or transformers has no class for it.
    """
    model, missing = source, frozenset[str]()
    if isinstance(model, PreTrainedModel) and is_blip2(model.config):
        return _blip2_half(type(model).__name__, model.config, model.state_dict(), half, dtype)
    if not isinstance(model, PreTrainedModel):
        config = read_config(model, trust_remote_code=trust_remote_code)
        if is_blip2(config):
            # A language model beside them may be a hundred times as large.
            weights = read_weights(model, lambda name: is_read(name, half))
            return _blip2_half(model, config, weights, half, dtype)
        own = class_to_load(config) if half == "vision" else class_of_text(config)
        if own is not None and own.__name__.endswith("EncoderModel"):
            config = without_decoder(config)
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "model_class": own or AutoModel}
        model, missing = read_model(model, dtype, config=config, **options)
    return _vision_half(model, missing) if half == "vision" else _text_half(source, model, missing)


def _blip2_half(
    source: str, config: PreTrainedConfig, weights: Mapping[str, Tensor], half: Literal["text", "vision"], dtype: Any
) -> Half:
    encoder, projection, missing = blip2_half(source, config, weights, half, dtype)
    pooling = trained_pooling(encoder, encoder, projection is not None, missing) if half == "vision" else None
    return Half(encoder, projection, config.model_type, missing, pooling)


def _text_half(source: str | PreTrainedModel, model: PreTrainedModel, missing: Collection[str]) -> Half:
    part = text_part(model)
    if any(name.startswith("text_projection.") for name in missing):
        raise HubError(f"{source} lacks the weights of its text_projection; fetch or copy the checkpoint again.")
    # Its vectors are those that its loss compares with photos, unlike those of a `BlipModel`.
    pooling = "cls" if type(model).__name__ == "BlipForImageTextRetrieval" else None
    head, own = as_head(part.projection), _below(missing, part.prefix)
    return Half(part.encoder, head.linear, model.config.model_type, own, pooling, head)


def _vision_half(model: PreTrainedModel, missing: Collection[str]) -> Half:
    part = vision_part(model)
    names = {name for name, module in model.named_modules() if module is part.projection}
    if any(name.rpartition(".")[0] in names for name in missing):
        part = part._replace(projection=None)
    own = _below(missing, part.prefix)
    pooling = trained_pooling(model, part.encoder, part.projection is not None, own)
    return Half(part.encoder, linear_projection(part), model.config.model_type, own, pooling)


def _below(names: Collection[str], prefix: str) -> frozenset[str]:
    return frozenset(name.removeprefix(prefix) for name in names if name.startswith(prefix))


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
        if is_timm(fields):
            check_timm(source)
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
    source: str,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
    model_class: type[Any] = AutoModel,
    config: PreTrainedConfig | None = None,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Loads a pretrained model from safetensors.

    Args:
        source: Local folder or Hub id.
        dtype: Floating-point type of the weights.
        trust_remote_code: Whether code that comes with the weights may run.
        model_class: Class to load, if it is not the one that `AutoModel` chooses.
        config: Config to load it with, if it is not the one beside the weights.

    Returns:
        The model, and the names of its weights that the checkpoint lacks.

    Raises:
        HubError: There is no such model, it holds pickles or an adapter, it is damaged or incomplete, or it needs code
            that is not trusted.
    """
    with explained(source):
        refuse_adapter(source, {})
        config = config or read_config(source, trust_remote_code=trust_remote_code)
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
        name = type(source).__name__ if isinstance(source, PreTrainedModel) else source
        raise HubError(
            f"{name} lacks {len(absent)} weights that a {encoder.config.model_type!r} encoder reads, such as "
            f"{absent[0]}; they would be drawn at random. Fetch or copy the checkpoint again, or choose a whole one."
        )


def copy_weights(encoder: PreTrainedModel, source: PreTrainedModel) -> frozenset[str]:
    """Gives an encoder the weights of another of its kind, but for poolers and mask tokens that it has no place for.

    Returns:
        Names of weights of the encoder that the other one lacks.

    Raises:
        ValueError: The other one is of another kind.
    """
    result = encoder.load_state_dict(source.state_dict(), strict=False)
    beside = [name for name in result.unexpected_keys if name.split(".")[0] not in _POOLERS and not _is_mask(name)]
    if beside:
        raise ValueError(
            f"{type(source).__name__} has {beside[0]}, for which {type(encoder).__name__} has no place; give its base "
            "model, the one that AutoModel loads."
        )
    return frozenset(result.missing_keys)


def new_encoder(config: PreTrainedConfig, pooler: bool = False) -> PreTrainedModel:
    """An encoder with new weights, also for halves of dual encoders that `AutoModel` leaves out (SigLIP's text).

    Args:
        config: Of the encoder.
        pooler: Whether its pooler is read, which some classes leave out unless it is asked for.
    """
    if config.model_type in HALVES:
        return HALVES[config.model_type]._from_config(config)
    if config.model_type == "timm_wrapper":
        check_timm(config.architecture)
    if config.model_type == "levit":
        # Its encoder appends to a list in its config, which would never be the same again.
        config = copy.deepcopy(config)
    kind = encoder_class(config)
    if kind is not None:
        encoder: PreTrainedModel = kind._from_config(config)
        return encoder
    chosen: Any = transformers.MODEL_MAPPING[type(config)]
    options: dict[str, Any] = {"trust_remote_code": False}
    if pooler and "add_pooling_layer" in inspect.signature(getattr(chosen, "__init__", chosen)).parameters:
        options["add_pooling_layer"] = True
    return AutoModel.from_config(config, **options)


def freeze_unread(encoder: PreTrainedModel, pooling: str) -> None:
    """Turns gradients off in what no output of ours depends on: it never gets one, which DDP treats as an error."""
    unread = () if pooling == "pooler" else (*_POOLERS, *vision_family(encoder.config).pooled_only)
    for name, value in encoder.named_parameters():
        if _is_mask(name) or name.split(".")[0] in unread or _is_never_run(encoder, name):
            value.requires_grad_(False)


# What encoders call the layers that they apply to their pooled output alone.
_POOLERS = ("pooler", "head")


# BLIP's texts look at photos where they are told of them, and tokens of Longformer at all others: here they never are.
_NEVER_RUN = {"blip_text_model": ".crossattention.", "longformer": "_global."}


def _is_never_run(encoder: PreTrainedModel, name: str) -> bool:
    return _NEVER_RUN.get(encoder.config.model_type, "/") in name


def _is_mask(name: str) -> bool:
    return name.rpartition(".")[2] == "mask_token"


def hidden_size(config: PreTrainedConfig) -> int:
    """Width of a text encoder's token states."""
    if config.model_type in _OWN_PROJECTION:
        return int(getattr(config, _OWN_PROJECTION[config.model_type]))
    if isinstance(getattr(config, "encoder", None), PreTrainedConfig):
        return hidden_size(config.encoder)
    if getattr(config, "hidden_size", None):
        return int(config.hidden_size)
    raise ValueError(
        f"Cannot tell the width of a {config.model_type!r} encoder: its config has no hidden_size. Use an encoder "
        "whose last_hidden_state has a fixed width."
    )


# Text encoders that project every token state, and the field that says how wide.
_OWN_PROJECTION = {"altclip_text_model": "project_dim", "embedding_gemma2_text": "embedding_dim"}
