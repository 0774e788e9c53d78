"""Pretrained encoders of transformers: loading one, or a half of a dual one, with what its checkpoint says of it."""

import copy
import inspect
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .blip2 import HALVES, blip2_half, is_read
from .configuration_mmfusion import TEXT_POOLINGS
from .errors import HubError, explained
from .families import (
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
    trained_pooling,
    vision_family,
)
from .heads import evaluating, head_size, take_apart
from .remote_code import is_known, remote_class
from .sentence_transformers_folder import read_sentence_encoder
from .text_encoders import encode_text
from .text_tokenizers import end_token
from .weights import check_no_adapter, check_timm, fetch_weights, read_config, read_weights

logger = logging.getLogger(__name__)

# A class with something on top of an encoder: BertForMaskedLM, GPT2LMHeadModel …
_ON_TOP = re.compile(r"For[A-Z]\w*$|LMHeadModel$|DoubleHeadsModel$")
# Classes with weights of a half that the class chosen by AutoModel drops, or without the other half.
_READ_WHOLE = {
    "text": ("TextModelWithProjection", "ForImageTextRetrieval"),
    "vision": ("VisionModelWithProjection", "ForImageClassification", "ForImageTextRetrieval"),
}
# Where the text half is not called `text_model`.
_TEXT_PARTS = {"EmbeddingGemma2Model": "language_model", "BlipForImageTextRetrieval": "text_encoder"}
_VISION_PARTS = ("vision_model", "image_model", "vision_tower")
_PROJECTIONS = {
    "text": ("text_projection", "text_proj"),
    "vision": ("visual_projection", "image_projection", "vision_projection", "vision_proj"),
}
# What encoders call the layers that they apply to their pooled output alone.
_POOLERS = ("pooler", "head")
# BLIP's texts look at photos where they are told of them, and tokens of Longformer at all others: here they never are.
_NEVER_RUN = {"blip_text_model": ".crossattention.", "longformer": "_global."}
# Text encoders that project every token state, and the field that says how wide.
_OWN_PROJECTION = {"altclip_text_model": "project_dim", "embedding_gemma2_text": "embedding_dim"}
# 1 - cosine of vectors of one text; rounding alone stays far below.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-5}
_HALF_TOLERANCE = 1e-2

HalfName = Literal["text", "vision"]


class Part(NamedTuple):
    """The encoder of one modality in a model.

    Attributes:
        encoder: The encoder.
        prefix: What its weights are called before their own name in the model, `""` or ending in a dot.
        projection: The layer that maps its pooled state into a space shared by texts and photos, if there is one.
    """

    encoder: PreTrainedModel
    prefix: str
    projection: nn.Module | None


