"""What a training says when its disk is full."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(OSError):
    """Training stopped, as its results cannot be written; what was written before is whole."""


@contextmanager
def full_disk_ends(folder: Path) -> Iterator[None]:
    """Raises a [`DiskFullError`] where the block cannot write to a folder for lack of space or quota."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        raise DiskFullError(
            f"{folder} cannot be written, as its disk or your quota is full; make room, and run the same command to "
            "resume from the last checkpoint."
        ) from error


def _is_full(error: Exception) -> bool:
    # safetensors writes from Rust, and has the number in its text only.
    return getattr(error, "errno", None) in _FULL or any(f"(os error {number})" in str(error) for number in _FULL)
