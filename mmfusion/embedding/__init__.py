"""Embedding catalogues of any size into shards, resumably and incrementally."""

from mmfusion.embedding.job import EmbeddingJob, EmbeddingSettings
from mmfusion.embedding.manifest import EmbeddedCatalogue, Manifest, ShardEntry
from mmfusion.embedding.precision import VECTOR_TYPES, VectorType
from mmfusion.embedding.shard import MadeOf, ShardError

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
