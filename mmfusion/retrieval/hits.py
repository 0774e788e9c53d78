"""What searches and look-ups return."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Hit:
    """One found product.

    Attributes:
        product_id: the catalogue's id.
        score: inner product of query and product embedding (exact or, with a compressing index, approximate).
        rank: place from 1.
        modality_weights: how much the fused embedding draws on "text" and "image", as the model reported it; empty
            where the index holds none.
        metadata: further columns of the product, such as its title; empty where the index holds none.
    """

    product_id: str
    score: float
    rank: int
    modality_weights: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredProduct:
    """What an index holds of a product.

    Attributes:
        product_id: the catalogue's id.
        vector: (D,) float32; with a compressing index, an approximation.
        modality_weights: as of a [`Hit`].
        metadata: as of a [`Hit`].
    """

    product_id: str
    vector: npt.NDArray[np.float32]
    modality_weights: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def ranked(found: Iterable[tuple[float, dict[str, Any]]]) -> list[Hit]:
    """Scores and products of one query as hits, best first; equal scores by product id, descending, as in evaluation.

    Args:
        found: Scores with rows of a table of products (`product_id` and perhaps `modality_weights` and `metadata`).
    """
    best = sorted(found, key=lambda one: (one[0], one[1]["product_id"]), reverse=True)
    return [
        Hit(row["product_id"], score, rank, row.get("modality_weights", {}), row.get("metadata", {}))
        for rank, (score, row) in enumerate(best, start=1)
    ]
