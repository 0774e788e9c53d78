"""Configuration of the two-tower model: its encoders, its embedding space and its fusion network."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from .errors import HubError, explained
from .fusion import FUSIONS, check_fusion_kwargs, fusion_reference
from .heads import check_head
from .remote_code import is_known, keep_module, remote_class, trusting
from .sentence_transformers_folder import write_sentence_transformers_files

# Raised when a field is added or changes its meaning, so that older code says what it is that it cannot read.
SCHEMA_VERSION = 1

POOLINGS = ("mean", "cls", "pooler")
TEXT_POOLINGS = (*POOLINGS, "last", "max", "weighted_mean")
IMAGE_POOLINGS = (*POOLINGS, "patches")


class MMFusionConfig(PreTrainedConfig):
    """Architecture of an [`MMFusionModel`].

    Args:
        text_config: Configuration of the text encoder (any encoder that `AutoModel` knows), or its dict.
        vision_config: Configuration of the vision encoder, or its dict.
        embedding_dim: Width D of query and product embeddings, > 0.
        fusion: Kind of fusion network of the product tower, one of `FUSIONS`; [`register_fusion`] adds to them.
        fusion_kwargs: Values of the parameters that a kind has for itself (keyword-only ones of its `__init__`).
        fusion_hidden_size: Width of the fusion network (rank of `bilinear`), a multiple of `fusion_heads`.
        fusion_layers: Transformer layers of `cross_attention`, > 0.
        fusion_heads: Attention heads of `cross_attention`, > 0.
        fusion_latents: Latent queries that pool the token sequence of `cross_attention`, > 0.
        fusion_dropout: Dropout inside the fusion network, in [0, 1).
        fusion_text_weight: Weight of the text view in `weighted_mean`, in (0, 1); the image view has the rest.
        fusion_learned_weights: Whether `weighted_mean` learns that weight, starting from `fusion_text_weight`.
        fusion_experts: Experts of `moe`, > 0.
        fusion_balance_weight: Weight of the loss that balances the load of the experts, >= 0.
        text_pooling: How token states become one text vector: `mean` over tokens, `cls` (first token), `last` (last
            token), `max` or `weighted_mean` (by position) over tokens, or `pooler` (the encoder's own `pooler_output`,
            as CLIP and SigLIP were trained).
        text_head: Layers between the pooled text and its projection, as sentence-transformers put them there:
            `{"kind": "dense", "size": width, "bias": bool, "activation": name}`, `{"kind": "layer_norm"}` or
            `{"kind": "normalize"}`. Empty: none.
        image_pooling: `mean`, `cls` or `pooler` for photos, or `patches`: mean over the states of patches, without
            class tokens and registers. `MMFusionModel.from_backbones` gives both poolings the values that the encoders
            were trained with.
        vision_feature_layers: Blocks of the vision encoder, from 0, whose output states reach the product tower with
            the pooled top: colour and pattern live below the top. transformers' `hidden_states` begin with the output
            of the embeddings, so that block `i` is `hidden_states[i + 1]` of a ViT. Finer grids are averaged down to
            the coarsest of them. Empty: the top states alone.
        neck_hidden_size: Width of the learned pooling of those states, > 0.
        neck_heads: Slots that it pools them into, > 0.
        projection_hidden_size: Width of a perceptron beside each projection into the embedding space; 0: none. It is
            what adapts a tower whose encoders are frozen.
        projection_dropout: Dropout inside it, in [0, 1).
        share_text_encoder: Whether queries and product texts go through one encoder.
        role_embedding: Adds a learned vector per role (query, product) to the token embeddings of a shared encoder.
        query_prompt: Prefix of every query, for encoders trained with prompts (E5: `"query: "`).
        product_prompt: Prefix of every product text (E5: `"passage: "`).
        product_template: Product text as a `str.format` template over product columns. The same text is used in
            training, evaluation and indexing.
        matryoshka_dims: Shorter widths, each below `embedding_dim`, that the losses train the first components for.
        query_router: Whether the query tower weighs the views of a product: vectors to search and to index are then
            three views side by side, 3 * `embedding_dim` wide, and compared by inner product.
        query_only: Whether the model is the query tower alone: text encoder of queries, projection and router. That is
            what a search front end loads; it embeds no product.
        query_tower_of: Fingerprint of the whole model that a query tower was taken from, by which an index of that
            model's products knows it.
        untrained_projection: Digest of the query projection as it was made for encoders that share no space, by which
            an [`MMFusionModel`] knows that it `is_untrained`. Empty: the encoders share one, or nobody knows.
        freeze_batch_norm: Keeps BatchNorm statistics of the backbones fixed in training mode.
        logit_scale_init: Initial inverse temperature of the contrastive losses, > 0.
        initializer_range: Standard deviation of new weights.
        schema_version: Version of this list of fields, from 1 to `SCHEMA_VERSION`.

    Raises:
        ValueError: A value is outside its range, a key is unknown (a misspelling), or the schema is newer.
    """

    model_type = "mmfusion"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # noqa: RUF012 (transformers reads it)

    text_config: Any = None
    vision_config: Any = None
    embedding_dim: int = 256
    fusion: str = "gated"
    fusion_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    fusion_hidden_size: int = 256
    fusion_layers: int = 2
    fusion_heads: int = 4
    fusion_latents: int = 4
    fusion_dropout: float = 0.1
    fusion_text_weight: float = 0.9
    fusion_learned_weights: bool = False
    fusion_experts: int = 4
    fusion_balance_weight: float = 0.01
    text_pooling: str = "mean"
    text_head: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    image_pooling: str = "mean"
    vision_feature_layers: list[int] = dataclasses.field(default_factory=list)
    neck_hidden_size: int = 128
    neck_heads: int = 4
    projection_hidden_size: int = 0
    projection_dropout: float = 0.2
    share_text_encoder: bool = True
    role_embedding: bool = False
    query_prompt: str = ""
    product_prompt: str = ""
    product_template: str = "{title}"
    matryoshka_dims: list[int] = dataclasses.field(default_factory=list)
    query_router: bool = False
    query_only: bool = False
    query_tower_of: str = ""
    untrained_projection: str = ""
    freeze_batch_norm: bool = True
    logit_scale_init: float = 20.0
    initializer_range: float = 0.02
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_schema()
        self.text_config = _sub_config(self.text_config, "bert")
        self.vision_config = _sub_config(self.vision_config, "vit")
        super().__post_init__(**kwargs)
        self._check_names(kwargs)
        self.check()

    def _check_names(self, kwargs: dict[str, Any]) -> None:
        # transformers stores any keyword it does not know as an attribute, so a misspelt field would pass in silence.
        foreign = _FOREIGN_KEYS | GenerationConfig().to_dict().keys()
        unknown = sorted(key for key in kwargs if not key.startswith("_") and key not in foreign)
        if unknown:
            raise ValueError(
                f"MMFusionConfig has no field {', '.join(map(repr, unknown))}; its own fields are "
                f"{', '.join(own_fields())}. Correct the name, or upgrade mmfusion if a newer version wrote it."
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a config from a folder or the Hub, as `PreTrainedConfig.from_pretrained` does.

        Raises:
            HubError: It cannot be fetched, or it is not a config of an mmfusion model.
        """
        source, trust = pretrained_model_name_or_path, kwargs.pop("trust_remote_code", None)
        with explained(source, kwargs.get("revision")), trusting(source, trust, kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        # transformers takes an absent config.json for a default one, merely warns of another type, and then trips over
        # its fields.
        source = pretrained_model_name_or_path
        fields, unused = super().get_config_dict(source, **kwargs)
        if "model_type" not in fields:
            raise HubError(
                f"{source} is not an mmfusion model: it has no config.json with a model_type; check name, revision and "
                "subfolder."
            )
        if fields["model_type"] != cls.model_type:
            raise HubError(
                f"{source} is a {fields['model_type']!r} model, not an mmfusion model; load it with AutoModel, or make "
                "an mmfusion model of its encoders with MMFusionModel.from_backbones."
            )
        return fields, unused

    def to_dict(self) -> dict[str, Any]:
        """The fields, without what others set on a config while they train it: transformers' Trainer its `use_cache`,
        say. None of that is needed to load the model, and we could not tell it from a misspelt field."""
        fields = {field.name for field in dataclasses.fields(self)}
        return {name: value for name, value in super().to_dict().items() if name in fields or name in _WRITTEN_KEYS}

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Writes `config.json`, and the files by which sentence-transformers finds its way into the folder."""
        super().save_pretrained(save_directory, *args, **kwargs)
        prompts = {"query": self.query_prompt, "document": self.product_prompt}
        write_sentence_transformers_files(Path(save_directory), prompts, "dot" if self.query_router else "cosine")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # transformers sets overrides (`from_pretrained(…, fusion="concat")`) after the constructor has checked the
        # rest, and drops those that it does not know.
        result: Any = super().from_dict(config_dict, **kwargs)
        unused = kwargs.get("return_unused_kwargs", False)
        config = result[0] if unused else result
        config.check()
        if not unused:
            config._check_names({name: None for name in kwargs if not hasattr(config, name)})
        return result

    def check(self) -> None:
        """Raises a ValueError for the first value that is out of range; call it after changing a field."""
        self._check_schema()
        for names, is_valid, wanted in _VALID:
            for name in names:
                value = getattr(self, name)
                if not is_valid(value):
                    raise ValueError(f"MMFusionConfig.{name} is {value!r}; give {wanted}.")
        check_head(self.text_head)
        if self.fusion in FUSIONS:
            check_fusion_kwargs(self.fusion, self.fusion_kwargs)
        elif fusion_reference(self.fusion) not in (getattr(self, "auto_map", None) or {}):
            raise ValueError(
                f"MMFusionConfig.fusion is {self.fusion!r}; give one of {', '.join(FUSIONS)}, or import the file that "
                "registers it."
            )
        if self.fusion_hidden_size % self.fusion_heads:
            raise ValueError(
                f"MMFusionConfig.fusion_hidden_size {self.fusion_hidden_size!r} is not a multiple of "
                f"fusion_heads {self.fusion_heads}; change one of them."
            )
        if not _are_different(self.matryoshka_dims, 1) or max(self.matryoshka_dims, default=0) >= self.embedding_dim:
            raise ValueError(
                f"MMFusionConfig.matryoshka_dims is {self.matryoshka_dims!r}; give different widths from 1 to below "
                f"embedding_dim {self.embedding_dim}."
            )
        if self.query_router and self.fusion in ("text_only", "image_only"):
            raise ValueError(
                f"MMFusionConfig.query_router is True, but fusion {self.fusion!r} has a single view, so there is "
                "nothing to weigh; choose another fusion, or leave the router out."
            )

    def _check_schema(self) -> None:
        version = self.schema_version
        if _is_count(version) and version > SCHEMA_VERSION:
            raise HubError(
                f"The config has schema_version {version}, and this mmfusion reads up to {SCHEMA_VERSION}: a newer "
                "mmfusion wrote it; upgrade mmfusion, or load a revision of that time."
            )

    @property
    def vector_dim(self) -> int:
        """Width of the vectors to search and to index."""
        return self.embedding_dim * (3 if self.query_router else 1)

    def trained_widths(self) -> list[int]:
        """Components per view that the losses trained vectors for, ascending; the last is `embedding_dim`."""
        return [*sorted(self.matryoshka_dims), self.embedding_dim]

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        return self.text_config


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_different(values: Any, least: int) -> bool:
    counts = isinstance(values, (list, tuple)) and all(_is_count(value, least) for value in values)
    return counts and len(set(values)) == len(values)


# Fields, whether a value is one of theirs, and what is.
_VALID: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        (
            *("fusion_hidden_size", "fusion_layers", "fusion_heads", "fusion_latents", "fusion_experts"),
            *("embedding_dim", "neck_hidden_size", "neck_heads", "schema_version"),
        ),
        _is_count,
        "an integer of at least 1",
    ),
    (("projection_hidden_size",), lambda value: _is_count(value, 0), "an integer of at least 0"),
    (
        ("fusion_dropout", "projection_dropout"),
        lambda value: _is_number(value) and 0.0 <= value < 1.0,
        "a number in [0, 1)",
    ),
    (("fusion_text_weight",), lambda value: _is_number(value) and 0.0 < value < 1.0, "a number in (0, 1)"),
    (("fusion_balance_weight",), lambda value: _is_number(value) and value >= 0.0, "a number of at least 0"),
    (
        ("logit_scale_init", "initializer_range"),
        lambda value: _is_number(value) and value > 0.0,
        "a finite number above 0",
    ),
    (
        (
            *("share_text_encoder", "role_embedding", "freeze_batch_norm", "query_router", "query_only"),
            "fusion_learned_weights",
        ),
        lambda value: isinstance(value, bool),
        "True or False",
    ),
    (
        ("fusion", "query_prompt", "product_prompt", "product_template", "query_tower_of", "untrained_projection"),
        lambda value: isinstance(value, str),
        "a string",
    ),
    (("fusion_kwargs",), lambda value: isinstance(value, dict), "a dict of parameters of the fusion"),
    (("vision_feature_layers",), lambda value: _are_different(value, 0), "different blocks from 0"),
    (("text_pooling",), TEXT_POOLINGS.__contains__, f"one of {', '.join(TEXT_POOLINGS)}"),
    (("image_pooling",), IMAGE_POOLINGS.__contains__, f"one of {', '.join(IMAGE_POOLINGS)}"),
)

# Keys that transformers writes into a config in addition to its fields, and needs when it reads one.
_WRITTEN_KEYS = frozenset(
    {"model_type", "transformers_version", "_name_or_path", "output_attentions", "auto_map", "quantization_config"}
)

# Keys that transformers, its Trainer or those who build on them pass through a config or have left in files: none is a
# field of ours, and none reaches a vector.
_FOREIGN_KEYS = _WRITTEN_KEYS | {
    *("torch_dtype", "num_labels", "name_or_path", "attn_implementation", "experts_implementation", "per_layer_config"),
    *("use_cache", "gradient_checkpointing", "tokenizer_class", "tie_word_embeddings", "distributed_config"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id"),
    *("decoder_start_token_id", "is_decoder", "add_cross_attention", "cross_attention_hidden_size"),
    *("tie_encoder_decoder", "finetuning_task", "task_specific_params", "prefix", "pruned_heads", "custom_pipelines"),
    *("torchscript", "use_bfloat16", "tf_legacy_loss", "tie_last_hidden_states", "fusion_config", "use_return_dict"),
}


def own_fields() -> list[str]:
    """Names of the fields that this class adds to `PreTrainedConfig`."""
    return list(MMFusionConfig.__annotations__)


def field_defaults() -> dict[str, Any]:
    """Default values of those fields."""
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(MMFusionConfig)
        if field.name in MMFusionConfig.__annotations__
    }


def _sub_config(value: Any, default_type: str) -> PreTrainedConfig:
    if not isinstance(value, dict):
        return AutoConfig.for_model(default_type) if value is None else value
    fields = dict(value)
    if "model_type" not in fields:
        raise ValueError(f"A nested encoder config lacks model_type (it has {sorted(fields)[:5]}…); name the encoder.")
    if not is_known(fields["model_type"]):
        return remote_class(fields, "AutoConfig")(**fields)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


# Its code is saved next to the weights, for `trust_remote_code=True` where this package is not installed.
MMFusionConfig.register_for_auto_class("AutoConfig")
keep_module(__name__)
