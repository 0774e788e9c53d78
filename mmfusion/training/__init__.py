"""What trainings share: output folders, trainers, checkpoints, and where models and catalogues come from.

Names are loaded when they are first used: most need Lightning, which takes seconds to import, and some do not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmfusion.training.dry_run import preflight
    from mmfusion.training.features import cache_frozen, cache_pool
    from mmfusion.training.hardware import Hardware
    from mmfusion.training.hub_checkpoints import HubCheckpoints, PushCheckpoints
    from mmfusion.training.hub_resume import continue_from_hub
    from mmfusion.training.output_lock import RunError, take_lock
    from mmfusion.training.run import Run, open_run, recorded_arguments
    from mmfusion.training.sources import load_base, load_catalogue, note_catalogue, starting_base
    from mmfusion.training.trainer import build_trainer, fit

_MODULES = {
    "Hardware": "hardware",
    "HubCheckpoints": "hub_checkpoints",
    "PushCheckpoints": "hub_checkpoints",
    "Run": "run",
    "RunError": "output_lock",
    "build_trainer": "trainer",
    "cache_frozen": "features",
    "cache_pool": "features",
    "continue_from_hub": "hub_resume",
    "fit": "trainer",
    "load_base": "sources",
    "load_catalogue": "sources",
    "note_catalogue": "sources",
    "open_run": "run",
    "preflight": "dry_run",
    "recorded_arguments": "run",
    "starting_base": "sources",
    "take_lock": "output_lock",
}

__all__ = [
    "Hardware",
    "HubCheckpoints",
    "PushCheckpoints",
    "Run",
    "RunError",
    "build_trainer",
    "cache_frozen",
    "cache_pool",
    "continue_from_hub",
    "fit",
    "load_base",
    "load_catalogue",
    "note_catalogue",
    "open_run",
    "preflight",
    "recorded_arguments",
    "starting_base",
    "take_lock",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
