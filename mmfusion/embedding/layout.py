"""How a job has a CPU compute the layers of its encoders."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmfusion.model import MMFusionModel


def lay_out_for_cpu(model: MMFusionModel) -> None:
    """Has a CPU compute layers of the encoders as it does fastest; values of weights stay as they are.

    Weights of a convolutional vision encoder are laid out as its kernels read them, which is a third faster. Linear
    layers in float32 are computed by oneDNN instead of MKL: up to a tenth faster on an AMD processor with AVX-512, and
    the last digits of vectors differ. A model on another device is left alone.
    """
    if model.device.type != "cpu":
        return
    vision: Any = model.vision_model
    convolutions = [module for module in vision.modules() if isinstance(module, nn.Conv2d)]
    if 2 * sum(module.weight.numel() for module in convolutions) > sum(one.numel() for one in vision.parameters()):
        vision.to(memory_format=torch.channels_last)
    # Of PyTorch, but not promised by it: a release without it computes as before.
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        for encoder in (model.text_model, vision):
            for layer in encoder.modules():
                # A class that inherits may compute something else, as adapters do.
                if type(layer) is nn.Linear and layer.weight.dtype == torch.float32:
                    layer.forward = partial(_linear, layer)  # type: ignore[method-assign]


def _linear(layer: nn.Linear, states: Tensor) -> Tensor:
    # oneDNN's operator knows neither gradients nor autocast.
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or states.dtype != torch.float32:
        return functional.linear(states, layer.weight, layer.bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, layer.weight, layer.bias, "none", [], "")
    return found
