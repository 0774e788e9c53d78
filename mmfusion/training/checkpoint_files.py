"""The checkpoints in a folder: which there are, and which of them training can go on from."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from mmfusion.files import is_partial

log = logging.getLogger("mmfusion")


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, that with the most steps last."""
    return sorted(folder.glob("step=*.ckpt"), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that a checkpoint was written after."""
    return int(checkpoint.stem.split("=")[1])


def last_good_checkpoint(folder: Path, *, set_aside: bool) -> Path | None:
    """The checkpoint with the most steps that is not damaged, or None; each damaged one after it is a warning.

    Args:
        folder: Folder of the checkpoints.
        set_aside: Whether damaged ones are renamed to `*.damaged`, and what a kill left of others is removed. One
            process does this, before training starts.
    """
    if set_aside:
        for left in filter(is_partial, folder.glob(".*")):
            left.unlink(missing_ok=True)
    for path in reversed(list_checkpoints(folder)):
        reason = damage(path)
        if reason is None:
            return path
        if set_aside:
            log.warning(
                "%s is damaged (%s): it is now called %s.damaged, and training goes on from what came before it",
                *(path, reason, path.name),
            )
            os.replace(path, path.with_name(f"{path.name}.damaged"))
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint file, or None. All of it is read, as torch itself looks at no checksum."""
    if checkpoint.stat().st_size == 0:
        return "it is empty"
    try:
        with ZipFile(checkpoint) as archive:
            broken = archive.testzip()
    except BadZipFile as error:
        return f"it is cut off, or no checkpoint: {error}"
    return f"the checksum of {broken} in it is wrong" if broken else None


def keep_last(folder: Path, count: int) -> None:
    """Removes all but the `count` checkpoints with the most steps."""
    for path in list_checkpoints(folder)[:-count]:
        # Away already where two processes see one folder.
        with suppress(FileNotFoundError):
            path.unlink()
