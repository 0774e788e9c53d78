"""What `mmfusion test` runs: lint, format, types and tests, the same for a person and for CI."""

from __future__ import annotations

from collections.abc import Sequence

from .steps import Step

# Two workers keep both cores of a small machine busy; a file's tests share its fixtures, so they stay together.
_PYTEST_WORKERS = ("-n", "2", "--dist", "loadfile")


def check_steps(pytest_arguments: Sequence[str] = ()) -> list[Step]:
    """The checks in the order in which they run, the cheapest first.

    Args:
        pytest_arguments: Handed to pytest after its own; `-n 0` turns the parallel workers off.
    """
    return [
        Step("lint (ruff check)", ("-m", "ruff", "check", ".")),
        Step("format (ruff format)", ("-m", "ruff", "format", "--check", ".")),
        Step("types (mypy)", ("-m", "mypy")),
        Step("tests (pytest)", ("-m", "pytest", *_PYTEST_WORKERS, *pytest_arguments)),
    ]
