"""The two training stages, as Lightning modules that receive their model."""

from mmfusion.stages.lora import Lora, add_adapters
from mmfusion.stages.optimization import Optimization
from mmfusion.stages.sharding import whole_model
from mmfusion.stages.stage import NonFiniteLossError, Stage
from mmfusion.stages.stage1 import Stage1
from mmfusion.stages.stage2 import Stage2

__all__ = [
    "Lora",
    "NonFiniteLossError",
    "Optimization",
    "Stage",
    "Stage1",
    "Stage2",
    "add_adapters",
    "whole_model",
]
