"""Trains and evaluates every variant of the ablation by running the commands, and compares the variants."""

from mmfusion.ablation.ablation import run_ablation, with_bases
from mmfusion.ablation.settings import AblationError, AblationSettings

__all__ = ["AblationError", "AblationSettings", "run_ablation", "with_bases"]
