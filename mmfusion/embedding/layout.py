"""How a job has a CPU compute the layers of its encoders."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmfusion.model import MMFusionModel


@contextmanager
def laid_out_for_cpu(model: MMFusionModel) -> Iterator[None]:
    """Has a CPU compute layers of the encoders as it does fastest, as long as their weights stay as they are.

    Weights of a convolutional vision encoder are laid out as its kernels read them, which is a third faster, and stay
    so. Linear layers in float32 are computed by oneDNN instead of MKL, from a copy of their weights: a tenth faster on
    an AMD processor with AVX-512, and the last digits of vectors differ. A model on another device is left alone.
    """
    layers: list[nn.Linear] = []
    if model.device.type == "cpu":
        vision: Any = model.vision_model
        convolutions = [module for module in vision.modules() if isinstance(module, nn.Conv2d)]
        if 2 * sum(module.weight.numel() for module in convolutions) > sum(one.numel() for one in vision.parameters()):
            vision.to(memory_format=torch.channels_last)
        # Of PyTorch, but not promised by it: a release without it computes as before.
        if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            layers = [
                layer for encoder in (model.text_model, vision) for layer in encoder.modules() if _is_plain(layer)
            ]
    try:
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
            layer.forward = partial(_linear, layer, packed)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    # A class that inherits may compute something else, as adapters do.
    return type(layer) is nn.Linear and layer.weight.dtype == torch.float32


def _linear(layer: nn.Linear, packed: Tensor, states: Tensor) -> Tensor:
    # oneDNN's operator knows neither gradients nor autocast, and torch.compile not its copy of the weights.
    changes = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    if changes or states.dtype != torch.float32:
        return functional.linear(states, layer.weight, layer.bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, packed, layer.bias, "none", [], "")
    return found
