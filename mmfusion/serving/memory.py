"""What the service holds in memory."""

import os
from pathlib import Path
from typing import Any

from mmfusion.model import MMFusionModel
from mmfusion.onnx import OnnxDescription


def resident_mib() -> float | None:
    """MiB of this process in RAM, pages of memory-mapped files that were looked at included; None: the system does not
    tell."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return None
    return round(int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def facts_of_tower(model: MMFusionModel) -> dict[str, Any]:
    """Parameters and MiB of a query tower, and whether a vision encoder came with it."""
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "parameters": sum(one.numel() for one in model.parameters()),
        "mib": round(sum(one.numel() * one.element_size() for one in tensors) / 2**20, 1),
        "vision_encoder": model.vision_model is not None,
    }


def facts_of_onnx(folder: Path, description: OnnxDescription) -> dict[str, Any]:
    """The same of an exported query tower, whose weights are files of the folder."""
    size = sum((folder / name).stat().st_size for name in description.sha256)
    return {"parameters": description.parameters, "mib": round(size / 2**20, 1), "vision_encoder": False}
