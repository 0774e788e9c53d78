"""One self-contained HTML page: the ablation, its slices, and what two models find for chosen queries."""

from mmfusion.report.build import build_report
from mmfusion.report.choice import choose
from mmfusion.report.page import write_page
from mmfusion.report.ranking import Questions, Ranking, rank_with
from mmfusion.report.results import load_variants

__all__ = ["Questions", "Ranking", "build_report", "choose", "load_variants", "rank_with", "write_page"]
