"""Communication between ranks; each function is the identity in a single process."""

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks, 1 outside distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this rank, 0 outside distributed training."""
    return dist.get_rank() if world_size() > 1 else 0


def all_gather_rows(local: Tensor) -> Tensor:
    """Rows of all ranks in rank order.

    The gradient of the result is summed over ranks before a rank takes its rows of it, as if one process had computed
    every rank's loss.

    Args:
        local: (rows, …), of the same shape and dtype on each rank.

    Returns:
        (world size * rows, …).
    """
    if world_size() == 1:
        return local
    gathered: Tensor = _AllGatherRows.apply(local)
    return gathered


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum over ranks, without gradient."""
    return _all_reduce(value, "SUM")


def all_reduce_max(value: Tensor) -> Tensor:
    """Maximum over ranks, without gradient."""
    return _all_reduce(value, "MAX")


def gather_on_host(local: Tensor) -> Tensor:
    """Rows of all ranks in rank order; from and to the CPU, so that nothing waits for a device.

    Args:
        local: (rows, …) on the CPU, of the same shape and dtype on each rank.
    """
    if world_size() == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local.contiguous(), group=_of_hosts(dist.group.WORLD))
    return torch.cat(parts)


@cache
def _of_hosts(group: Any) -> Any:
    """The group itself, or where it has no backend for the CPU, one of the same ranks that has."""
    return group if "gloo" in dist.get_backend_config(group) else dist.new_group(backend="gloo")


def _all_reduce(value: Tensor, operation: str) -> Tensor:
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value, getattr(dist.ReduceOp, operation))
    return value


def ring_shift(*tensors: Tensor) -> list[Tensor]:
    """Gives tensors to the next rank and takes those of the one before; after as many shifts as ranks all are home.

    Args:
        tensors: Of the same shapes and dtypes on each rank.
    """
    if world_size() == 1:
        return list(tensors)
    ranks = world_size()
    received = [torch.empty_like(tensor) for tensor in tensors]
    # All at once, as a rank that sends before it receives waits for one that does the same.
    transfers = [
        transfer
        for sent, place in zip(tensors, received, strict=True)
        for transfer in (
            dist.P2POp(dist.isend, sent.contiguous(), (rank() + 1) % ranks),
            dist.P2POp(dist.irecv, place, (rank() - 1) % ranks),
        )
    ]
    for work in dist.batch_isend_irecv(transfers):
        work.wait()
    return received


class _AllGatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        if dist.get_backend() == "nccl":
            own = total.new_empty(len(total) // dist.get_world_size(), *total.shape[1:])
            dist.reduce_scatter_tensor(own, total)
            return own
        # gloo cannot reduce-scatter.
        total = total.clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
