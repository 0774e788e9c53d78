"""Low-rank adapters (LoRA) in the encoders, and the ordinary weights that a trained model is handed on with."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mmfusion.extras import library
from mmfusion.model import MMFusionModel

ALL_LINEAR, ATTENTION = "all-linear", "attention"
_OF_CONVOLUTIONS = {"kernel_size", "stride", "dilation", "padding"}
_MADE_OF = "_mmfusion_made_of"
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


@dataclass
class Lora:
    """Low-rank adapters in place of the weights of the encoders (LoRA, arXiv:2106.09685); needs the extra `lora`.

    Attributes:
        rank: Rank of the update of a layer, at least 1: encoders keep their weights, and an update of each chosen layer
            is trained and merged into them when the model is saved. Default: encoders are trained whole.
        alpha: Updates are scaled by alpha / rank; above 0. Default: twice the rank.
        dropout: Share of the inputs of an update that are dropped in training, in [0, 1).
        targets: Layers to adapt: `attention` (all linear layers of attention), `all-linear` (those of the MLPs as well,
            which need more memory for activations), or names of layers or of modules around them as the encoder has
            them, e.g. [query,value] or [layer.11]. Layers that the encoder does not train get none.
        vision_targets: The same for the vision encoder; default: as targets.
    """

    rank: int | None = None
    alpha: float | None = None
    dropout: float = 0.0
    targets: list[str] | str = ATTENTION
    vision_targets: list[str] | str | None = None

    def __post_init__(self) -> None:
        if self.rank is None:
            given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
            if given:
                raise ValueError(f"lora.{given[0]} is given without a rank, which turns LoRA on; give lora.rank 8.")
            return
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}; give at least 1, or leave it out to train encoders whole.")
        if self.alpha is not None and not 0.0 < self.alpha < float("inf"):
            raise ValueError(f"lora.alpha is {self.alpha}; give a number above 0.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout is {self.dropout}; give a number in [0, 1).")
        if [] in (self.targets, self.vision_targets):
            raise ValueError("lora.targets is empty; name layers, attention or all-linear.")


def add_adapters(model: MMFusionModel, settings: Lora) -> None:
    """Freezes the encoders that train, and gives their layers adapters that train in their place.

    Call this when everything is frozen that is not to be trained: such encoders and blocks get no adapters. Updates
    start at zero, so that the model embeds as before.

    Args:
        model: Changed in place; [`whole_model`] gives an ordinary model again.
        settings: Without a rank nothing is done.

    Raises:
        MissingLibraryError: peft is not installed.
        ValueError: No encoder trains, or a target names no layer of an encoder that does.
    """
    if settings.rank is None:
        return
    peft = library("peft", "lora")
    encoders = [one for one in model.encoders() if any(value.requires_grad for value in one.parameters())]
    if not encoders:
        raise ValueError(
            f"lora.rank is {settings.rank}, but no encoder trains that could be adapted; give an "
            "--optimization.text_learning_rate or --optimization.vision_learning_rate above 0, or leave LoRA out."
        )
    vision = settings.targets if settings.vision_targets is None else settings.vision_targets
    for encoder in encoders:
        flag, targets = ("vision_targets", vision) if encoder is model.vision_model else ("targets", settings.targets)
        names = _chosen(encoder, [targets] if isinstance(targets, str) else targets, flag)
        config = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha or 2 * settings.rank,
            lora_dropout=settings.dropout,
            # An expression, as whole names: of a list, peft would also take layers that end in a name of it.
            target_modules="|".join(map(re.escape, names)),
        )
        peft.inject_adapter_in_model(config, encoder)
        for layer in adapted_layers(encoder).values():
            layer.forward = partial(_with_update, layer)
            # Which MobileNets read to pad.
            for name in _OF_CONVOLUTIONS & vars(layer.base_layer).keys():
                setattr(layer, name, getattr(layer.base_layer, name))
        for norm in encoder.modules():
            if type(norm) is nn.LayerNorm and not any(value.requires_grad for value in norm.parameters()):
                norm.forward = partial(_normalised, norm)  # type: ignore[method-assign]


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Layers with adapters, by the name that the layer has without them."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}


@torch.no_grad()
def merged_weights(weights: Mapping[str, Tensor], layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a model with its adapters merged, named as in a model without; `weights` stay as they are.

    Args:
        weights: State of the model.
        layers: Its [`adapted_layers`].
    """
    merged = weights_without_adapters(weights)
    for name, layer in layers.items():
        weight = merged[f"{name}.weight"]
        merged[f"{name}.weight"] = weight + layer.get_delta_weight(*layer.active_adapters).to(weight)
    return merged


