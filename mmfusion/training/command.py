"""A recipe's `main` as a command: its signature is the command line, and its refusals are one line."""

import os
import signal
import sys
from collections.abc import Callable

from jsonargparse import auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mmfusion.stages import NonFiniteLossError
from mmfusion.training.dry_run import OutOfMemoryError
from mmfusion.training.full_disk import DiskFullError

_REFUSALS = (
    ValueError,
    ImportError,
    FileExistsError,
    FileNotFoundError,
    NonFiniteLossError,
    DiskFullError,
    OutOfMemoryError,
    # Lightning's own, of devices that are not there.
    MisconfigurationException,
)


def run_command(main: Callable[..., None], *, as_positional: bool = False) -> None:
    """Runs `main` with arguments from the command line.

    Abbreviated flags are errors. A refusal (an exception whose text names value, place and remedy) is printed without
    its traceback and ends the process with code 1; set `MMFUSION_TRACEBACK=1` to see where it came from. Ctrl-C ends it
    with code 130.

    Args:
        main: Typed function with a Google-style docstring.
        as_positional: Takes parameters without a default as positional arguments rather than as flags.
    """
    try:
        auto_cli(main, as_positional=as_positional, allow_abbrev=False)
    except _REFUSALS as refusal:
        if os.environ.get("MMFUSION_TRACEBACK"):
            raise
        sys.exit(f"{type(refusal).__name__}: {refusal}")
    except KeyboardInterrupt:
        # As a shell says of a process that SIGINT ended.
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
