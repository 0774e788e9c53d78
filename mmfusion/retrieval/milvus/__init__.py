"""Product embeddings in Milvus: an embedded file, or a cluster."""

from mmfusion.retrieval.milvus.connection import MilvusError
from mmfusion.retrieval.milvus.index import MilvusIndex
from mmfusion.retrieval.milvus.upload import CollectionDescription

__all__ = ["CollectionDescription", "MilvusError", "MilvusIndex"]
