"""Which rows of which row groups are read for which batch, so that a reader holds no more than it has to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfusion.data.product_shards import groups_of
from mmfusion.data.tables import Rows


class Read(NamedTuple):
    """A row group, and those of its rows that are held from now on until their batch."""

    group: int
    rows: Rows


class StreamIndex(NamedTuple):
    """Index of a batch, and what has to be read before it.

    Attributes:
        batch: [`PairRows`] of a training batch, or product rows.
        reads: Row groups to read first.
    """

    batch: Any
    reads: tuple[Read, ...]


def plan_reads(batches: Sequence[Rows], starts: npt.NDArray[np.int64]) -> list[tuple[Read, ...]]:
    """The reads before each batch of one reader; each row group is read once, for the first batch that needs it.

    Args:
        batches: Product rows of the batches that are left, all different.
        starts: First row of each row group and the number of rows, (G + 1,).
    """
    reads: list[list[Read]] = [[] for _ in batches]
    if not batches:
        return []
    rows = np.concatenate(batches)
    batch_of = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    groups = groups_of(starts, rows)
    order = np.argsort(groups, kind="stable")
    for positions in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        reads[batch_of[positions[0]]].append(Read(int(groups[positions[0]]), np.sort(rows[positions])))
    return [tuple(own) for own in reads]
