"""What is known of families of encoders: how they pool, how wide and how long they are, and how texts end."""

import logging
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)


class Family(NamedTuple):
    """What is known of the encoders of some model types.

    Attributes:
        model_types: `model_type` of their configs; of text encoders, that of the whole checkpoint or of its text half.
        pooling: How states become one vector, one of `TEXT_POOLINGS` or `IMAGE_POOLINGS`: the default of new models.
        why: One line for readers: what that vector is.
        prefix: States before those of the patches (class tokens), not counting registers, which a config names.
        without_pooler: The pooling where `pooling` is `pooler` and a checkpoint lacks the pooler or its weights.
        classifier: The pooling of a checkpoint that was trained further as a `…ForImageClassification`, if another.
        pooled_only: Layers, other than `pooler` and `head`, that the encoder applies to its pooled output alone.
    """

    model_types: tuple[str, ...]
    pooling: str
    why: str
    prefix: int = 0
    without_pooler: str = "mean"
    classifier: str | None = None
    pooled_only: tuple[str, ...] = ()


# The table of docs, too.
TEXT_FAMILIES: tuple[Family, ...] = (
    Family(
        ("clip", "clip_text_model", "metaclip_2", "metaclip_2_text_model", "aimv2", "aimv2_text_model"),
        "pooler",
        "the state of the end token, as in training with photos; then the checkpoint's own projection",
    ),
    Family(
        ("clipseg", "clipseg_text_model", "groupvit", "groupvit_text_model", "xclip", "xclip_text_model"),
        "pooler",
        "a CLIP text encoder: the state of the end token; then the checkpoint's own projection",
    ),
    Family(
        ("owlvit", "owlvit_text_model", "owlv2", "owlv2_text_model"),
        "pooler",
        "a CLIP text encoder: the state of the token with the highest id, which ends a text",
    ),
    Family(
        ("siglip", "siglip_text_model", "siglip2", "siglip2_text_model"),
        "pooler",
        "its head over the last position of a text padded to full length",
    ),
    Family(("tipsv2", "tipsv2_text_model"), "pooler", "the mean over tokens, as its own head takes it"),
    Family(
        ("chinese_clip", "chinese_clip_text_model", "align", "align_text_model", "flava", "flava_text_model"),
        "cls",
        "the first token's state; then the checkpoint's own projection",
    ),
    Family(
        ("altclip", "altclip_text_model"),
        "cls",
        "the first token's state after the encoder's own transformation; then the checkpoint's own projection",
    ),
    Family(
        ("vision-text-dual-encoder", "blip", "blip_text_model"),
        "pooler",
        "the pooler's output, which the checkpoint's own projection was trained on",
    ),
    Family(
        ("t5", "mt5", "umt5", "longt5", "switch_transformers", "t5gemma"),
        "mean",
        "the encoder half alone; it has no token that represents the text, and sentence-t5 and gtr-t5 are averaged",
    ),
    Family(
        ("embedding_gemma2", "embedding_gemma2_text", "nomic_bert", "jina_embeddings_v3"),
        "mean",
        "an embedder that was trained with the mean over tokens",
    ),
    Family(
        ("blip-2", "blip_2_qformer"),
        "cls",
        "the first token's state of the Q-Former's text side; then the checkpoint's own projection",
    ),
    Family(("gte",), "cls", "an embedder that was trained with its first token"),
)

_TEXT_FAMILY_OF = {name: family for family in TEXT_FAMILIES for name in family.model_types}


def text_family(*model_types: str) -> Family | None:
    """The family of the first type that is in the table; None: none is."""
    return next((_TEXT_FAMILY_OF[name] for name in model_types if name in _TEXT_FAMILY_OF), None)


# Of encoders in none of these rows, what they do with a text decides.
LEFT_TO_RIGHT = Family((), "last", "reads from left to right, so that the last token alone has seen the whole text")
BOTH_WAYS = Family((), "mean", "a decoder that was made to read both ways, which embedders are averaged over")
UNKNOWN = Family((), "mean", "not known: the checkpoint does not say, and a warning does")


# Encoders whose pooled state is that of the first end token, by their config's eos_token_id …
_END_TOKEN = ("clip_text_model", "clipseg_text_model", "groupvit_text_model", "xclip_text_model")
_END_TOKEN_ALONE = ("metaclip_2_text_model", "aimv2_text_model")
# … or of the token with the highest id. The former do so as well if the config has the end token that all of them had
# before transformers 4.31, which was wrong.
_HIGHEST_ID = ("owlvit_text_model", "owlv2_text_model")
LEGACY_END = 2


