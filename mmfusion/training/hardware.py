"""Where and how training runs, as one typed setting, and the strategy that Lightning is given for it."""

from dataclasses import dataclass
from typing import Literal

from lightning.pytorch.strategies import ModelParallelStrategy


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
            what is trained, and checkpoints and the model are whole files as ever. `fsdp` needs `devices` as a number,
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


def lightning_strategy(hardware: Hardware) -> str | ModelParallelStrategy:
    """The `strategy` of a `lightning.Trainer`.

    Raises:
        ValueError: FSDP is asked for together with what it cannot do.
    """
    if hardware.strategy != "fsdp":
        return hardware.strategy
    if hardware.precision == "16-mixed":
        raise ValueError(
            "hardware.strategy is fsdp and hardware.precision is 16-mixed, whose gradient scaler knows no shards; give "
            "bf16-mixed, or the strategy ddp."
        )
    if hardware.devices < 1:
        raise ValueError(f"hardware.devices is {hardware.devices}; the strategy fsdp needs their number, at least 1.")
    return ModelParallelStrategy(
        data_parallel_size=hardware.devices * hardware.num_nodes,
        tensor_parallel_size=1,
        # One file, which any strategy and any number of devices can read the weights of.
        save_distributed_checkpoint=False,
    )
