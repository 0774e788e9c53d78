"""Rankings, their metrics over the whole pool, slices, a BM25 baseline, paired comparisons, and the only tables."""

from mmfusion.evaluation.bm25 import rank_bm25
from mmfusion.evaluation.bootstrap import PairedDifference, paired_bootstrap
from mmfusion.evaluation.evaluate import evaluate, evaluate_pool, evaluate_rankings
from mmfusion.evaluation.evaluation import METRICS, Evaluation, Slice
from mmfusion.evaluation.pages import write_evaluation
from mmfusion.evaluation.ranking import TieOrder, rank
from mmfusion.evaluation.tables import format_comparison, format_table
from mmfusion.evaluation.weights import ModalityAgreement, modality_agreement

__all__ = [
    "METRICS",
    "Evaluation",
    "ModalityAgreement",
    "PairedDifference",
    "Slice",
    "TieOrder",
    "evaluate",
    "evaluate_pool",
    "evaluate_rankings",
    "format_comparison",
    "format_table",
    "modality_agreement",
    "paired_bootstrap",
    "rank",
    "rank_bm25",
    "write_evaluation",
]
