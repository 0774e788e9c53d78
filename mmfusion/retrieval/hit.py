"""One found product, and one that is looked up."""

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
        vector: (D,) float32; with a compressing index, what that left of it.
        modality_weights: as of a [`Hit`].
        metadata: as of a [`Hit`].
    """

    product_id: str
    vector: npt.NDArray[np.float32]
    modality_weights: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
