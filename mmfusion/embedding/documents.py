"""Embedded products with what the catalogue knows of them, a shard at a time, for engines that are not ours."""

import hashlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from mmfusion.embedding.shards import EmbeddedCatalogue, FloatArray
from mmfusion.model.errors import MMFusionError
from mmfusion.retrieval.products import MODALITIES

OWN_COLUMNS = ("product_id", "embedding", *(f"{name}_weight" for name in MODALITIES))
"""Columns that are written of each product, beside those of the catalogue."""


class ExportError(MMFusionError):
    """Vectors cannot be exported."""


class Documents(NamedTuple):
    """Products of a shard: `ids`, `vectors` (n, D) float32, and values of all other columns by name."""

    ids: list[str]
    vectors: FloatArray
    columns: dict[str, list[Any]]


def documents(embedded: EmbeddedCatalogue, metadata: pa.Table, first: int = 0) -> Iterator[Documents]:
    """Documents, shard by shard; NaN becomes None, and vectors of fewer bytes float32.

    Args:
        embedded: Vectors.
        metadata: Columns of the catalogue, in the order of the vectors.
        first: Shards to leave out.
    """
    start = sum(entry.rows for entry in embedded.manifest.shards[:first])
    read = zip(embedded.shards(["product_id", "modality_weights"]), embedded.vectors(), strict=True)
    for at, (shard, vectors) in enumerate(read):
        if at < first:
            continue
        rows = metadata.slice(start, len(vectors))
        start += len(vectors)
        columns = {name: [_known(value) for value in rows[name].to_pylist()] for name in rows.column_names}
        weights = shard["modality_weights"].combine_chunks()
        columns |= {f"{name}_weight": weights.field(name).to_pylist() for name in MODALITIES}
        yield Documents(shard["product_id"].to_pylist(), vectors, columns)


def check_columns(metadata: pa.Table) -> None:
    """Raises an error for a column of the catalogue that has the name of one of ours."""
    for name in metadata.column_names:
        if name in OWN_COLUMNS:
            raise ExportError(f"The catalogue has a column {name!r}, which names the export's own; rename it.")


def digest(embedded: EmbeddedCatalogue, metadata: pa.Table) -> str:
    """SHA-256 (hex) of what an export is made of."""
    found = hashlib.sha256("".join(entry.sha256 for entry in embedded.manifest.shards).encode())
    for batch in metadata.combine_chunks().to_batches():
        found.update(batch.serialize())
    return found.hexdigest()


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