def text_end(config: PreTrainedConfig) -> Literal["end token", "highest id"] | None:
    """By what an encoder finds the state that represents a text; None: not by a token."""
    if config.model_type in _HIGHEST_ID or is_legacy_end(config):
        return "highest id"
    return "end token" if config.model_type in (*_END_TOKEN, *_END_TOKEN_ALONE) else None


def is_legacy_end(config: PreTrainedConfig) -> bool:
    """Whether the config has the wrong end token of old checkpoints."""
    return config.model_type in _END_TOKEN and config.eos_token_id == LEGACY_END


# Their position 0 is that of the token after the padding id.
_POSITIONS_AFTER_PADDING = (
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "xmod", "roberta-prelayernorm"),
    *("data2vec-text", "ibert", "altclip_text_model", "luke", "markuplm", "lilt", "esm"),
)
# Positions that these count are those of training, not the most that they take.
_RELATIVE_POSITIONS = ("t5", "mt5", "umt5", "longt5", "switch_transformers", "xlnet")


def max_tokens(config: PreTrainedConfig) -> int | None:
    """The longest text, in tokens, that a text encoder has positions for; None: any length."""
    sized = config.encoder if isinstance(getattr(config, "encoder", None), PreTrainedConfig) else config
    positions = getattr(sized, "max_position_embeddings", None)
    if config.model_type in _RELATIVE_POSITIONS or not isinstance(positions, int) or positions < 1:
        return None
    if config.model_type in _POSITIONS_AFTER_PADDING:
        return positions - int(config.pad_token_id or 0) - 1
    return positions


def pads_to_full_length(config: PreTrainedConfig) -> bool:
    """Whether the encoder was trained on texts padded to full length, and without a mask: SigLIP."""
    return config.model_type in ("siglip_text_model", "siglip2_text_model")


def pooled_size(config: PreTrainedConfig, pooling: str, states: int) -> int:
    """Width of the pooled vector of an encoder whose token states are `states` wide."""
    own_head = pooling == "pooler" and pads_to_full_length(config)
    return int(config.projection_size) if own_head else states


def is_decoder(config: PreTrainedConfig) -> bool:
    """Whether models of this kind generate texts, token by token, and were not made to fill gaps."""
    kind = type(config)
    fills_gaps = kind in transformers.MODEL_FOR_MASKED_LM_MAPPING
    return kind in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and not fills_gaps


@torch.no_grad()
def is_left_to_right(encoder: PreTrainedModel) -> bool:
    """Whether a token's state ignores the tokens after it: shown to the encoder, in evaluation mode."""
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]], device=encoder.device) % max(2, encoder.config.vocab_size)
    states = encoder(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True).last_hidden_state.float()
    return bool(torch.allclose(states[0, :3], states[1, :3], rtol=1e-3, atol=1e-3))


