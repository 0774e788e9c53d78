"""One self-contained HTML page: the ablation, its slices, and what two models find for chosen queries."""

from mmfusion.report.build import build_report, load_variants, write_page
from mmfusion.report.queries import Questions, Ranking, choose, rank_with

__all__ = ["Questions", "Ranking", "build_report", "choose", "load_variants", "rank_with", "write_page"]
