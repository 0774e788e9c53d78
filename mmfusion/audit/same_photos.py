"""Products that show the same photo, perhaps in another size or compression."""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from mmfusion.audit.views import SIDE, Flags, Floats

_COARSE = 4
_BLOCK = 4096


def same_photos(tiny: Floats, has_photo: Flags, distance: float) -> list[list[int]]:
    """Groups of two and more products whose tiny pictures are near each other, each ascending, the largest group first.

    Whoever is near one of a group belongs to it. Candidates are found by pictures of 4 x 4 pixels, whose differences
    are at most those of the larger ones, so that none is missed.

    Args:
        tiny: (P, SIDE * SIDE * 3) float32 in [0, 1].
        has_photo: (P,) bool; others are in no group.
        distance: Root mean square of the differences between two pictures, in standard deviations of the one that has
            more contrast, up to which they show the same. A small thing on white differs little from another one.
    """
    rows = np.flatnonzero(has_photo)
    if not len(rows):
        return []
    step = SIDE // _COARSE
    blocks = np.asarray(tiny[rows]).reshape(-1, _COARSE, step, _COARSE, step, 3)
    coarse = np.ascontiguousarray(blocks.mean(axis=(2, 4)).reshape(len(rows), -1), dtype=np.float32)
    index = faiss.IndexFlatL2(coarse.shape[1])
    index.add(coarse)
    contrast = distance * np.asarray(tiny[rows]).std(axis=1)
    # Rounding must lose none.
    radius = coarse.shape[1] * float(contrast.max()) ** 2 * 1.001 + 1e-5
    first = np.arange(len(rows))
    for start in range(0, len(rows), _BLOCK):
        limits, _, found = index.range_search(coarse[start : start + _BLOCK], radius)
        ends = np.asarray(limits, dtype=np.int64)
        sizes = ends[1:] - ends[:-1]
        left = np.repeat(np.arange(start, start + len(sizes)), sizes)
        later = found > left
        for one, other in zip(left[later].tolist(), found[later].tolist(), strict=True):
            difference = np.sqrt(np.square(tiny[rows[one]] - tiny[rows[other]]).mean())
            if difference <= max(contrast[one], contrast[other]):
                _join(first, one, other)
    groups: dict[int, list[int]] = {}
    for place in range(len(rows)):
        groups.setdefault(_root(first, place), []).append(int(rows[place]))
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group))


def _root(first: npt.NDArray[np.int64], place: int) -> int:
    while first[place] != place:
        first[place] = first[first[place]]
        place = int(first[place])
    return place


def _join(first: npt.NDArray[np.int64], one: int, other: int) -> None:
    low, high = sorted((_root(first, one), _root(first, other)))
    first[high] = low
