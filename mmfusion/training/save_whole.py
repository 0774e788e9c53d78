"""Models and their processors in a folder: whole or not there."""

import shutil
from pathlib import Path

from mmfusion.files import move_files
from mmfusion.model import MMFusionModel, MMFusionProcessor


def save_whole(folder: Path, model: MMFusionModel, processor: MMFusionProcessor) -> None:
    """Saves the model so that a kill leaves no half of it: `config.json`, which makes a folder a model, comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        move_files(partial, folder, last=["config.json"])
    finally:
        # Of no use to anybody, and on a full disk the room is needed.
        shutil.rmtree(partial, ignore_errors=True)
