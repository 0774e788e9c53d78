"""Value and gradients of the losses on one of two gloo ranks; run by test_chunked_losses.py as a script.

Usage: two_ranks_losses.py FOLDER RANK
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from dense_losses import LOSSES, draw, fast, part

RANKS, LEFT, RIGHT, CHUNK_ROWS = 2, 14, 22, 3


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=RANKS)
    own = part(draw(LEFT, RIGHT), rank, RANKS)
    torch.save({name: fast(name, own, CHUNK_ROWS) for name in LOSSES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
