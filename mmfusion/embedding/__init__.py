"""Embedding catalogues of any size into shards, resumably and incrementally."""

from mmfusion.embedding.job import EmbeddingJob, EmbeddingSettings
from mmfusion.embedding.shards import (
    VECTOR_TYPES,
    EmbeddedCatalogue,
    Manifest,
    Provenance,
    ShardEntry,
    ShardError,
    VectorType,
)

__all__ = [
    "VECTOR_TYPES",
    "EmbeddedCatalogue",
    "EmbeddingJob",
    "EmbeddingSettings",
    "Manifest",
    "Provenance",
    "ShardEntry",
    "ShardError",
    "VectorType",
]
