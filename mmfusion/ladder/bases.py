"""The models that rungs start from: the given base or an embedded one, and its twin with a query router."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmfusion.data.embedded import write_embedded_backbones, write_embedded_catalogue
from mmfusion.ladder.settings import LadderSettings
from mmfusion.training import load_base
from mmfusion.training.run import read_record

_BACKBONES = "embedded_backbones"


def base_arguments(settings: LadderSettings) -> dict[str, Any] | None:
    """Arguments of recipes/base.py that made the base; None where they are not known."""
    if settings.base is None:
        folder = settings.output / _BACKBONES
        config = {"fusion_hidden_size": 128}
        return {"text": str(folder / "text"), "vision": str(folder / "vision"), "model_config": config, "seed": 0}
    record = read_record(Path(settings.base))
    if record is None or record["recipe"] != "base":
        return None
    return {**record["arguments"], **{name: _found(record["arguments"][name]) for name in ("text", "vision")}}


def base_flags(settings: LadderSettings) -> dict[str, Any]:
    """Flags of recipes/base.py for the embedded base."""
    return base_arguments(settings) or {}


def routed_base_flags(settings: LadderSettings) -> dict[str, Any]:
    """Flags of recipes/base.py for a base like the given one, with a query router."""
    arguments = base_arguments(settings) or {}
    config = {**(arguments.get("model_config") or {}), "fusion": settings.default_fusion, "query_router": True}
    return {**arguments, "model_config": config}


def write_embedded_inputs(settings: LadderSettings) -> None:
    """Writes the embedded catalogue and encoders where they stand in for what was not given."""
    if settings.catalogue is None:
        write_embedded_catalogue(settings.catalogue_source, num_products=settings.num_products)
    if settings.base is None:
        write_embedded_backbones(settings.output / _BACKBONES)


def count_vision_blocks(base: str) -> int:
    """Blocks of a model's vision encoder.

    Raises:
        RunError: It is not an mmfusion model.
    """
    return load_base(base)[0].num_vision_blocks


def as_flag(value: Any) -> str:
    """A value as it is written on a command line: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _found(source: str) -> str:
    # Sub-processes run in the checkout, so that a folder given relative to the caller's has to be made absolute.
    return str(Path(source).absolute()) if Path(source).exists() else source
