"""Value and gradients of the losses on one of two gloo ranks; run by test_chunked_losses.py as a script.

Usage: two_ranks_losses.py FOLDER RANK
"""

import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from dense_losses import LOSSES, draw, fast, part

from mmfusion.distributed import gather_on_host

RANKS, LEFT, RIGHT, CHUNK_ROWS = 2, 14, 22, 3


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=RANKS)
    everything = draw(LEFT, RIGHT)
    own = part(everything, rank, RANKS)
    # As with NCCL, which has no backend for the CPU: a group of its own is made, which the losses below use, too.
    with patch.object(dist, "get_backend_config", return_value="cuda:nccl"):
        gathered = gather_on_host(own["right_rows"])
    assert torch.equal(gathered, everything["right_rows"]), f"rank {rank} gathered {gathered}"
    torch.save({name: fast(name, own, CHUNK_ROWS) for name in LOSSES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
