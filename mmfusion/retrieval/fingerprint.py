"""A name for the exact weights and preprocessing behind a vector."""

import hashlib
import json
from typing import Any

from mmfusion.model import MMFusionModel, MMFusionProcessor


def model_fingerprint(model: MMFusionModel, processor: MMFusionProcessor) -> str:
    """SHA-256 (hex) of weights, config and preprocessing: equal if and only if vectors are comparable.

    That of a query tower by itself is that of the model that it was taken from.
    """
    if model.config.query_only and model.config.query_tower_of:
        return model.config.query_tower_of
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    for part in (model.config.to_dict(), processor.image_processor.to_dict(), processor_fields(processor)):
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
