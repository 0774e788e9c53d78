"""Sequences of commands, run one after the other until one of them fails: `mmfusion quickstart` and `mmfusion test`."""

import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# What follows the Python interpreter on the command line, by what the step does in a few words.
Steps = Mapping[str, Sequence[str]]


def run_steps(steps: Steps, folder: Path | None = None) -> int:
    """Runs each step with this interpreter, printing its title and the seconds spent so far.

    Nothing is printed after the last step, so that its own closing lines are what a reader sees.

    Args:
        steps: What to run, in its order.
        folder: Where; default: the working directory.

    Returns:
        0, or the exit code of the first step that failed; the steps after it are not run. A step that a signal
        ended counts as 128 plus the signal's number, as in a shell.
    """
    begin = time.monotonic()
    for number, (title, arguments) in enumerate(steps.items(), start=1):
        heading = f"=== [{number}/{len(steps)}] {title}"
        print(f"\n{heading} (after {time.monotonic() - begin:.0f} s)", flush=True)
        code = subprocess.call([sys.executable, *arguments], cwd=folder)
        if code != 0:
            code = 128 - code if code < 0 else code
            command = shlex.join(("python", *arguments))
            print(f"{heading}: FAILED with exit code {code}; the command was: {command}", file=sys.stderr, flush=True)
            return code
    return 0


def check_steps(pytest_arguments: Sequence[str] = ()) -> Steps:
    """What `mmfusion test` runs, the cheapest first, the same for a person and for CI.

    Args:
        pytest_arguments: Handed to pytest after its own; `-n 0` turns the parallel workers off.
    """
    # Two workers keep both cores of a small machine busy; a file's tests share its fixtures, so they stay together.
    workers = ("-n", "2", "--dist", "loadfile")
    return {
        "lint (ruff check)": ("-m", "ruff", "check", "."),
        "format (ruff format)": ("-m", "ruff", "format", "--check", "."),
        "types (mypy)": ("-m", "mypy"),
        "tests (pytest)": ("-m", "pytest", *workers, *pytest_arguments),
    }


def find_checkout(start: Path | None = None) -> Path | None:
    """The folder that holds `pyproject.toml`, `mmfusion/` and `tests/`, or None.

    Looks at `start` (default: the working directory) and its parents, then next to the installed package, which is
    where an editable install points.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parent.parent):
        if all((folder / name).exists() for name in ("pyproject.toml", "mmfusion/steps.py", "tests")):
            return folder
    return None
