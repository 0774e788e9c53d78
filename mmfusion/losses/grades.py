"""What a loss is given: both sides of its pairs, and the few pairs that have a grade, not a matrix of all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Items(NamedTuple):
    """One side of the pairs of a loss.

    Attributes:
        embeds: (items, D) L2-normalised embeddings, at least float32.
        mask: (items,) bool; False takes an item out altogether.
    """

    embeds: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Grades:
    """Pairs with a positive grade, of this rank's left items and the right items of all ranks; others have grade 0.

    They are looked up once for a batch, on the CPU, so that a loss neither looks anything up nor waits for a device.
    [`graded`] makes them.

    Attributes:
        left: (E,) int64, positions among this rank's left items, ascending.
        right: (E,) int64, positions among the right items of all ranks, in rank order; no pair comes twice.
        grade: (E,) int64, at least 1.
        starts: Where the pairs of each left item start, and E; ints of the host, left items + 1.
        levels: The positive grades that the data has, ascending, each at least 1.
    """

    left: Tensor
    right: Tensor
    grade: Tensor
    starts: Sequence[int]
    levels: Sequence[int] = (1,)

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 1:
            raise ValueError(
                f"levels is {list(self.levels)}; give at least one positive grade, all of them at least 1."
            )

    def pairs_of(self, rows: slice) -> slice:
        """The pairs of some left items, which are given by a slice with start and stop."""
        return slice(self.starts[rows.start], self.starts[rows.stop])

    def table(self, right: int) -> Tensor:
        """Grades of all pairs, (left items, `right`) int64, for a loss that wants them; `right` counts all ranks."""
        empty = self.grade.new_zeros(len(self.starts) - 1, right)
        return empty.index_put_((self.left, self.right), self.grade)


def graded(
    left: npt.ArrayLike,
    right: npt.ArrayLike,
    grade: npt.ArrayLike,
    items: int,
    levels: Sequence[int] = (1,),
    device: torch.device | str = "cpu",
) -> Grades:
    """[`Grades`] of pairs in any order.

    Args:
        left, right, grade: Integers (E,) as there, on the CPU; pairs with grade 0 are left out.
        items: Left items of this rank.
        levels: As there.
        device: Where the loss will be computed; copied to without waiting.
    """
    columns = np.stack([np.asarray(values, dtype=np.int64) for values in (left, right, grade)])
    columns = columns[:, columns[2] > 0]
    columns = columns[:, np.argsort(columns[0], kind="stable")]
    starts = np.searchsorted(columns[0], np.arange(items + 1)).tolist()
    pairs = torch.from_numpy(columns)
    if torch.device(device).type == "cuda":
        pairs = pairs.pin_memory()
    on_left, on_right, grades = pairs.to(device, non_blocking=True)
    return Grades(on_left, on_right, grades, starts, levels)
