"""Retrieval metrics: pure functions and torchmetrics classes."""

from mmfusion.metrics.functional import discounted_gain, has_gain, has_relevant, ndcg_at_k, recall_at_k
from mmfusion.metrics.retrieval import RetrievalNDCGAtK, RetrievalRecallAtK

__all__ = [
    "RetrievalNDCGAtK",
    "RetrievalRecallAtK",
    "discounted_gain",
    "has_gain",
    "has_relevant",
    "ndcg_at_k",
    "recall_at_k",
]
