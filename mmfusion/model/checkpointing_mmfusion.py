"""Activation checkpointing of encoders that transformers has none for, such as MobileNetV2, ResNet and ConvNeXt."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .backbones_mmfusion import blocks_of

# `torch.utils.checkpoint.checkpoint`, or the same with options: called with a function and its arguments.
Checkpoint = Callable[..., Any]


# Older versions of transformers, such as 5.17, checkpoint a layer with its hooks, which by the backward pass are gone.
_HOOKS_STAY_OUTSIDE = "__call__" not in vars(GradientCheckpointingLayer)


def has_checkpointing(module: nn.Module, *, hooked: bool = False) -> bool:
    """Whether transformers can checkpoint a part of this module; `hooked`: although hooks change what goes into it."""
    if hooked and not _HOOKS_STAY_OUTSIDE:
        return False
    return any(hasattr(part, "gradient_checkpointing") for part in module.modules())


def checkpoint_blocks(encoder: nn.Module, function: Checkpoint | None) -> None:
    """Has each block of an encoder compute its activations again in the backward pass; None: keep them again.

    As in transformers, this is for training mode alone, and hooks of a block stay outside.
    """
    for part in encoder.modules():
        if hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = False  # type: ignore[assignment]
    for block in blocks_of(encoder):
        if function is None:
            block.__dict__.pop("forward", None)
        else:
            # Of an instance, so that neither its class nor the names of its parameters change.
            block.forward = partial(_run, block, function)


def _run(block: nn.Module, function: Checkpoint, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(block).forward, block)
    if block.training and torch.is_grad_enabled():
        return function(forward, *args, **kwargs)
    return forward(*args, **kwargs)


def check_no_statistics(model: nn.Module) -> None:
    """Raises a ValueError if a second forward pass would count twice in the statistics of a BatchNorm layer."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{name} gathers BatchNorm statistics, into which activation checkpointing would put each batch twice; "
                "give the model freeze_batch_norm=True, or train without checkpointing."
            )
