"""What recipes share: run folders, trainers, checkpoints, curves, and where models and catalogues come from."""

from mmfusion.training.dry_run import preflight
from mmfusion.training.features import cache_frozen, cache_pool
from mmfusion.training.hardware import Hardware
from mmfusion.training.hub_checkpoints import HubCheckpoints, PushCheckpoints
from mmfusion.training.hub_resume import continue_from_hub
from mmfusion.training.output_lock import RunError, take_lock
from mmfusion.training.run import Run, open_run, recorded_arguments
from mmfusion.training.sources import load_base, load_catalogue, note_catalogue, starting_base
from mmfusion.training.trainer import build_trainer, fit

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
