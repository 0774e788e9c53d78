"""Between encoders and the embedding space: pooling, heads of texts, the neck of photos, projections and views."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .errors import UnsuitedError

logger = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """States of a batch: `tokens` (batch, length, hidden) and `pooled` (batch, hidden)."""

    tokens: Tensor
    pooled: Tensor


def pool(output: Any, tokens: Tensor, mask: Tensor | None, pooling: str, prefix: int = 0) -> Tensor:
    """One vector (batch, hidden) of each row of `tokens` (batch, length, hidden).

    Args:
        output: What the encoder returned, for its `pooler_output`; None if there is no such thing.
        tokens: States of the encoder's top.
        mask: (batch, length), 1 for tokens and 0 for padding; None: there is no padding.
        pooling: How; `patches` is a mean without the first `prefix` states.
        prefix: Number of class tokens and registers.

    Raises:
        UnsuitedError: The pooling is `pooler` and the encoder has none.
    """
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "pooler":
        if getattr(output, "pooler_output", None) is None:
            raise UnsuitedError(
                "The encoder has no pooler_output, so its pooling cannot be 'pooler'; use 'mean' or 'cls'."
            )
        return output.pooler_output.flatten(1)
    if mask is None:
        return tokens[:, prefix if pooling == "patches" else 0 :].mean(1)
    weights = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weights).sum(1) / weights.sum(1)


def pool_text(output: Any, tokens: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Token states (texts, length, hidden) -> (texts, hidden), whichever side of a text its padding is on.

    Args:
        output: What the encoder returned; read for `pooler` alone.
        tokens: Its token states.
        mask: (texts, length) int64 or bool, at least one 1 in each row.
        pooling: One of `TEXT_POOLINGS`.
    """
    if pooling in ("mean", "pooler"):
        return pool(output, tokens, mask, pooling)
    there, length = mask.bool(), tokens.shape[1]
    if pooling == "max":
        return tokens.masked_fill(~there.unsqueeze(-1), float("-inf")).amax(1)
    places = torch.arange(length, device=tokens.device).expand_as(there)
    first = places.masked_fill(~there, length).amin(1)
    if pooling == "weighted_mean":
        weights = ((places - first.unsqueeze(1) + 1) * there).to(tokens.dtype).unsqueeze(-1)
        return (tokens * weights).sum(1) / weights.sum(1)
    chosen = first if pooling == "cls" else places.masked_fill(~there, -1).amax(1)
    return tokens.gather(1, chosen[:, None, None].expand(-1, 1, tokens.shape[2])).squeeze(1)


# Never imported by the name in a file: these alone.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "mish": nn.Mish,
    "leakyrelu": nn.LeakyReLU,
}
_FIELDS = {
    "dense": {"kind", "size", "bias", "activation"},
    "layer_norm": {"kind"},
    "normalize": {"kind"},
}


class TextHead(nn.Sequential):
    """Pooled states of texts (rows, width) -> (rows, [`head_size`])."""

    def __init__(self, layers: Sequence[Mapping[str, Any]], width: int) -> None:
        modules: list[nn.Module] = []
        for layer in layers:
            if layer["kind"] == "dense":
                linear = nn.Linear(width, layer["size"], bias=layer["bias"])
                modules.append(nn.Sequential(linear, ACTIVATIONS[layer["activation"]]()))
                width = layer["size"]
            else:
                modules.append(nn.LayerNorm(width) if layer["kind"] == "layer_norm" else _Normalize())
        super().__init__(*modules)


class _Normalize(nn.Module):
    def forward(self, pooled: Tensor) -> Tensor:
        return F.normalize(pooled, dim=-1)


@torch.no_grad()
def take_apart(
    projection: nn.Module | None, half: str
) -> tuple[list[dict[str, Any]], dict[str, Tensor], nn.Linear | None]:
    """A projection of a dual encoder as ours are: layers and their weights, as of a [`TextHead`], then a linear map.

    One of another kind is left out, and the log says so.
    """
    if projection is None or isinstance(projection, nn.Linear):
        return [], {}, projection
    layers: tuple[Any, ...] = tuple(projection.children()) if isinstance(projection, nn.Sequential) else ()
    if half == "text" and tuple(map(type, layers)) == (nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear):
        first, norm, _, last = layers
        # GroupViT's. In evaluation mode, the norm scales and shifts what the layer before it gives.
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weights = {
            "0.0.weight": first.weight * scale.unsqueeze(1),
            "0.0.bias": (first.bias - norm.running_mean) * scale + norm.bias,
        }
        return [{"kind": "dense", "size": first.out_features, "bias": True, "activation": "relu"}], weights, last
    logger.warning(
        "The %s projection is a %s, and ours are linear maps: %s vectors start in no common space with those of the "
        "other half of this checkpoint, and training has to align them.",
        half,
        type(projection).__name__,
        half,
    )
    return [], {}, None


def head_size(layers: Sequence[Mapping[str, Any]], width: int) -> int:
    """Width of what the layers give for pooled states of `width`."""
    return next((int(layer["size"]) for layer in reversed(layers) if layer["kind"] == "dense"), width)


def check_head(layers: Any) -> None:
    """Raises a ValueError for the first layer that [`TextHead`] does not know."""
    if not isinstance(layers, (list, tuple)):
        raise ValueError(f"MMFusionConfig.text_head is {layers!r}; give a list of layers.")
    for layer in layers:
        kind = layer.get("kind") if isinstance(layer, Mapping) else None
        if kind not in _FIELDS or set(layer) != _FIELDS[kind] or (kind == "dense" and not _is_dense(layer)):
            raise ValueError(
                f"MMFusionConfig.text_head has the layer {layer!r}; give {{'kind': 'dense', 'size': width of at least "
                f"1, 'bias': True or False, 'activation': one of {', '.join(ACTIVATIONS)}}}, {{'kind': 'layer_norm'}} "
                "or {'kind': 'normalize'}."
            )


