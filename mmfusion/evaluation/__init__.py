"""Rankings, their metrics over the whole pool, slices, a BM25 baseline and paired comparisons."""

from mmfusion.evaluation.bm25 import rank_bm25
from mmfusion.evaluation.bootstrap import PairedDifference, paired_bootstrap
from mmfusion.evaluation.comparison import format_comparison
from mmfusion.evaluation.evaluate import evaluate_rankings
from mmfusion.evaluation.evaluation import Evaluation
from mmfusion.evaluation.modality import ModalityAgreement, modality_agreement
from mmfusion.evaluation.ranking import TieOrder, rank
from mmfusion.evaluation.report import format_table
from mmfusion.evaluation.slices import Slice

__all__ = [
    "Evaluation",
    "ModalityAgreement",
    "PairedDifference",
    "Slice",
    "TieOrder",
    "evaluate_rankings",
    "format_comparison",
    "format_table",
    "modality_agreement",
    "paired_bootstrap",
    "rank",
    "rank_bm25",
]