def class_to_load(config: PreTrainedConfig, half: HalfName) -> Any:
    """The class whose `from_pretrained` loads a half with its projection; None: `AutoModel` finds it."""
    saved_as = (config.architectures or [""])[0]
    if saved_as.endswith(_READ_WHOLE[half]) and not saved_as.startswith("TimmWrapper"):
        found = getattr(transformers, saved_as, None)
        if found is not None or half == "vision":
            return found
    # Code that comes with the weights is for `AutoModel` to find.
    return encoder_class(config) if half == "text" and is_known(config.model_type) else None


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
        ValueError: It is an encoder-decoder without an encoder class: states of its decoder would represent a text.
    """
    if not getattr(config, "is_encoder_decoder", False):
        return config
    if not hasattr(transformers, type(config).__name__.removesuffix("Config") + "EncoderModel"):
        raise ValueError(
            f"A {config.model_type!r} model is an encoder-decoder, and transformers has no class for its encoder "
            "alone: states of the decoder would represent the text. Use an encoder, or a family with an encoder class "
            "(T5, mT5, UMT5, T5Gemma)."
        )
    config = copy.deepcopy(config)
    config.is_encoder_decoder = False
    return config


def text_part(model: PreTrainedModel) -> Part:
    """The encoder of texts in a model: its half of a dual encoder, what is below a head, or the model itself.

    Raises:
        ValueError: It is an encoder-decoder without an encoder class.
    """
    prefix, below = "", model.base_model
    if _ON_TOP.search(type(model).__name__) and isinstance(below, PreTrainedModel) and below is not model:
        prefix, model = f"{model.base_model_prefix}.", below
    part = _part_of(model, "text", [_TEXT_PARTS.get(type(model).__name__, "text_model")])
    return part._replace(encoder=_encoder_alone(part.encoder), prefix=prefix + part.prefix)


def vision_part(model: PreTrainedModel) -> Part:
    """The vision encoder in a model: its half of a dual encoder, what is below a head, or the model itself."""
    part = _part_of(model, "vision", _VISION_PARTS)
    if part.encoder is not model:
        return part
    # Of some base models the prefix names a part of themselves.
    known: Any = transformers.MODEL_MAPPING.get(type(model.config), ())
    base = model if isinstance(model, known) else model.base_model
    if base is model or not isinstance(base, PreTrainedModel):
        return Part(model, "", None)
    below = vision_part(base)
    return below._replace(prefix=f"{model.base_model_prefix}.{below.prefix}")


def _part_of(model: PreTrainedModel, half: HalfName, names: Sequence[str]) -> Part:
    layers = (getattr(model, name, None) for name in _PROJECTIONS[half])
    projection = next((layer for layer in layers if isinstance(layer, nn.Module)), None)
    for name in names:
        part: Any = getattr(model, name, None)
        if not isinstance(part, nn.Module) or not hasattr(part, "config"):
            continue
        # The class of a half by itself may hold the part of a whole model, as in GroupViT and OWL-ViT.
        own: Any = getattr(transformers, type(part.config).__name__.removesuffix("Config") + "Model", type(part))
        if isinstance(model, own):
            continue
        if isinstance(part, own):
            return Part(part, f"{name}.", projection)
        with torch.device("meta"):
            encoder = own._from_config(part.config)
        setattr(encoder, name, part)
        return Part(encoder, "", projection)
    return Part(model, "", projection)


def _encoder_alone(model: PreTrainedModel) -> PreTrainedModel:
    kind = encoder_class(model.config)
    if kind is None or not kind.__name__.endswith("EncoderModel") or isinstance(model, kind):
        without_decoder(model.config)
        return model
    encoder: PreTrainedModel = kind._from_config(without_decoder(model.config)).to(model.device, model.dtype)
    state = model.state_dict()
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
    return encoder.train(model.training)


class Half(NamedTuple):
    """A whole encoder, or one half of a dual one.

    Attributes:
        encoder: The encoder.
        projection: Its projection into the space of a dual encoder, if it has one.
        model_type: That of the whole checkpoint's config.
        missing: Names of weights of the encoder that its checkpoint lacks; they are newly drawn.
        pooling: How its states become one vector, if it is known.
        layers: Layers between that vector and the projection, as `MMFusionConfig.text_head`; of a text half.
        weights: Those of the layers, by the names of a `TextHead`.
    """

    encoder: PreTrainedModel
    projection: nn.Linear | None
    model_type: str
    missing: frozenset[str]
    pooling: str | None = None
    layers: Sequence[Mapping[str, Any]] = ()
    weights: Mapping[str, Tensor] = MappingProxyType({})


def load_half(
    source: str | PreTrainedModel, half: HalfName, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> Half:
    """Loads an encoder, or the named half of a dual encoder such as CLIP, SigLIP or SigLIP 2, from safetensors.

    Args:
        source: Local folder, Hub id, or a model already in memory (its own modules are returned, not copies).
        half: `"text"` or `"vision"`.
        dtype: Floating-point type of the weights.
        trust_remote_code: Whether code that comes with the weights may run.

    Raises:
        HubError: There is no such model, it holds pickles or an adapter, it is damaged or incomplete, or it needs code
            that is not trusted.
        ValueError: A text half would be an encoder-decoder, or transformers has no class for it.
    """
    if isinstance(source, PreTrainedModel):
        model, missing = source, frozenset[str]()
        if model.config.model_type == "blip-2":
            return _blip2_half(type(model).__name__, model.config, model.state_dict(), half, dtype)
    else:
        config = read_config(source, trust_remote_code=trust_remote_code)
        if config.model_type == "blip-2":
            # A language model next to them may be a hundred times as large.
            return _blip2_half(source, config, read_weights(source, lambda name: is_read(name, half)), half, dtype)
        own = class_to_load(config, half)
        if own is not None and own.__name__.endswith("EncoderModel"):
            config = without_decoder(config)
        options: dict[str, Any] = {"config": config, "dtype": dtype, "use_safetensors": True}
        if own is None:
            options["trust_remote_code"] = trust_remote_code and not is_known(config.model_type)
        with explained(source):
            check_no_adapter(source, {})
            fetch_weights(source, {})
            model, info = (own or AutoModel).from_pretrained(source, output_loading_info=True, **options)
        missing = frozenset(info["missing_keys"])
    part = text_part(model) if half == "text" else vision_part(model)
    absent = frozenset(name.removeprefix(part.prefix) for name in missing if name.startswith(part.prefix))
    if half == "text":
        if any(name.startswith("text_projection.") for name in missing):
            raise HubError(f"{source} lacks the weights of its text_projection; fetch or copy the checkpoint again.")
        # Its vectors are those that its loss compares with photos, unlike those of a `BlipModel`.
        pooling = "cls" if type(model).__name__ == "BlipForImageTextRetrieval" else None
    else:
        names = {name for name, module in model.named_modules() if module is part.projection}
        if any(name.rpartition(".")[0] in names for name in missing):
            part = part._replace(projection=None)
        pooling = trained_pooling(model, part.encoder, part.projection is not None, absent)
    layers, weights, linear = take_apart(part.projection, half)
    return Half(part.encoder, linear, model.config.model_type, absent, pooling, layers, weights)


def _blip2_half(
    source: str, config: PreTrainedConfig, weights: Mapping[str, Tensor], half: HalfName, dtype: torch.dtype
) -> Half:
    encoder, projection, missing = blip2_half(source, config, weights, half, dtype)
    pooling = trained_pooling(encoder, encoder, projection is not None, missing) if half == "vision" else None
    return Half(encoder, projection, config.model_type, missing, pooling)


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
    """Gives an encoder the weights of another of its kind, except for poolers and mask tokens that it has no place for.

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
        return kind._from_config(config)
    chosen: Any = transformers.MODEL_MAPPING[type(config)]
    options: dict[str, Any] = {"trust_remote_code": False}
    if pooler and "add_pooling_layer" in inspect.signature(getattr(chosen, "__init__", chosen)).parameters:
        options["add_pooling_layer"] = True
    return AutoModel.from_config(config, **options)