# The table of docs, too.
VISION_FAMILIES: tuple[Family, ...] = (
    Family(
        (
            *("clip_vision_model", "metaclip_2_vision_model", "chinese_clip_vision_model", "altclip_vision_model"),
            *("clipseg_vision_model", "owlvit_vision_model", "owlv2_vision_model"),
        ),
        "pooler",
        "the normalised class token, as in training with texts; then the checkpoint's own projection",
        prefix=1,
        classifier="patches",
        pooled_only=("post_layernorm",),
    ),
    Family(
        ("siglip_vision_model", "siglip2_vision_model", "aimv2_vision_model"),
        "pooler",
        "its attention pooling head, as in training with texts",
        classifier="mean",
    ),
    Family(
        ("align_vision_model", "groupvit_vision_model"), "pooler", "the mean over positions, as in training with texts"
    ),
    Family(
        ("flava_image_model",), "cls", "the class token, as in training with texts; then its own projection", prefix=1
    ),
    Family(
        ("blip_vision_model",), "cls", "the class token, as in training with texts; then its own projection", prefix=1
    ),
    Family(("tipsv2_vision_model",), "pooler", "the class token, as in training with texts", prefix=1),
    Family(("vit", "vit_msn", "pvt"), "cls", "the class token, as its classifier reads it", prefix=1),
    Family(("deit",), "cls", "the class token, as its classifier reads it", prefix=2),
    Family(("vit_mae",), "cls", "the class token, as its authors probe it", prefix=1),
    Family(
        ("dinov2", "dinov2_with_registers", "dinov3_vit", "sapiens2"),
        "cls",
        "the class token, which self-distillation trained",
        prefix=1,
    ),
    Family(
        ("dinov3_convnext",),
        "pooler",
        "the mean over positions, which self-distillation trained",
        prefix=1,
    ),
    Family(("pixio",), "pooler", "the mean over its class tokens", prefix=8),
    Family(
        ("mlcd_vision_model",),
        "pooler",
        "the normalised class token, which telling clusters apart trained",
        prefix=1,
        pooled_only=("post_layernorm",),
    ),
    Family(
        ("beit", "data2vec-vision"),
        "pooler",
        "the mean over patches or the class token, as its config says and its classifier reads it",
        prefix=1,
        without_pooler="patches",
    ),
    Family(("ijepa",), "mean", "the mean over patches, as its classifier reads it; it has no class token"),
    Family(
        ("convnext", "convnextv2"),
        "pooler",
        "the normalised mean over positions, as its classifier reads it",
        pooled_only=("layernorm",),
    ),
    Family(
        (
            *("swin", "swinv2", "donut-swin", "dinat", "focalnet", "hiera", "levit"),
            *("resnet", "regnet", "bit", "efficientnet", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2"),
        ),
        "pooler",
        "the mean over positions, as its classifier reads it",
    ),
    Family(
        ("pvt_v2", "poolformer", "swiftformer", "segformer", "textnet", "imagegpt"),
        "mean",
        "the mean over positions, as its classifier reads it",
    ),
    Family(
        ("blip-2",),
        "mean",
        "the mean over the Q-Former's query tokens, then its own projection; its score takes the nearest to a text",
    ),
    Family(("timm_wrapper",), "pooler", "what timm's own classifier reads"),
)

_VISION_FAMILY_OF = {name: family for family in VISION_FAMILIES for name in family.model_types}
# Without its head a checkpoint was never trained to give one vector.
_WITH_HEAD = ("siglip_vision_model", "siglip2_vision_model", "aimv2_vision_model")


_UNKNOWN = Family((), "mean", "not known")


def vision_family(config: PreTrainedConfig) -> Family:
    """What is known of an encoder's family; for one that is not in the table, a mean and no more."""
    return _VISION_FAMILY_OF.get(config.model_type, _UNKNOWN)


def prefix_tokens(config: PreTrainedConfig) -> int:
    """Number of states before those of the patches: class tokens and registers."""
    if config.model_type == "pixio":
        return int(config.n_cls_tokens)
    return vision_family(config).prefix + int(getattr(config, "num_register_tokens", None) or 0)


def trained_pooling(model: PreTrainedModel, encoder: PreTrainedModel, dual: bool, missing: Collection[str]) -> str:
    """The pooling that a vision encoder was trained with; a warning is logged where it cannot be known.

    Args:
        model: The model that the encoder was found in, or the encoder itself.
        encoder: The encoder.
        dual: Whether its pooled state goes through a projection of a dual encoder.
        missing: Names of its weights that the checkpoint lacks.
    """
    family = vision_family(encoder.config)
    pooler = _has_pooler(encoder, missing)
    if family is _UNKNOWN:
        pooling = "pooler" if dual and pooler else "mean"
        if not dual:
            _warn(encoder, "mmfusion does not know its family", pooling)
        return pooling
    if encoder.config.model_type == "blip-2":
        reason = (
            "its score takes, of the query tokens of a photo, the one nearest to a text, which is not a vector of it"
        )
        choices = "'mean' or 'cls' (the first query token)"
        _warn(encoder, reason if dual else "it was trained on to generate texts", family.pooling, choices)
        return family.pooling
    if type(model).__name__.endswith("ForImageClassification") and family.classifier:
        return family.classifier
    if dual and pooler and family.pooling == "cls" and not _reads_class_token(model):
        return "pooler"
    if family.pooling != "pooler" or pooler:
        return family.pooling
    if encoder.config.model_type in _WITH_HEAD:
        _warn(encoder, f"its checkpoint lacks {family.why}", family.without_pooler)
    return family.without_pooler


def _reads_class_token(model: PreTrainedModel) -> bool:
    return type(model).__name__.startswith("Flava") or type(model).__name__.endswith("ForImageTextRetrieval")


def _has_pooler(encoder: PreTrainedModel, missing: Collection[str]) -> bool:
    if any(name.startswith(("pooler.", "head.")) for name in missing):
        return False
    named: dict[str, Any] = dict(encoder.named_children())
    # Of the families with a head some leave it out by a switch in their config; others pool without any layer.
    if "pooler" in vars(encoder) or "pooler" in named:
        return named.get("pooler") is not None
    return bool(getattr(encoder, "use_head", True))


_CHOICES = "'mean', 'patches' (without class tokens), 'cls' or 'pooler'"


def _warn(encoder: PreTrainedModel, reason: str, pooling: str, choices: str = _CHOICES) -> None:
    logger.warning(
        "How %s makes one vector of a photo cannot be known: %s. image_pooling is %r; if it was trained otherwise, "
        "set it to %s.",
        type(encoder).__name__,
        reason,
        pooling,
        choices,
    )
