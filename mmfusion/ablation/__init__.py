"""Trains and evaluates every variant of the ablation by running the recipes, and compares the variants."""

from mmfusion.ablation.ablation import run_ablation
from mmfusion.ablation.settings import AblationError, AblationSettings, Split

__all__ = ["AblationError", "AblationSettings", "Split", "run_ablation"]
