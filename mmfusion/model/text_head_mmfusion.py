"""Layers between a pooled text and the projection, as sentence-transformers put there."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger("mmfusion")

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


class Projected(NamedTuple):
    """A projection of a dual encoder as ours are: `layers` and their `weights`, as of a [`TextHead`], then `linear`."""

    layers: list[dict[str, Any]]
    weights: dict[str, Tensor]
    linear: nn.Linear | None


@torch.no_grad()
def as_head(projection: nn.Module | None) -> Projected:
    """Takes a projection apart; one of an unknown kind is left out, and the log says so."""
    if projection is None or isinstance(projection, nn.Linear):
        return Projected([], {}, projection)
    layers: tuple[Any, ...] = tuple(projection.children()) if isinstance(projection, nn.Sequential) else ()
    if tuple(map(type, layers)) == (nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear):
        return _of_groupvit(*layers)
    log.warning(
        "The text projection is a %s, and ours are linear maps: text vectors start in no common space with the photos' "
        "of this checkpoint, and training has to align them.",
        type(projection).__name__,
    )
    return Projected([], {}, None)


def _of_groupvit(first: Any, norm: Any, activation: Any, last: Any) -> Projected:
    # In evaluation mode, the norm scales and shifts what the layer before it gives.
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weights = {
        "0.0.weight": first.weight * scale.unsqueeze(1),
        "0.0.bias": (first.bias - norm.running_mean) * scale + norm.bias,
    }
    return Projected([_dense(first.out_features, "relu")], weights, last)


def _dense(size: int, activation: str) -> dict[str, Any]:
    return {"kind": "dense", "size": size, "bias": True, "activation": activation}


def head_size(layers: Sequence[Mapping[str, Any]], width: int) -> int:
    """Width of what the layers give for pooled states of `width`."""
    return next((int(layer["size"]) for layer in reversed(layers) if layer["kind"] == "dense"), width)


def check_head(layers: Any) -> None:
    """Raises a ValueError for the first layer that is none of those that [`TextHead`] knows."""
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
