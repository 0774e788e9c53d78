"""How each family of vision encoders was trained to make one vector of a photo: the one place that says so."""

import logging
from collections.abc import Collection
from typing import Any, NamedTuple

from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger("mmfusion")


class VisionFamily(NamedTuple):
    """What is known of the encoders of some model types.

    Attributes:
        model_types: `model_type` of their configs.
        pooling: How a photo's states become one vector, one of `IMAGE_POOLINGS`: the default of new models.
        why: One line for readers: what that vector is.
        prefix: States before those of the patches (class tokens), not counting registers, which a config tells.
        without_pooler: The pooling where `pooling` is `pooler` and a checkpoint lacks the pooler or its weights.
        classifier: The pooling of a checkpoint that was trained further as a `…ForImageClassification`, if another.
        pooled_only: Layers, beside `pooler` and `head`, that the encoder applies to its pooled output alone.
    """

    model_types: tuple[str, ...]
    pooling: str
    why: str
    prefix: int = 0
    without_pooler: str = "mean"
    classifier: str | None = None
    pooled_only: tuple[str, ...] = ()


# The table of docs, too.
VISION_FAMILIES: tuple[VisionFamily, ...] = (
    VisionFamily(
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
    VisionFamily(
        ("siglip_vision_model", "siglip2_vision_model", "aimv2_vision_model"),
        "pooler",
        "its attention pooling head, as in training with texts",
        classifier="mean",
    ),
    VisionFamily(
        ("align_vision_model", "groupvit_vision_model"), "pooler", "the mean over positions, as in training with texts"
    ),
    VisionFamily(
        ("flava_image_model",), "cls", "the class token, as in training with texts; then its own projection", prefix=1
    ),
    VisionFamily(
        ("blip_vision_model",), "cls", "the class token, as in training with texts; then its own projection", prefix=1
    ),
    VisionFamily(("tipsv2_vision_model",), "pooler", "the class token, as in training with texts", prefix=1),
    VisionFamily(("vit", "vit_msn", "pvt"), "cls", "the class token, as its classifier reads it", prefix=1),
    VisionFamily(("deit",), "cls", "the class token, as its classifier reads it", prefix=2),
    VisionFamily(("vit_mae",), "cls", "the class token, as its authors probe it", prefix=1),
    VisionFamily(
        ("dinov2", "dinov2_with_registers", "dinov3_vit", "sapiens2"),
        "cls",
        "the class token, which self-distillation trained",
        prefix=1,
    ),
    VisionFamily(
        ("dinov3_convnext",),
        "pooler",
        "the mean over positions, which self-distillation trained",
        prefix=1,
    ),
    VisionFamily(("pixio",), "pooler", "the mean over its class tokens", prefix=8),
    VisionFamily(
        ("mlcd_vision_model",),
        "pooler",
        "the normalised class token, which telling clusters apart trained",
        prefix=1,
        pooled_only=("post_layernorm",),
    ),
    VisionFamily(
        ("beit", "data2vec-vision"),
        "pooler",
        "the mean over patches or the class token, as its config says and its classifier reads it",
        prefix=1,
        without_pooler="patches",
    ),
    VisionFamily(("ijepa",), "mean", "the mean over patches, as its classifier reads it; it has no class token"),
    VisionFamily(
        ("convnext", "convnextv2"),
        "pooler",
        "the normalised mean over positions, as its classifier reads it",
        pooled_only=("layernorm",),
    ),
    VisionFamily(
        (
            *("swin", "swinv2", "donut-swin", "dinat", "focalnet", "hiera", "levit"),
            *("resnet", "regnet", "bit", "efficientnet", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2"),
        ),
        "pooler",
        "the mean over positions, as its classifier reads it",
    ),
    VisionFamily(
        ("pvt_v2", "poolformer", "swiftformer", "segformer", "textnet", "imagegpt"),
        "mean",
        "the mean over positions, as its classifier reads it",
    ),
    VisionFamily(
        ("blip-2",),
        "mean",
        "the mean over the Q-Former's query tokens, then its own projection; its score takes the nearest to a text",
    ),
    VisionFamily(("timm_wrapper",), "pooler", "what timm's own classifier reads"),
)

_BY_TYPE = {name: family for family in VISION_FAMILIES for name in family.model_types}
# Without its head a checkpoint was never trained to give one vector.
_WITH_HEAD = ("siglip_vision_model", "siglip2_vision_model", "aimv2_vision_model")


_UNKNOWN = VisionFamily((), "mean", "not known")


def vision_family(config: PreTrainedConfig) -> VisionFamily:
    """What is known of an encoder's family; for one that is not in the table, a mean and no more."""
    return _BY_TYPE.get(config.model_type, _UNKNOWN)


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
        reason = "its score takes, of the query tokens of a photo, the one nearest to a text, which is no vector of it"
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
    log.warning(
        "How %s makes one vector of a photo cannot be known: %s. image_pooling is %r; if it was trained otherwise, "
        "set it to %s.",
        type(encoder).__name__,
        reason,
        pooling,
        choices,
    )