def freeze_unread(encoder: PreTrainedModel, pooling: str) -> None:
    """Turns gradients off in what no output of ours depends on: it never gets one, which DDP treats as an error."""
    unread = () if pooling == "pooler" else (*_POOLERS, *vision_family(encoder.config).pooled_only)
    never_run = _NEVER_RUN.get(encoder.config.model_type, "/")
    for name, value in encoder.named_parameters():
        if _is_mask(name) or name.split(".")[0] in unread or never_run in name:
            value.requires_grad_(False)


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


def load_text(
    source: str | PreTrainedModel, dtype: torch.dtype, given: Mapping[str, Any], *, trust_remote_code: bool = False
) -> tuple[Half, dict[str, Any]]:
    """Loads a text encoder, and finds out how its checkpoint pools, projects and prompts.

    Args:
        source: As for `load_half`.
        dtype: Floating-point type of the weights.
        given: Fields of the configuration that are decided already.
        trust_remote_code: Whether code that comes with the encoder may run.

    Returns:
        The encoder, and the given fields with those that follow from the checkpoint.

    Raises:
        ValueError: The encoder cannot be a tower: it is an encoder-decoder, its vectors change from call to call or
            with the batch, or its folder says what has no counterpart here.
    """
    said = None if isinstance(source, PreTrainedModel) else read_sentence_encoder(source)
    folder = source if said is None else said.folder
    half = load_half(folder, "text", dtype, trust_remote_code=trust_remote_code)
    encoder, config = half.encoder, half.encoder.config
    if isinstance(folder, str) and is_legacy_end(config):
        # With the wrong one, a token that was added to the tokenizer would be taken for the end of a text.
        end = end_token(folder, trust_remote_code=trust_remote_code)
        if end is not None:
            config.eos_token_id = end
            encoder.eos_token_id = end  # type: ignore[assignment]
    fields: dict[str, Any] = {"text_head": half.layers} if half.layers else {}
    if said is not None:
        fields = {"query_prompt": said.query_prompt, "product_prompt": said.product_prompt, "text_head": said.head}
        # The checkpoint's own layers come in place of another projection.
        half = half._replace(
            pooling=said.pooling or half.pooling,
            projection=None if said.head else half.projection,
            layers=said.head,
            weights=said.weights,
        )
    fields |= given
    if "text_pooling" not in fields:
        fields["text_pooling"] = _trained_text_pooling(half)
    if fields["text_pooling"] in TEXT_POOLINGS:
        check_text_encoder(encoder, fields["text_pooling"])
    width = head_size(fields.get("text_head", []), pooled_size(config, fields["text_pooling"], hidden_size(config)))
    fields.setdefault("embedding_dim", width if half.projection is None else half.projection.out_features)
    return half, fields


