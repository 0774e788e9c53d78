"""Embedding catalogues of any size into shards, resumably and incrementally."""

from mmfusion.embedding.job import EmbeddingJob, EmbeddingSettings
from mmfusion.embedding.shards import (
    VECTOR_TYPES,
    EmbeddedCatalogue,
    MadeOf,
    Manifest,
    ShardEntry,
    ShardError,
    VectorType,
)

__all__ = [
    "VECTOR_TYPES",
    "EmbeddedCatalogue",
    "EmbeddingJob",
    "EmbeddingSettings",
    "MadeOf",
    "Manifest",
    "ShardEntry",
    "ShardError",
    "VectorType",
]
