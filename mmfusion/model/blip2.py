"""BLIP-2 by halves, as its image-text contrastive loss trains them: without its language model.

Photos go through its vision transformer and, by learned query tokens, through its Q-Former; texts through the
Q-Former's text side. transformers has both only within a whole model.
"""

import copy
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2PreTrainedModel,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionModel,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .errors import HubError

# Of a Q-Former's block, what is read for query tokens alone, and for texts alone.
_QUERIES_ONLY = ("crossattention", "intermediate_query", "output_query")
_TEXTS_ONLY = ("intermediate", "output")
_IN_BLOCK = re.compile(r"qformer\.encoder\.layer\.\d+\.(\w+)\.")


class Blip2Photos(Blip2PreTrainedModel):
    """Photos (count, channels, height, width) to the states of all query tokens (count, queries, hidden)."""

    config: Blip2Config
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        queries: Any = config.qformer_config
        self.vision_model = Blip2VisionModel._from_config(config.vision_config)
        self.qformer = Blip2QFormerModel._from_config(queries)
        for block in self.qformer.encoder.layer:
            _drop(block, _TEXTS_ONLY)
        # Behind the vision transformer, as what is registered before its blocks is frozen with them.
        self.query_tokens = nn.Embedding(config.num_query_tokens, queries.hidden_size)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """States of the query tokens as `last_hidden_state`; there is no pooled state."""
        states = self.vision_model(pixel_values=pixel_values).last_hidden_state
        queries = self.query_tokens.weight.expand(len(states), -1, -1)
        output = self.qformer(query_embeds=queries, encoder_hidden_states=states)
        return BaseModelOutputWithPooling(last_hidden_state=output.last_hidden_state.to(states.dtype))

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.embeddings


class Blip2Texts(Blip2PreTrainedModel):
    """Texts to token states (texts, length, hidden) by the text side of the Q-Former."""

    config: Blip2QFormerConfig  # type: ignore[assignment]
    main_input_name = "input_ids"
    input_modalities = ("text",)  # type: ignore[assignment]

    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.qformer = Blip2QFormerModel._from_config(config)
        for block in self.qformer.encoder.layer:
            _drop(block, _QUERIES_ONLY)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Token states; the pooled state is that of the first token."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        places = torch.arange(words.shape[1], device=words.device)
        output = self.qformer(
            query_embeds=words + self.position_embeddings(places), query_length=0, attention_mask=attention_mask
        )
        states = output.last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states[:, 0])

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.word_embeddings = value


HALVES: dict[str, type[PreTrainedModel]] = {"blip-2": Blip2Photos, "blip_2_qformer": Blip2Texts}
"""The class of a half by the `model_type` of its config."""


def is_read(name: str, half: Literal["text", "vision"]) -> bool:
    """Whether a half reads the weight of this name in a checkpoint."""
    part = _IN_BLOCK.match(name)
    if part is not None:
        return part.group(1) not in (_TEXTS_ONLY if half == "vision" else _QUERIES_ONLY)
    own = ("vision_model.", "query_tokens", "vision_projection.") if half == "vision" else ("embeddings.", "text_proj")
    return name.startswith((*own, "qformer."))


def blip2_half(
    source: str, config: Any, weights: Mapping[str, Tensor], half: Literal["text", "vision"], dtype: torch.dtype
) -> tuple[PreTrainedModel, nn.Linear | None, frozenset[str]]:
    """One half of a BLIP-2.

    Args:
        source: Where it comes from, for messages.
        config: Config of the whole.
        weights: Weights of a checkpoint by their names in it; those that [`is_read`] names are enough.
        half: Which half.
        dtype: Floating-point type of the half.

    Returns:
        The half, its projection into the space shared by photos and texts (None: the checkpoint has none, as it was
        trained on to generate texts), and names of weights of the half that the checkpoint lacks.

    Raises:
        HubError: The text half is wanted, and the checkpoint has none.
    """
    config = copy.deepcopy(config)
    config.qformer_config.use_qformer_text_input = half == "text"
    if half == "text" and "embeddings.word_embeddings.weight" not in weights:
        raise HubError(
            f"{source} is a BLIP-2 whose texts go to its language model, so that it has no text half; use a checkpoint "
            "for retrieval (Blip2ForImageTextRetrieval), or another text encoder."
        )
    encoder: Any = Blip2Photos(config) if half == "vision" else Blip2Texts(config.qformer_config)
    encoder.to(dtype)
    own = {name.removeprefix("embeddings."): value for name, value in weights.items() if is_read(name, half)}
    if "query_tokens" in own:
        own["query_tokens.weight"] = own.pop("query_tokens").squeeze(0)
    name = f"{half}_projection"
    projection = {key: own.pop(f"{name}.{key}", None) for key in ("weight", "bias")}
    missing = frozenset(encoder.load_state_dict(own, strict=False).missing_keys)
    weight, bias = projection["weight"], projection["bias"]
    linear = None
    if weight is not None:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return encoder.eval(), linear, missing


def _drop(block: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        if hasattr(block, name):
            delattr(block, name)
