"""The forward pass of a batch, and the shard that its vectors are gathered in: the same for every engine."""

from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.data.tables import Rows
from mmfusion.embedding.content import Digests
from mmfusion.embedding.precision import FloatArray
from mmfusion.embedding.shard import MadeOf, write_shard
from mmfusion.model import MMFusionModel


def embed_batch(
    model: MMFusionModel, batch: dict[str, Any], truncate_dim: int | None = None
) -> tuple[FloatArray, FloatArray]:
    """Vectors (n, D) and modality weights (n, 2) of a batch of a `ShardTable`, float32 on the CPU."""
    inputs = {name: value for name, value in batch.items() if name not in ("shard", "product_rows")}
    output = model(**inputs)
    vectors = model.shorten(output.product_embeds.float(), truncate_dim)
    return vectors.cpu().numpy(), output.modality_weights.float().cpu().numpy()


class OpenShard:
    """A shard whose vectors come batch by batch, in any order.

    Args:
        rows: (n,) int64 ascending catalogue rows of its products.
        dimension: Components of a vector.
    """

    def __init__(self, rows: Rows, dimension: int) -> None:
        self.rows = rows
        self.vectors: FloatArray = np.zeros((len(rows), dimension), np.float32)
        self.weights: FloatArray = np.zeros((len(rows), 2), np.float32)
        self.filled = 0

    @property
    def is_full(self) -> bool:
        """Whether all products have their vectors."""
        return self.filled == len(self.rows)

    def add(self, rows: Rows, vectors: FloatArray, weights: FloatArray) -> None:
        """Puts the vectors of a batch, by its catalogue rows, in their places."""
        places = np.searchsorted(self.rows, rows)
        self.vectors[places], self.weights[places] = vectors, weights
        self.filled += len(places)

    def write(self, path: Path, made_of: MadeOf, ids: list[str], contents: Digests) -> None:
        """Writes the file, whole or not at all; errors are those of `write_shard`."""
        write_shard(path, made_of, ids, contents, self.vectors, self.weights)