def _is_dense(layer: Mapping[str, Any]) -> bool:
    size, bias = layer["size"], layer["bias"]
    return type(size) is int and size >= 1 and isinstance(bias, bool) and layer["activation"] in ACTIVATIONS


class VisionNeck(nn.Module):
    """Pools intermediate states of the vision encoder by learned attention and adds them to its pooled output.

    The top of an encoder that was trained to name objects forgets colour and fine pattern, and a plain mean over
    positions mixes the product with its background. Each of `heads` slots is a softmax-weighted mean over positions of
    states below the top: hypercolumns (arXiv:1411.5752), pooled as by attention-based multiple instance learning
    (arXiv:1802.04712).
    """

    def __init__(self, state_size: int, pooled_size: int, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(state_size)
        self.states_in = nn.Linear(state_size, hidden_size)
        self.attention = nn.Linear(hidden_size, heads, bias=False)
        self.pooled_in = nn.Linear(pooled_size, hidden_size)

    def forward(self, encoded: Encoded) -> Encoded:
        """`tokens` (photos, T, state_size) -> (photos, heads + 1, hidden): the slots, then the encoder's pooled state.

        `pooled` (photos, pooled_size) -> (photos, pooled_size + heads * hidden).
        """
        # Scale and shift of the norm act on the linear layer, which is far smaller than the states: states of a frozen
        # encoder then need no gradient.
        norm, linear = self.norm, self.states_in
        plain = F.layer_norm(encoded.tokens, norm.normalized_shape, eps=norm.eps)
        states = F.gelu(F.linear(plain, linear.weight * norm.weight, F.linear(norm.bias, linear.weight, linear.bias)))
        slots = self.attention(states).softmax(1).transpose(1, 2) @ states
        tokens = torch.cat([slots, self.pooled_in(encoded.pooled).unsqueeze(1)], dim=1)
        return Encoded(tokens, torch.cat([encoded.pooled, slots.flatten(1)], dim=1))


class Projection(nn.Linear):
    """Linear map into the embedding space, plus a perceptron next to it where `hidden_size` is above 0.

    The perceptron's output layer starts at zero, so that training starts from the linear map.
    """

    def __init__(self, in_features: int, out_features: int, hidden_size: int, dropout: float) -> None:
        super().__init__(in_features, out_features)
        self.residual = Residual(in_features, out_features, hidden_size, dropout) if hidden_size else None

    def forward(self, input: Tensor) -> Tensor:
        """(rows, in_features) -> (rows, out_features)."""
        output = super().forward(input)
        return output if self.residual is None else output + self.residual(input)


class Residual(nn.Sequential):
    """Two-layer perceptron whose output layer starts at zero."""

    def __init__(self, in_features: int, out_features: int, hidden_size: int, dropout: float) -> None:
        super().__init__(
            nn.Dropout(dropout),
            nn.Linear(in_features, hidden_size),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, out_features),
        )

    def init_weights(self) -> None:
        init.zeros_(self[-1].weight)  # type: ignore[arg-type]
        init.zeros_(self[-1].bias)  # type: ignore[arg-type]


VIEWS = ("fused", "text", "image")


def shorten(embeds: Tensor, dim: int, views: int = 1) -> Tensor:
    """Keeps the first `dim` components of each view and gives each its length back (Matryoshka, arXiv:2205.13147).

    Args:
        embeds: (rows, views * D) float; views side by side.
        dim: Components to keep of each, in [1, D].
        views: Number of views.

    Returns:
        (rows, views * dim) float.
    """
    blocks = embeds.unflatten(1, (views, -1))
    lengths = blocks.norm(dim=-1, keepdim=True)
    return (F.normalize(blocks[..., :dim], dim=-1) * lengths).flatten(1)


class QueryRouter(nn.Module):
    """Weights of the views of a product, read from the query alone.

    The score sum over views of w(q) <q, view> is one inner product of `[w_1 q, w_2 q, w_3 q]` with the views of a
    product side by side, so that products are embedded once and any inner-product index serves it.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.logits = nn.Linear(hidden_size, len(VIEWS))

    def init_weights(self) -> None:
        init.zeros_(self.logits.weight)
        init.zeros_(self.logits.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled query states (Q, hidden) -> weights (Q, 3) in the order of `VIEWS`, >= 0, rows sum to 1."""
        return self.logits(pooled).float().softmax(-1).to(pooled.dtype)


def routed_queries(embeds: Tensor, weights: Tensor) -> Tensor:
    """L2-normalised queries (Q, D) and their weights (Q, 3) -> (Q, 3 * D)."""
    return (weights.unsqueeze(2) * embeds.unsqueeze(1)).flatten(1)


def routed_products(fused: Tensor, text: Tensor, image: Tensor, present: Tensor) -> Tensor:
    """Views (P, D) each, and (P, 2) bool `present` of text and photo -> (P, 3 * D).

    The fused view stands in for a missing one, so that no product is penalised for what it lacks.
    """
    text = torch.where(present[:, 0, None], text, fused)
    return torch.cat([fused, text, torch.where(present[:, 1, None], image, fused)], dim=1)


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        # One by one: `train(True)` on the encoder would set its frozen BatchNorm layers to training, too.
        for module, training in modes:
            module.training = training
