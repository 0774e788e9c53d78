"""Trains and evaluates every rung of the ladder by running the recipes, and compares the rungs."""

from mmfusion.ladder.ladder import run_ladder
from mmfusion.ladder.settings import LadderError, LadderSettings, Split

__all__ = ["LadderError", "LadderSettings", "Split", "run_ladder"]
