"""Losses over pairs: pure functions of tensors, and thin modules that meet the negatives of all ranks."""

from mmfusion.losses.contrastive import GradedContrastiveLoss
from mmfusion.losses.functional import graded_contrastive, graded_sigmoid
from mmfusion.losses.sigmoid import GradedSigmoidLoss

__all__ = ["GradedContrastiveLoss", "GradedSigmoidLoss", "graded_contrastive", "graded_sigmoid"]
