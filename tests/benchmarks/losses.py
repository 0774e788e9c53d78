"""Peak memory and time of the losses over pairs; by hand: python tests/benchmarks/losses.py

Each figure comes from a process of its own: the peak of the loss with its gradients, less the peak before it, when the
embeddings and judgements were there already. Every item has one partner; grades are looked up as training does it.
"""

import argparse
import multiprocessing
import resource
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmfusion.data.qrels import Qrels
from mmfusion.losses import GradedContrastiveLoss, GradedSigmoidLoss, Grades, graded_contrastive

LEVELS, JUDGED, MIB = (1, 3), 8, 2**20


def dense(left: Tensor, right: Tensor, left_rows: Tensor, right_rows: Tensor, grades: Any, scale: Tensor) -> Tensor:
    """The contrastive loss by its plain formula: all pairs at once."""
    logits, wanted = scale.exp() * left @ right.T, grades(left_rows, right_rows)
    sums = graded_contrastive(logits, wanted, LEVELS), graded_contrastive(logits.T, wanted.T, LEVELS)
    return 0.5 * sum((total / count for total, count in sums), start=torch.zeros(()))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "dense contrastive": dense,
    "contrastive": GradedContrastiveLoss(),
    "sigmoid": GradedSigmoidLoss(),
}


def judgements(items: int) -> Qrels:
    """One match and a few near misses for each left item."""
    rng = np.random.default_rng(0)
    near = np.stack([rng.permutation(items) for _ in range(JUDGED - 1)], axis=1)
    rows = np.arange(items)
    kept = near != rows[:, None]
    pairs = np.unique(np.stack([np.repeat(rows, kept.sum(1)), near[kept]], axis=1), axis=0)
    grades = np.concatenate([np.full(items, 3), np.ones(len(pairs), dtype=np.int64)])
    return Qrels(np.concatenate([rows, pairs[:, 0]]), np.concatenate([rows, pairs[:, 1]]), grades)


def measure(name: str, items: int, width: int) -> tuple[float, float, float]:
    """Extra peak memory in MiB, seconds, and value of one loss with its gradients."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    left = F.normalize(torch.randn(items, width), dim=-1)
    right = F.normalize(left + 0.1 * torch.randn(items, width), dim=-1)
    qrels, rows, scale = judgements(items), torch.arange(items), torch.tensor(3.0, requires_grad=True)
    left.requires_grad_(), right.requires_grad_()

    grades = Grades(lambda a, b: torch.from_numpy(qrels.grades(a.numpy(), b.numpy())), LEVELS)
    # What the first backward pass of a process needs is no part of the loss.
    LOSSES[name](left[:4], right[:4], rows[:4], rows[:4], grades, scale).backward()
    before, start = peak(), perf_counter()
    value = LOSSES[name](left, right, rows, rows, grades, scale)
    value.backward()
    return peak() - before, perf_counter() - start, value.item()


def peak() -> float:
    """Peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--items", type=int, nargs="+", default=[2_048, 32_768], help="left items; as many right ones")
    parser.add_argument("--dense_up_to", type=int, default=4_096, help="items up to which the dense formula is run")
    parser.add_argument("--width", type=int, default=256)
    arguments = parser.parse_args()
    # Not forked: a child would begin with the peak of its parent.
    processes = multiprocessing.get_context("spawn")
    print(f"{'loss':<20}{'pairs':>18}{'extra peak':>14}{'seconds':>10}{'value':>10}")
    for items in arguments.items:
        for name in LOSSES:
            if name.startswith("dense") and items > arguments.dense_up_to:
                continue
            with processes.Pool(1) as pool:
                memory, seconds, value = pool.apply(partial(measure, name, items, arguments.width))
            print(f"{name:<20}{f'{items:,} x {items:,}':>18}{f'{memory:,.0f} MiB':>14}{seconds:>10.1f}{value:>10.4f}")


if __name__ == "__main__":
    main()
