"""The models that variants start from: the given base or the toy one."""

from __future__ import annotations

import json
from typing import Any

from mmfusion.ablation.settings import AblationSettings
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.model import MMFusionConfig
from mmfusion.training import load_base

_BACKBONES = "toy_encoders"
# Width of the embedded text encoder, so that projections start as identity; said here as the plan needs it beforehand.
_EMBEDDING_DIM = 64


def base_flags(settings: AblationSettings) -> dict[str, Any]:
    """Flags of recipes/base.py for the toy base."""
    folder = settings.output / _BACKBONES
    config = {"fusion_hidden_size": 128, "embedding_dim": _EMBEDDING_DIM}
    return {"text": str(folder / "text"), "vision": str(folder / "vision"), "model_config": config, "seed": 0}


def write_toy_inputs(settings: AblationSettings) -> None:
    """Writes the toy catalogue and encoders where they stand in for what was not given."""
    if settings.catalogue is None:
        write_toy_catalogue(settings.catalogue_source, num_products=settings.num_products)
    if settings.base is None:
        write_toy_encoders(settings.output / _BACKBONES)


def count_vision_blocks(base: str) -> int:
    """Blocks of a model's vision encoder.

    Raises:
        RunError: It is not an mmfusion model.
    """
    return load_base(base)[0].num_vision_blocks


def read_embedding_dim(base: str | None) -> int:
    """Components of a view's vector, from the config.json of a model; None is the toy base.

    Raises:
        OSError: There is no such model.
    """
    return _EMBEDDING_DIM if base is None else int(MMFusionConfig.from_pretrained(base).embedding_dim)


def as_flag(value: Any) -> str:
    """A value as it is written on a command line: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
