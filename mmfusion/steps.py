"""A named sequence of commands, run one after the other in the checkout until one of them fails."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class CheckoutNotFoundError(RuntimeError):
    """Neither the working directory nor the installed package lies in a checkout of mmfusion."""


@dataclass(frozen=True)
class Step:
    """One command of a sequence.

    Attributes:
        title: What the step does, in a few words; printed before it starts and when it fails.
        arguments: What follows the Python interpreter on the command line, for example `("-m", "pytest")`.
    """

    title: str
    arguments: tuple[str, ...]


def find_checkout(start: Path | None = None) -> Path:
    """Finds the folder that holds `pyproject.toml`, `mmfusion/` and `tests/`.

    Looks at `start` (default: the working directory) and its parents, then beside the installed package, which is
    where an editable install points.

    Raises:
        CheckoutNotFoundError: None of them is a checkout.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parent.parent):
        if _is_checkout(folder):
            return folder
    raise CheckoutNotFoundError(
        f"{start} does not lie in a checkout of mmfusion (a folder with pyproject.toml, mmfusion/ and tests/). "
        "The recipes and the tests are not part of the installed package: clone the repository, "
        "change into it and run the command again."
    )


def run_steps(steps: Sequence[Step], checkout: Path) -> int:
    """Runs each step with this interpreter in `checkout`, printing its title and the seconds spent so far.

    Nothing is printed after the last step, so that its own closing lines are what a reader sees.

    Returns:
        0, or the exit code of the first step that failed; the steps after it are not run. A step that a signal
        ended counts as 128 plus the signal's number, as in a shell.
    """
    begin = time.monotonic()
    for number, step in enumerate(steps, start=1):
        heading = f"=== [{number}/{len(steps)}] {step.title}"
        print(f"\n{heading} (after {time.monotonic() - begin:.0f} s)", flush=True)
        code = subprocess.call([sys.executable, *step.arguments], cwd=checkout)
        if code != 0:
            code = 128 - code if code < 0 else code
            command = shlex.join(("python", *step.arguments))
            print(f"{heading}: FAILED with exit code {code}; the command was: {command}", file=sys.stderr, flush=True)
            return code
    return 0


def _is_checkout(folder: Path) -> bool:
    return (
        (folder / "pyproject.toml").is_file()
        and (folder / "mmfusion" / "steps.py").is_file()
        and (folder / "tests").is_dir()
    )
