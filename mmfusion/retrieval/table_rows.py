"""Rows of tables of any size.

Arrow's own `take` joins the chunks of a column first, which copies all of it and fails beyond 2 GiB of text.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# Rows that are handled at a time: far from 2 GiB of text.
BLOCK = 65_536


def take_rows(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """Some rows of a table, in their order, in chunks of `BLOCK` rows."""
    batches, ends = _batches(table)
    blocks = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
    taken = [_take(batches, ends, block) for block in blocks]
    return pa.Table.from_batches(taken, table.schema)


def read_rows(table: pa.Table, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Some rows of a table as dictionaries, in their order; for few of them."""
    if not len(rows):
        return []
    found: list[dict[str, Any]] = _take(*_batches(table), rows).to_pylist()
    return found


def row_blocks(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """All rows, `BLOCK` at a time, however they are chunked."""
    for start in range(0, len(table), BLOCK):
        (batch,) = table.slice(start, BLOCK).combine_chunks().to_batches()
        yield batch


def _batches(table: pa.Table) -> tuple[list[pa.RecordBatch], npt.NDArray[np.int64]]:
    batches = table.to_batches()
    return batches, np.cumsum([len(batch) for batch in batches], dtype=np.int64)


def _take(batches: list[pa.RecordBatch], ends: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> pa.RecordBatch:
    of_batch = np.searchsorted(ends, rows, side="right")
    order = np.argsort(of_batch, kind="stable")
    parts = []
    for number in np.unique(of_batch):
        inside = rows[of_batch == number] - (ends[number] - len(batches[number]))
        parts.append(batches[number].take(pa.array(inside)))
    if len(parts) == 1:
        return parts[0]
    # Parts come in the order of the chunks; what belongs where is the inverse of the order that sorted them.
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return pa.concat_batches(parts).take(pa.array(places))
