"""Parameter groups by depth and decay, and the learning-rate schedule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mmfusion.distributed.shards import is_sharded
from mmfusion.model import MMFusionModel


@dataclass
class Optimization:
    """How a stage optimises. Learning rates are peaks of a linear warm-up and cosine decay over optimizer steps.

    Attributes:
        learning_rate: Learning rate of new layers: projections, fusion network, logit scale. At least 0.
        text_learning_rate: Learning rate of the text encoder; 0 freezes it.
        vision_learning_rate: Learning rate of the vision encoder; 0 freezes it.
        weight_decay: AdamW weight decay of matrices; biases, norms and scalars are not decayed. At least 0.
        warmup_fraction: Share of the steps that warm up, in [0, 1].
        final_fraction: Learning rate at the end as a share of the peak, in [0, 1].
    """

    learning_rate: float = 1e-3
    text_learning_rate: float = 1e-4
    vision_learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup_fraction: float = 0.1
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "text_learning_rate", "vision_learning_rate", "weight_decay"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optimization.{name} is {getattr(self, name)}; give a number of at least 0.")
        for name in ("warmup_fraction", "final_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"optimization.{name} is {getattr(self, name)}; give a number from 0 to 1.")


def freeze_by_rate(model: MMFusionModel, settings: Optimization) -> None:
    """Turns gradients off in encoders whose learning rate is 0."""
    rates = {**dict.fromkeys(_TEXT_PARTS, settings.text_learning_rate), "vision_model": settings.vision_learning_rate}
    for name, rate in rates.items():
        part = getattr(model, name)
        if part is not None and rate == 0:
            part.requires_grad_(False)


def parameter_groups(model: MMFusionModel, settings: Optimization) -> list[dict[str, Any]]:
    """AdamW groups, named `text`, `vision` and `head`, each split into decayed and not; without frozen parameters.

    Where others are sharded, whole parameters are in groups of their own, as fused AdamW takes either kind.
    """
    rates = {
        "text": settings.text_learning_rate,
        "vision": settings.vision_learning_rate,
        "head": settings.learning_rate,
    }
    groups: dict[tuple[str, bool, str], list[nn.Parameter]] = {}
    sharded = is_sharded(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "_whole" if sharded and not isinstance(parameter, DTensor) else ""
            groups.setdefault((part_of(name), parameter.ndim >= 2, kind), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates[part],
            "weight_decay": settings.weight_decay if decayed else 0.0,
            "name": f"{part if decayed else f'{part}_no_decay'}{kind}",
        }
        for (part, decayed, kind), parameters in sorted(groups.items())
    ]


def can_fuse(device: torch.device, precision: str | None) -> bool:
    """Whether AdamW runs as one fused kernel; `precision` is Lightning's name of it."""
    # With a gradient scaler, fused AdamW undoes the scaling itself, when it is too late to clip gradients.
    return device.type in ("cpu", "cuda") and precision != "16-mixed"


def warmup_cosine(
    optimizer: torch.optim.Optimizer, schedules: Sequence[tuple[int, int]], settings: Optimization
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then half a cosine down to `final_fraction`, again for each extension of a training.

    Such warm restarts are those of SGDR (Loshchilov and Hutter, arXiv:1608.03983).

    Args:
        optimizer: Its groups have the peaks.
        schedules: First step and number of optimizer steps of each schedule, in their order.
        settings: Shares of warm-up and end.
    """

    def share(step: int) -> float:
        begin, steps = next((begin, steps) for begin, steps in reversed(schedules) if step >= begin)
        warmup, step = round(settings.warmup_fraction * steps), step - begin
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return settings.final_fraction + (1 - settings.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def part_of(name: str) -> str:
    """`text`, `vision` or `head`: where a parameter of the model, by its name, belongs."""
    prefix = name.split(".", 1)[0]
    return {"vision_model": "vision", **dict.fromkeys(_TEXT_PARTS, "text")}.get(prefix, "head")


# With the layers of a pretrained text encoder that come after its pooling.
_TEXT_PARTS = ("text_model", "query_model", "text_head", "query_head")
