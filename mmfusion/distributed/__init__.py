"""Communication between ranks that keeps gradients."""

from mmfusion.distributed.gather import all_gather_rows, all_reduce_sum, world_size

__all__ = ["all_gather_rows", "all_reduce_sum", "world_size"]
