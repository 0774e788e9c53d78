"""Searchable indexes of product embeddings."""

from mmfusion.retrieval.hit import Hit
from mmfusion.retrieval.index import MODALITIES, IndexDescription, ProductIndex

__all__ = ["MODALITIES", "Hit", "IndexDescription", "ProductIndex"]
