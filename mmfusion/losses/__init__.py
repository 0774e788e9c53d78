"""Losses over pairs: pure functions of tensors, and thin modules that meet the negatives of all ranks."""

from mmfusion.losses.functional import graded_contrastive, graded_sigmoid
from mmfusion.losses.graded import (
    LOSSES,
    GradedContrastiveLoss,
    GradedSigmoidLoss,
    PairLoss,
    gather,
    register_loss,
)
from mmfusion.losses.grades import Grades, Items, graded

__all__ = [
    "LOSSES",
    "GradedContrastiveLoss",
    "GradedSigmoidLoss",
    "Grades",
    "Items",
    "PairLoss",
    "gather",
    "graded",
    "graded_contrastive",
    "graded_sigmoid",
    "register_loss",
]
