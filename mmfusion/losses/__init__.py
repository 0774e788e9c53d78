"""Contrastive losses: pure functions of tensors, and thin modules that gather negatives from all ranks."""

from mmfusion.losses.contrastive import GradedContrastiveLoss
from mmfusion.losses.functional import graded_contrastive

__all__ = ["GradedContrastiveLoss", "graded_contrastive"]
