"""A name for the exact weights and preprocessing behind a vector."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mmfusion.model import MMFusionConfig, MMFusionModel, MMFusionProcessor


def model_fingerprint(model: MMFusionModel, processor: MMFusionProcessor) -> str:
    """SHA-256 (hex) of weights, config and preprocessing: equal if and only if vectors are comparable.

    That of a query tower by itself is that of the model that it was taken from.
    """
    if model.config.query_only and model.config.query_tower_of:
        return model.config.query_tower_of
    return _digest(sorted(model.state_dict().items()), model.config, processor)


def stored_fingerprint(files: Sequence[Path], config: MMFusionConfig, processor: MMFusionProcessor) -> str:
    """The `model_fingerprint` of a model in safetensors files, tensor by tensor: no module of it is made.

    Args:
        files: The file with the weights, or all of its shards, under the names that the model in memory gives them.
        config: The model's.
        processor: The model's.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        places = {name: one for one in opened for name in one.keys()}  # noqa: SIM118 (no dict)
        return _digest(((name, places[name].get_tensor(name)) for name in sorted(places)), config, processor)


def stored_names(files: Sequence[Path]) -> set[str]:
    """Names of all tensors in safetensors files."""
    names: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names.update(opened.keys())
    return names


def _digest(weights: Iterable[tuple[str, torch.Tensor]], config: MMFusionConfig, processor: MMFusionProcessor) -> str:
    digest = hashlib.sha256()
    for name, value in weights:
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    for part in (config.to_dict(), processor.image_processor.to_dict(), processor_fields(processor)):
        digest.update(json.dumps(_stable(part), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def processor_fields(processor: MMFusionProcessor) -> dict[str, Any]:
    """What the processor itself decides: template, prompts, lengths."""
    texts = ("product_template", "query_prompt", "product_prompt", "pad_to_max_length")
    limits = ("max_query_length", "max_product_length", "max_photos")
    return {name: getattr(processor, name) for name in (*texts, *limits)}


def _stable(fields: dict[str, Any]) -> dict[str, Any]:
    # Where a model was loaded from, by which version and by whose code says nothing about its vectors.
    versions = ("transformers_version", "schema_version", "query_only", "query_tower_of")
    dropped = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", *versions)
    return {
        name: _stable(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in dropped
    }
