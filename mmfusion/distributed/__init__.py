"""Communication between ranks."""

from mmfusion.distributed.gather import all_gather_rows, all_reduce_sum, world_size
from mmfusion.distributed.ring import ring_shift

__all__ = ["all_gather_rows", "all_reduce_sum", "ring_shift", "world_size"]
