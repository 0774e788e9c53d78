"""Passing tensors around the ranks in a circle, without gradient."""

import torch
import torch.distributed as dist
from torch import Tensor

from mmfusion.distributed.gather import world_size


def ring_shift(*tensors: Tensor) -> list[Tensor]:
    """Gives tensors to the next rank and takes those of the one before; after as many shifts as ranks all are home.

    Args:
        tensors: Of the same shapes and dtypes on each rank.
    """
    if world_size() == 1:
        return list(tensors)
    rank, ranks = dist.get_rank(), world_size()
    received = [torch.empty_like(tensor) for tensor in tensors]
    # All at once, as a rank that sends before it receives waits for one that does the same.
    transfers = [
        transfer
        for sent, place in zip(tensors, received, strict=True)
        for transfer in (
            dist.P2POp(dist.isend, sent.contiguous(), (rank + 1) % ranks),
            dist.P2POp(dist.irecv, place, (rank - 1) % ranks),
        )
    ]
    for work in dist.batch_isend_irecv(transfers):
        work.wait()
    return received
