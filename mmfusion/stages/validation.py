"""Ranking metrics of embeddings over a validation split, inside training."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mmfusion.data.qrels import Qrels
from mmfusion.distributed import world_size
from mmfusion.evaluation.metrics import has_gain, has_relevant, ndcg_at_k, recall_at_k

RECALL_AT, NDCG_AT = 100, 10
_QUERIES_AT_ONCE = 256


class Embeddings:
    """Rows and embeddings collected batch by batch; several named views of the same rows."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.views: dict[str, list[Tensor]] = {}

    def add(self, rows: Tensor, views: Mapping[str, Tensor]) -> None:
        self.rows.append(rows.cpu())
        for name, embeds in views.items():
            self.views.setdefault(name, []).append(embeds.detach().float().cpu())

    def gather(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows (N,) and embeddings (N, D) by view, from all ranks."""
        own = (torch.cat(self.rows), {name: torch.cat(parts) for name, parts in self.views.items()})
        if world_size() == 1:
            return own
        parts: list[tuple[Tensor, dict[str, Tensor]]] = [own] * world_size()
        dist.all_gather_object(parts, own)
        return torch.cat([rows for rows, _ in parts]), {
            name: torch.cat([views[name] for _, views in parts]) for name in own[1]
        }


def ranking_metrics(
    queries: Tensor, products: Tensor, query_rows: Tensor, product_rows: Tensor, qrels: Qrels, relevant_grade: int
) -> dict[str, float]:
    """Recall@100 and nDCG@10 in [0, 1] over all given products.

    Ties are left in whatever order they come; use `mmfusion.evaluation` for figures to report.

    Args:
        queries: (Q, D) embeddings of `query_rows` (Q,).
        products: (N, D) embeddings of `product_rows` (N,).
        qrels: Judgements between rows.
        relevant_grade: Lowest grade that Recall counts.
    """
    recalls, ndcgs = [], []
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        block = slice(start, start + _QUERIES_AT_ONCE)
        grades = torch.from_numpy(qrels.grades(query_rows[block].numpy(), product_rows.numpy()))
        places = (queries[block] @ products.T).topk(min(RECALL_AT, len(products)), dim=1).indices
        ranked, ideal = grades.gather(1, places), grades.topk(min(NDCG_AT, len(products)), dim=1).values
        relevant = (grades >= relevant_grade).sum(1)
        recalls.append(recall_at_k(ranked, relevant, RECALL_AT, relevant_grade=relevant_grade)[has_relevant(relevant)])
        ndcgs.append(ndcg_at_k(ranked, ideal, NDCG_AT)[has_gain(ideal)])
    return {f"recall@{RECALL_AT}": _mean(recalls), f"ndcg@{NDCG_AT}": _mean(ndcgs)}


def _mean(parts: list[Tensor]) -> float:
    values = torch.cat(parts)
    return float(values.mean()) if len(values) else float(np.nan)
