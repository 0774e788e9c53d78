"""What the hardware settings do to a model before it is trained: activation checkpointing and compilation."""

import logging
import os
import shutil
from functools import partial
from typing import Any

import lightning as L
import torch
from torch.utils.checkpoint import checkpoint

from mmfusion.model import MMFusionModel
from mmfusion.model.backbones_mmfusion import blocks_of
from mmfusion.stages import Stage
from mmfusion.training.hardware import Hardware

log = logging.getLogger("mmfusion")

_COMPILERS = ("g++", "clang++", "c++", "cl")


class PrepareModel(L.Callback):
    """Checkpoints and compiles the encoders, as the settings say, before Lightning wraps the model."""

    def __init__(self, hardware: Hardware) -> None:
        """Args: hardware: Its `activation_checkpointing` and `compile`."""
        self.hardware = hardware
        self._prepared = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Stage)
        # Lightning comes here for each of fit and validate.
        if self._prepared:
            return
        self._prepared = True
        if self.hardware.activation_checkpointing:
            checkpoint_activations(pl_module.model)
        if self.hardware.compile:
            compile_blocks(pl_module.model)


def checkpoint_activations(model: MMFusionModel) -> None:
    """Has the encoders keep what goes into their blocks, and compute the rest again in the backward pass."""
    # The name by which transformers turns it on differs between versions; this is what they all come to.
    model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=False))


def compile_blocks(model: MMFusionModel) -> None:
    """Compiles the blocks of the encoders in place, each when it runs first; names of parameters do not change.

    Raises:
        ValueError: There is no C++ compiler, which torch.compile needs.
    """
    compiler = os.environ.get("CXX")
    if not any(map(shutil.which, [compiler] if compiler else _COMPILERS)):
        raise ValueError(
            f"hardware.compile needs a C++ compiler ({compiler or ', '.join(_COMPILERS)}), and there is none; install "
            "one, name yours in the environment variable CXX, or leave hardware.compile out."
        )
    for encoder in model.encoders():
        blocks = blocks_of(encoder)
        for block in blocks:
            # Not the module, whose hooks (of FSDP, and our own between blocks) would then not be looked at again.
            compiled: Any = torch.compile(block.forward)
            block.forward = compiled
        if not blocks:
            log.info("%s has no list of blocks, and is not compiled", type(encoder).__name__)
