"""Product embeddings in Milvus: an embedded file, or a cluster."""

from mmfusion.retrieval.milvus.connection import MilvusError
from mmfusion.retrieval.milvus.description import CollectionDescription
from mmfusion.retrieval.milvus.index import MilvusIndex

__all__ = ["CollectionDescription", "MilvusError", "MilvusIndex"]
