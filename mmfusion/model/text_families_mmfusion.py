"""What is known of families of text encoders: how they pool, how wide and how long they are, and how texts end."""

from typing import Literal, NamedTuple

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel


class TextFamily(NamedTuple):
    """What is known of the encoders of some model types.

    Attributes:
        model_types: `model_type` of the whole checkpoint's config, or of its text half's.
        pooling: How a text's states become one vector, one of `TEXT_POOLINGS`: the default of new models.
        why: One line for readers: what that vector is.
    """

    model_types: tuple[str, ...]
    pooling: str
    why: str


# The table of docs, too.
TEXT_FAMILIES: tuple[TextFamily, ...] = (
    TextFamily(
        ("clip", "clip_text_model", "metaclip_2", "metaclip_2_text_model", "aimv2", "aimv2_text_model"),
        "pooler",
        "the state of the end token, as in training with photos; then the checkpoint's own projection",
    ),
    TextFamily(
        ("clipseg", "clipseg_text_model", "groupvit", "groupvit_text_model", "xclip", "xclip_text_model"),
        "pooler",
        "a CLIP text encoder: the state of the end token; then the checkpoint's own projection",
    ),
    TextFamily(
        ("owlvit", "owlvit_text_model", "owlv2", "owlv2_text_model"),
        "pooler",
        "a CLIP text encoder: the state of the token with the highest id, which ends a text",
    ),
    TextFamily(
        ("siglip", "siglip_text_model", "siglip2", "siglip2_text_model"),
        "pooler",
        "its head over the last position of a text padded to full length",
    ),
    TextFamily(("tipsv2", "tipsv2_text_model"), "pooler", "the mean over tokens, as its own head takes it"),
    TextFamily(
        ("chinese_clip", "chinese_clip_text_model", "align", "align_text_model", "flava", "flava_text_model"),
        "cls",
        "the first token's state; then the checkpoint's own projection",
    ),
    TextFamily(
        ("altclip", "altclip_text_model"),
        "cls",
        "the first token's state after the encoder's own transformation; then the checkpoint's own projection",
    ),
    TextFamily(
        ("vision-text-dual-encoder", "blip", "blip_text_model"),
        "pooler",
        "the pooler's output, which the checkpoint's own projection was trained on",
    ),
    TextFamily(
        ("t5", "mt5", "umt5", "longt5", "switch_transformers", "t5gemma"),
        "mean",
        "the encoder half alone; it has no token that stands for the text, and sentence-t5 and gtr-t5 are averaged",
    ),
    TextFamily(
        ("embedding_gemma2", "embedding_gemma2_text", "nomic_bert", "jina_embeddings_v3"),
        "mean",
        "an embedder that was trained with the mean over tokens",
    ),
    TextFamily(
        ("blip-2", "blip_2_qformer"),
        "cls",
        "the first token's state of the Q-Former's text side; then the checkpoint's own projection",
    ),
    TextFamily(("gte",), "cls", "an embedder that was trained with its first token"),
)

_BY_TYPE = {name: family for family in TEXT_FAMILIES for name in family.model_types}


def text_family(*model_types: str) -> TextFamily | None:
    """The family of the first type that is in the table; None: none is."""
    return next((_BY_TYPE[name] for name in model_types if name in _BY_TYPE), None)


# Of encoders in none of these rows, what they do with a text decides.
LEFT_TO_RIGHT = TextFamily((), "last", "reads from left to right, so that the last token alone has seen the whole text")
BOTH_WAYS = TextFamily((), "mean", "a decoder that was made to read both ways, which embedders are averaged over")
UNKNOWN = TextFamily((), "mean", "not known: the checkpoint does not say, and a warning does")


# Encoders whose pooled state is that of the first end token, by their config's eos_token_id …
_END_TOKEN = ("clip_text_model", "clipseg_text_model", "groupvit_text_model", "xclip_text_model")
_END_TOKEN_ALONE = ("metaclip_2_text_model", "aimv2_text_model")
# … or of the token with the highest id. The former do so as well if the config has the end token that all of them had
# before transformers 4.31, which was wrong.
_HIGHEST_ID = ("owlvit_text_model", "owlv2_text_model")
LEGACY_END = 2


def text_end(config: PreTrainedConfig) -> Literal["end token", "highest id"] | None:
    """By what an encoder finds the state that stands for a text; None: not by a token."""
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
    positions = getattr(_sized(config), "max_position_embeddings", None)
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


def _sized(config: PreTrainedConfig) -> PreTrainedConfig:
    encoder = getattr(config, "encoder", None)
    return encoder if isinstance(encoder, PreTrainedConfig) else config


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