def _trained_text_pooling(half: Half) -> str:
    """The pooling that a checkpoint was trained with; where it does not say, `mean`, with a warning."""
    if half.pooling is not None:
        return half.pooling
    config = half.encoder.config
    family = text_family(half.model_type, config.model_type)
    if family is None:
        with _one_line_errors(half.encoder), evaluating(half.encoder):
            last = is_left_to_right(half.encoder)
        family = LEFT_TO_RIGHT if last else BOTH_WAYS if is_decoder(config) else UNKNOWN
    if family is UNKNOWN:
        logger.warning(
            "The checkpoint does not say how a %r encoder was trained to make one vector of a text; text_pooling is "
            "'mean'. If it was another, as its card says, give text_pooling: %s.",
            config.model_type,
            ", ".join(TEXT_POOLINGS),
        )
    return family.pooling


@torch.no_grad()
def check_text_encoder(encoder: PreTrainedModel, pooling: str) -> None:
    """Embeds a short text twice, and once more next to a longer one.

    Raises:
        ValueError: The vectors differ by more than rounding, or the encoder cannot embed token ids at all.
    """
    with _one_line_errors(encoder), evaluating(encoder):
        alone, beside = _probes(encoder)
        first, again = (_embed(encoder, alone, pooling) for _ in range(2))
        padded = _embed(encoder, beside, pooling)
    tolerance = _TOLERANCES.get(encoder.dtype, _HALF_TOLERANCE)
    for other, when in ((again, "from call to call"), (padded[:1], "with the texts next to it, and so with padding")):
        distance = float(1 - F.cosine_similarity(first.double(), other.double()).min())
        # Written so that a NaN is an error, too.
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
    """A short text by itself, and next to a longer one; both end as the encoder expects."""
    config = encoder.config
    size = len(encoder.get_input_embeddings().weight)  # type: ignore[arg-type]
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "cls", "sep", "mask")}
    words = [token for token in range(min(size - 1, 200)) if token not in special] or [0]
    end = text_end(config)
    ends: list[int] = [] if end is None else [config.eos_token_id if end == "end token" else size - 1]
    limit = min(max_tokens(config) or 12, 12)
    short, long = ([words[(7 * place + 3) % len(words)] for place in range(count)] for count in (3, limit - 1))
    return [short + ends], [short + ends, long + ends]


@contextmanager
def _one_line_errors(encoder: PreTrainedModel) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Each family has its own.
        line = str(error).partition("\n")[0]
        raise ValueError(
            f"{type(encoder).__name__} does not turn token ids into states and a pooled vector "
            f"({type(error).__name__}: {line}); use a text encoder, or another text_pooling."
        ) from error
