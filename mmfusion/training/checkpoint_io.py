"""How checkpoints reach the disk: whole, or not at all."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mmfusion.files import whole_file
from mmfusion.model.errors import MMFusionError


class CheckpointNotWrittenError(OSError, MMFusionError):
    """A checkpoint could not be written, and nothing has its name."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, has the disk hold it, and renames it.

    Lightning's own plugin goes through the folder for temporary files, which may lie on another disk, so that moving
    the file is a copy that a kill cuts off; and it waits for no disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint to a local path; `storage_options` belong to remote ones and are not used.

        Raises:
            CheckpointNotWrittenError: The disk is full, or cannot be written for another reason.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with whole_file(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # torch finds that the end of its archive cannot be written either, and says that.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise CheckpointNotWrittenError(cause.errno, cause.strerror, str(path)) from error
