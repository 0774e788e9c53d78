"""All-gather along the batch with gradients, and sums over ranks; each is the identity in a single process."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks, 1 outside distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


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