def weights_without_adapters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that adapters were added to, named as in a model without."""
    return {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}


def _with_update(layer: Any, inputs: Tensor) -> Tensor:
    """Output of a layer with its update; peft's own forward makes two more copies of it, and memory full of holes."""
    output: Tensor = layer.base_layer(inputs)
    (name,) = layer.active_adapters
    states, down = layer.lora_dropout[name](inputs), layer.lora_A[name]
    made_of = getattr(states, _MADE_OF, None)
    # States that something has changed in place since are not what would be made again.
    if made_of is not None and states._version == 0:
        low = _OfNormalised.apply(states, down.weight, *made_of)
    else:
        low = down(states)
    return output.add_(layer.lora_B[name](low), alpha=layer.scaling[name])


def _normalised(norm: nn.LayerNorm, source: Tensor) -> Tensor:
    """Output of a frozen norm, which says how to make it again."""
    states = nn.LayerNorm.forward(norm, source)
    autocast = torch.is_autocast_enabled(source.device.type)
    if states.requires_grad and not autocast and not torch.compiler.is_compiling():
        # Copies: in a sharded model, the backward pass of another block does not have the weights of this one.
        weight, bias = (None if value is None else value.detach().clone() for value in (norm.weight, norm.bias))
        again = partial(
            functional.layer_norm, normalized_shape=norm.normalized_shape, weight=weight, bias=bias, eps=norm.eps
        )
        setattr(states, _MADE_OF, (source.detach(), again))
    return states


class _OfNormalised(torch.autograd.Function):
    """A linear layer of normalised states, which the backward pass makes again.

    Nothing else keeps them, where the norm is frozen: it keeps what it is made of. In a block of a ViT whose attention
    has adapters, they are an eleventh of all that is kept.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, source: Tensor, again: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(weight, source)
        ctx.again = again
        return functional.linear(states, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, source = ctx.saved_tensors
        states = ctx.again(source)
        return gradient @ weight, gradient.flatten(0, -2).T @ states.flatten(0, -2), None, None


def _chosen(encoder: nn.Module, targets: Iterable[str], flag: str) -> list[str]:
    """Names of the layers of an encoder that some targets name."""
    candidates, chosen = dict(_candidates(encoder)), set()
    for target in targets:
        found = {name for name, layer in candidates.items() if _matches(name, layer, target)}
        if not found:
            patterns = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in candidates)
            raise ValueError(
                f"lora.{flag} {target!r} names no layer of {type(encoder).__name__} that trains; its layers are "
                f"{', '.join(patterns) or 'of kinds that have no adapters'}. Give parts of these names, or freeze the "
                "encoder with a learning rate of 0."
            )
        chosen |= found
    return sorted(chosen)


def _matches(name: str, layer: nn.Module, target: str) -> bool:
    if target == ALL_LINEAR:
        return isinstance(layer, nn.Linear)
    if target == ATTENTION:
        return isinstance(layer, nn.Linear) and _ATTENTION.search(name) is not None
    return fnmatchcase(f".{name}.", f"*.{target}.*")


def _candidates(encoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers that can be adapted, and that the encoder trains."""
    for name, module in encoder.named_modules():
        # Not kinds derived of these: to some, the sum of two weights is not the sum of two layers (weights that are
        # standardised), and of others only the weights are read (in torch's own attention).
        kind = type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)
        if kind and module.weight.requires_grad:
            yield name, module
