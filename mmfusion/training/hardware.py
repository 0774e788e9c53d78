"""Where and how training runs, as one typed setting, and what it means for Lightning and for the model."""

import logging
import os
import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from mmfusion.model import MMFusionModel
from mmfusion.model.vision_encoders import blocks_of

# An embedding job that finds nothing to do does not wait for Lightning, which takes seconds to import.
if TYPE_CHECKING:
    from lightning.pytorch.strategies import ModelParallelStrategy

logger = logging.getLogger(__name__)

_COMPILERS = ("g++", "clang++", "c++", "cl")


@dataclass
class Hardware:
    """Where and how training runs; names and values are Lightning's own.

    Any number of devices will do: `batch_size`, `extra_products` and `micro_batch` count for one device, so that
    nothing has to be divided among them, and two devices with batches of 64 take the steps of one with 128.

    Attributes:
        accelerator: `auto`, `cpu`, `gpu` …
        devices: Devices per node; more than 1 trains with DDP unless `strategy` says otherwise.
        num_nodes: Nodes; each is started by torchrun or SLURM.
        strategy: `auto`, `ddp` …, or `fsdp`: FSDP2, where devices share parameters, gradients and optimizer states of
            what is trained, and checkpoints and the model are whole files as usual. `fsdp` needs `devices` as a number,
            1 included, and takes neither `16-mixed` nor gradient caching (`micro_batch`).
        precision: `32-true`, `bf16-mixed` or, not on CPUs, `16-mixed`.
        num_workers: Processes per device that decode photos and tokenise.
        compile: Compiles the blocks of the encoders with torch.compile, which pays where many steps follow.
        activation_checkpointing: Keeps only what goes into the blocks of the encoders, and computes the rest again in
            the backward pass, with the same dropout: less memory for one more forward pass.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    num_workers: int = 0
    compile: bool = False
    activation_checkpointing: bool = False

    @property
    def on_cuda(self) -> bool:
        """Whether Lightning trains on CUDA devices; tells without starting it."""
        return self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.device_count() > 0

    @property
    def local_devices(self) -> int:
        """Devices of a node; a negative number in `devices` asks for all."""
        if self.devices > 0:
            return self.devices
        return torch.cuda.device_count() if self.on_cuda else 1


def lightning_strategy(hardware: Hardware) -> "str | ModelParallelStrategy":
    """The `strategy` of a `lightning.Trainer`.

    Raises:
        ValueError: FSDP is asked for together with what it cannot do.
    """
    if hardware.strategy != "fsdp":
        return hardware.strategy
    if hardware.precision == "16-mixed":
        raise ValueError(
            "hardware.strategy is fsdp and hardware.precision is 16-mixed, whose gradient scaler does not support "
            "shards; give bf16-mixed, or the strategy ddp."
        )
    if hardware.devices < 1:
        raise ValueError(f"hardware.devices is {hardware.devices}; the strategy fsdp needs their number, at least 1.")
    from lightning.pytorch.strategies import ModelParallelStrategy

    return ModelParallelStrategy(
        data_parallel_size=hardware.devices * hardware.num_nodes,
        tensor_parallel_size=1,
        # One file, which any strategy and any number of devices can read the weights of.
        save_distributed_checkpoint=False,
    )


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
            logger.info("%s has no list of blocks, and is not compiled", type(encoder).__name__)
