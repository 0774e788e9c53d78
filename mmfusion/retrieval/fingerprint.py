"""A name for the exact weights and preprocessing behind a vector."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mmfusion.model import MMFusionConfig, MMFusionModel, MMFusionProcessor
from mmfusion.model.configuration_mmfusion import field_defaults


def model_fingerprint(model: MMFusionModel, processor: MMFusionProcessor) -> str:
    """SHA-256 (hex) of weights, config and preprocessing: equal if and only if vectors are comparable.

    A query tower has the fingerprint of the model that it was taken from.
    """
    if model.config.query_only and model.config.query_tower_of:
        return model.config.query_tower_of
    return _digest(sorted(model.state_dict().items()), model.config, processor)


def stored_fingerprint(
    files: Sequence[Path], names: Set[str], config: MMFusionConfig, processor: MMFusionProcessor
) -> str | None:
    """The `model_fingerprint` of a model in safetensors files, tensor by tensor: no module of it is made.

    Args:
        files: The file with the weights, or all of its shards.
        names: Of the weights in memory. None is returned where the files have others.
        config: The model's.
        processor: The model's.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        places = {name: one for one in opened for name in one.keys()}  # noqa: SIM118 (no dict)
        if places.keys() != names:
            return None
        return _digest(((name, places[name].get_tensor(name)) for name in sorted(places)), config, processor)


def _digest(weights: Iterable[tuple[str, torch.Tensor]], config: MMFusionConfig, processor: MMFusionProcessor) -> str:
    digest = hashlib.sha256()
    for name, value in weights:
        digest.update(name.encode())
        digest.update(value.float().cpu().reshape(-1).numpy().data)
    for part in (_config_fields(config), processor.image_processor.to_dict(), processor_fields(processor)):
        digest.update(json.dumps(_stable(part), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def processor_fields(processor: MMFusionProcessor) -> dict[str, Any]:
    """What the processor itself decides: template, prompts, lengths; of newer fields, those that are not at their
    default."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(MMFusionProcessor).parameters.items()
        if name not in ("image_processor", "tokenizer")
    }
    return _chosen({name: getattr(processor, name) for name in defaults}, defaults, _FIRST_PROCESSOR_FIELDS)


def _config_fields(config: MMFusionConfig) -> dict[str, Any]:
    fields, defaults = config.to_dict(), field_defaults()
    own = _chosen({name: fields[name] for name in defaults}, defaults, _FIRST_CONFIG_FIELDS)
    return {**_OF_TRANSFORMERS, **own}


def _chosen(fields: dict[str, Any], defaults: dict[str, Any], first: frozenset[str]) -> dict[str, Any]:
    # A field that was added later says nothing of a model made before, whose fingerprint is to stay.
    return {name: value for name, value in fields.items() if name in first or value != defaults[name]}


# The fields that the first fingerprints held, at whatever value. This list never changes.
_FIRST_CONFIG_FIELDS = frozenset(
    {
        *("text_config", "vision_config", "embedding_dim", "fusion", "fusion_hidden_size", "fusion_layers"),
        *("fusion_heads", "fusion_latents", "fusion_dropout", "fusion_text_weight", "fusion_learned_weights"),
        *("fusion_experts", "fusion_balance_weight", "text_pooling", "image_pooling", "vision_feature_layers"),
        *("neck_hidden_size", "neck_heads", "projection_hidden_size", "projection_dropout", "share_text_encoder"),
        *("role_embedding", "query_prompt", "product_prompt", "product_template", "matryoshka_dims", "query_router"),
        *("freeze_batch_norm", "logit_scale_init", "initializer_range"),
    }
)
_FIRST_PROCESSOR_FIELDS = frozenset(
    {
        *("product_template", "query_prompt", "product_prompt", "pad_to_max_length"),
        *("max_query_length", "max_product_length", "max_photos"),
    }
)

# What transformers' own fields of the config (not of its encoders) stood at in all of them. None reaches a vector, its
# Trainer and its callers set some, and newer versions have others.
_OF_TRANSFORMERS: dict[str, Any] = {
    "output_hidden_states": False,
    "return_dict": True,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "problem_type": None,
    "output_attentions": False,
    "model_type": "mmfusion",
}


def _stable(fields: dict[str, Any]) -> dict[str, Any]:
    # Where a model was loaded from, by which version and by whose code says nothing about its vectors.
    versions = ("transformers_version", "schema_version", "query_only", "query_tower_of", "untrained_projection")
    dropped = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", *versions)
    return {
        name: _stable(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in dropped
    }
