"""How an epoch's pairs become batches: of similar length, of one group, and without duplicates."""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_BUCKET_BATCHES = 16


def pair_batches(
    products: IntArray,
    lengths: IntArray,
    size: int,
    *,
    groups: IntArray | None = None,
    keys: IntArray | None = None,
) -> list[IntArray]:
    """Full batches of positions in `products`, each position at most once.

    Within windows of 16 batches pairs are sorted by length. A group fills as many batches as it can by itself; what is
    left over of all groups fills mixed batches, group after group. Pairs that fill no batch are left out.

    Args:
        products: (N,) product row of each pair, in the order drawn.
        lengths: (N,) length of each pair's text.
        size: Pairs per batch.
        groups: Group of each product by row; None: one group.
        keys: (number of products, kinds) keys by row; the products of one batch differ in each, where -1 equals
            nothing, and no product appears twice. A pair that would not waits for a later batch. None: pairs are not
            compared.
    """
    batches: list[IntArray] = []
    left = np.empty(0, dtype=np.int64)
    for part in _parts(products, groups):
        ordered = part[by_length(lengths[part], size * _BUCKET_BATCHES)]
        filled, rest = _fill(ordered, products, size, keys)
        batches += filled
        left = np.concatenate([left, rest])
    return batches + _fill(left, products, size, keys)[0]


def by_length(lengths: IntArray, window: int) -> IntArray:
    """Order that sorts by length within consecutive windows."""
    starts = range(0, len(lengths), window)
    sorted_windows = [start + np.argsort(lengths[start : start + window], kind="stable") for start in starts]
    return np.concatenate([np.empty(0, dtype=np.int64), *sorted_windows])


def _parts(products: IntArray, groups: IntArray | None) -> list[IntArray]:
    """Positions of each group in the order drawn, groups in the order in which they are met."""
    if groups is None:
        return [np.arange(len(products))]
    found, first, of = np.unique(groups[products], return_index=True, return_inverse=True)
    by_group = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of, minlength=len(found)))[:-1])
    return [by_group[group] for group in np.argsort(first)]


def _fill(ordered: IntArray, products: IntArray, size: int, keys: IntArray | None) -> tuple[list[IntArray], IntArray]:
    """Full batches, and the positions that are left over."""
    if keys is None:
        full = len(ordered) // size * size
        return [ordered[start : start + size] for start in range(0, full, size)], ordered[full:]
    rows = products[ordered]
    batches = _first_fit(ordered, np.column_stack([rows, keys[rows]]), size)
    short = [position for batch in batches if len(batch) < size for position in batch]
    return [np.array(batch) for batch in batches if len(batch) == size], np.array(short, dtype=np.int64)


def _first_fit(ordered: IntArray, keys: IntArray, size: int) -> list[list[int]]:
    """Puts each position into the first batch that has room and comes after those with one of its keys."""
    batches: list[list[int]] = [[]]
    onward = [0]
    after: dict[tuple[int, int], int] = {}
    for position, row in zip(ordered.tolist(), keys.tolist(), strict=True):
        own = [(kind, key) for kind, key in enumerate(row) if key >= 0]
        at = _with_room(onward, batches, max((after.get(key, 0) for key in own), default=0))
        batches[at].append(position)
        if len(batches[at]) == size:
            onward[at] = at + 1
        after.update(dict.fromkeys(own, at + 1))
    return batches


def _with_room(onward: list[int], batches: list[list[int]], at: int) -> int:
    """The first batch from `at` on that is not full, opened if need be."""
    passed = []
    while at < len(onward) and onward[at] != at:
        passed.append(at)
        at = onward[at]
    # The path is compressed as in a union-find: a full batch is walked over once.
    for full in passed:
        onward[full] = at
    if at == len(batches):
        batches.append([])
        onward.append(at)
    return at
