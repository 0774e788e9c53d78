"""The two training stages, as Lightning modules that receive their model."""

from mmfusion.stages.optimization import Optimization
from mmfusion.stages.stage import NonFiniteLossError, Stage
from mmfusion.stages.stage1 import Stage1
from mmfusion.stages.stage2 import Stage2

__all__ = ["NonFiniteLossError", "Optimization", "Stage", "Stage1", "Stage2"]
