"""Classes of encoders: the one that loads a checkpoint, the one of a half by itself, and the part that reads texts."""

import copy
import re
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .remote_code import is_known, remote_class

# A class with something on top of an encoder: BertForMaskedLM, GPT2LMHeadModel …
_ON_TOP = re.compile(r"For[A-Z]\w*$|LMHeadModel$|DoubleHeadsModel$")


class TextPart(NamedTuple):
    """The text encoder of a model.

    Attributes:
        encoder: The encoder.
        prefix: What its weights are called before their own name in the model, `""` or ending in a dot.
        projection: What maps its pooled state into a space shared with photos, if there is such a thing.
    """

    encoder: PreTrainedModel
    prefix: str
    projection: nn.Module | None


def class_of_text(config: PreTrainedConfig) -> Any:
    """The class whose `from_pretrained` loads a text encoder with its projection; None: `AutoModel` finds it."""
    saved_as = (config.architectures or [""])[0]
    if saved_as.endswith(("TextModelWithProjection", "ForImageTextRetrieval")) and hasattr(transformers, saved_as):
        return getattr(transformers, saved_as)
    # Code that comes with the weights is for `AutoModel` to find.
    return encoder_class(config) if is_known(config.model_type) else None


def encoder_class(config: PreTrainedConfig) -> Any:
    """The class of an encoder that `AutoModel` leaves out or takes with its decoder; None: `AutoModel` finds it.

    Raises:
        HubError: transformers has no encoder for the config, and no trusted code comes with it.
    """
    family = type(config).__name__.removesuffix("Config")
    encoder_alone = getattr(transformers, f"{family}EncoderModel", None)
    if encoder_alone is not None:
        return encoder_alone
    if type(config) in transformers.MODEL_MAPPING:
        return None
    return getattr(transformers, f"{family}Model", None) or remote_class(config, "AutoModel")


def without_decoder(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config as that of an encoder by itself, where there is such a class.

    Raises:
        ValueError: It is an encoder-decoder without an encoder class: states of its decoder would stand for a text.
    """
    if not getattr(config, "is_encoder_decoder", False):
        return config
    if not hasattr(transformers, type(config).__name__.removesuffix("Config") + "EncoderModel"):
        raise ValueError(
            f"A {config.model_type!r} model is an encoder-decoder, and transformers has no class for its encoder "
            "alone: states of the decoder would stand for the text. Use an encoder, or a family with an encoder class "
            "(T5, mT5, UMT5, T5Gemma)."
        )
    config = copy.deepcopy(config)
    config.is_encoder_decoder = False
    return config


# Where the text half is not called `text_model`.
_PARTS = {"EmbeddingGemma2Model": "language_model", "BlipForImageTextRetrieval": "text_encoder"}


def text_part(model: PreTrainedModel) -> TextPart:
    """The encoder of texts in a model: its half of a dual encoder, what is below a head, or the model itself.

    Raises:
        ValueError: It is an encoder-decoder without an encoder class.
    """
    prefix, below = "", model.base_model
    if _ON_TOP.search(type(model).__name__) and isinstance(below, PreTrainedModel) and below is not model:
        prefix, model = f"{model.base_model_prefix}.", below
    projection = getattr(model, "text_projection", getattr(model, "text_proj", None))
    projection = projection if isinstance(projection, nn.Module) else None
    name = _PARTS.get(type(model).__name__, "text_model")
    part = getattr(model, name, None)
    if not isinstance(part, nn.Module) or not hasattr(part, "config") or isinstance(model, own_class(part)):
        return TextPart(_encoder_alone(model), prefix, projection)
    if isinstance(part, own_class(part)):
        return TextPart(_encoder_alone(part), f"{prefix}{name}.", projection)
    return TextPart(with_own_class(part, name), prefix, projection)


def _encoder_alone(model: PreTrainedModel) -> PreTrainedModel:
    kind = encoder_class(model.config)
    if kind is None or not kind.__name__.endswith("EncoderModel") or isinstance(model, kind):
        without_decoder(model.config)
        return model
    encoder: PreTrainedModel = kind._from_config(without_decoder(model.config)).to(model.device, model.dtype)
    state = model.state_dict()
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
    return encoder.train(model.training)


def own_class(part: nn.Module) -> Any:
    """The class of a half by itself; it may hold the part of a whole model, as in GroupViT and OWL-ViT."""
    name = type(part.config).__name__.removesuffix("Config") + "Model"
    return getattr(transformers, name, type(part))


def with_own_class(part: nn.Module, name: str) -> PreTrainedModel:
    """The class of a half by itself around the part of a whole model, which it calls `name`."""
    with torch.device("meta"):
        encoder: PreTrainedModel = own_class(part)._from_config(part.config)
    setattr(encoder, name, part)
    return encoder
