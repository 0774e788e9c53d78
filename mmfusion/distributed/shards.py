"""Parameters that ranks hold a shard of (FSDP2): norms of their gradients, clipping, and gathering them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mmfusion.distributed import world_size


def is_sharded(module: nn.Module) -> bool:
    """Whether ranks hold shards of a module's parameters, rather than all of them."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of the gradients of all ranks' shards, scalar; every rank has to call it."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norm = torch.nn.utils.get_total_norm(whole)
    if not sharded:
        return norm
    of_shards = torch.nn.utils.get_total_norm(sharded)
    assert isinstance(of_shards, DTensor)
    return torch.hypot(norm.to(of_shards.device), of_shards.full_tensor())


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """What `torch.nn.utils.clip_grad_norm_` does, for parameters of which some are sharded; every rank has to call it.

    Args:
        parameters: Sharded and whole ones.
        max_norm: L2 norm that all gradients together are scaled down to.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    if not any(isinstance(parameter, DTensor) for parameter in trained):
        torch.nn.utils.clip_grad_norm_(trained, max_norm)
        return
    share = (max_norm / (gradient_norm(trained) + 1e-6)).clamp(max=1.0)
    for parameter in trained:
        assert parameter.grad is not None
        gradient = parameter.grad
        (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(share)


@torch.no_grad()
def complete_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Finishes a backward pass of FSDP2: whole parameters get the mean of all ranks' gradients, and all get one.

    Each rank calls this with the same parameters. One that had no part in the loss gets a gradient of zeros, so that
    the optimizer keeps a state for the same parameters on all ranks and in all steps.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for parameter in trained:
        # Few, and of one number each.
        if not isinstance(parameter, DTensor) and world_size() > 1:
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Has every rank hold all parameters inside, so that ranks may run the module differently often; without gradients.

    Every rank has to come here. Outside, a forward pass of a sharded module is a meeting of all ranks.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not module, recurse=False)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """State of a sharded module as plain tensors on the CPU, on the first rank; every rank has to call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(module, options=options)
    return state
