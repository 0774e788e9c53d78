"""Which part of a pretrained model sees photos, and which class of transformers holds all that is read of it."""

import logging
from typing import Any, NamedTuple

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .encoder_classes_mmfusion import own_class, with_own_class

log = logging.getLogger("mmfusion")

# What holds weights of a vision half that the class chosen by AutoModel drops, or lacks the other half.
_READ_WHOLE = ("VisionModelWithProjection", "ForImageClassification", "ForImageTextRetrieval")
_PARTS = ("vision_model", "image_model", "vision_tower")
_PROJECTIONS = ("visual_projection", "image_projection", "vision_projection", "vision_proj")


class VisionPart(NamedTuple):
    """The vision encoder of a model.

    Attributes:
        encoder: The encoder.
        prefix: What its weights are called before their own name in the model, `""` or ending in a dot.
        projection: The layer that maps its pooled state into a space shared with texts, if there is one.
    """

    encoder: PreTrainedModel
    prefix: str
    projection: nn.Module | None


def class_to_load(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class of transformers that a checkpoint of a vision encoder was saved from; None: the one of `AutoModel`."""
    name = (config.architectures or [""])[0]
    if not name.endswith(_READ_WHOLE) or name.startswith("TimmWrapper"):
        return None
    return getattr(transformers, name, None)


def vision_part(model: PreTrainedModel) -> VisionPart:
    """The vision encoder in a model: its half of a dual encoder, what is below a head, or the model itself."""
    projections = [getattr(model, name) for name in _PROJECTIONS if getattr(model, name, None) is not None]
    projection = projections[0] if projections else None
    for name in _PARTS:
        part = getattr(model, name, None)
        if not isinstance(part, nn.Module) or isinstance(model, own_class(part)):
            continue
        if isinstance(part, own_class(part)):
            return VisionPart(part, f"{name}.", projection)
        return VisionPart(with_own_class(part, name), "", projection)
    # Of some base models the prefix names a part of themselves.
    known: Any = transformers.MODEL_MAPPING.get(type(model.config), ())
    base = model if isinstance(model, known) else model.base_model
    if base is model or not isinstance(base, PreTrainedModel):
        return VisionPart(model, "", None)
    below = vision_part(base)
    return below._replace(prefix=f"{model.base_model_prefix}.{below.prefix}")


def linear_projection(part: VisionPart) -> nn.Linear | None:
    """The projection of a vision encoder, if ours can start as it; a warning is logged if it is of another kind."""
    if part.projection is None or isinstance(part.projection, nn.Linear):
        return part.projection
    log.warning(
        "The projection of %s is a %s, and ours are linear maps: its image vectors start in no common space with its "
        "texts, and training has to align them.",
        type(part.encoder).__name__,
        type(part.projection).__name__,
    )
    return None
