"""What a job says when its disk is full."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmfusion.model.errors import MMFusionError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(OSError, MMFusionError):
    """A job stopped, as its results cannot be written; what was written before is whole."""


@contextmanager
def full_disk_ends(folder: Path, then: str = "resume from the last checkpoint") -> Iterator[None]:
    """Raises a [`DiskFullError`] where the block cannot write to a folder for lack of space or quota.

    Args:
        folder: The folder.
        then: What the same command does once there is room.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        # datasets and tables wrap what they could not write.
        cause: BaseException | None = error
        while cause is not None and not _is_full(cause):
            cause = cause.__cause__
        if cause is None:
            raise
        raise DiskFullError(
            f"{folder} cannot be written, as its disk or your quota is full; make room, and run the same command to "
            f"{then}."
        ) from error


def _is_full(error: BaseException) -> bool:
    # safetensors writes from Rust and FAISS from C++, and have it in their messages only.
    signs = (sign for number in _FULL for sign in (f"(os error {number})", os.strerror(number)))
    return getattr(error, "errno", None) in _FULL or any(sign in str(error) for sign in signs)
