"""The error of every part of a catalogue, and the one place where errors of other libraries become it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmfusion.model.errors import MMFusionError


class CatalogueError(MMFusionError):
    """A catalogue cannot be used as it is; the message names the value, the place and the remedy."""

    def __init__(self, problem: str, place: str = "", remedy: str = "") -> None:
        # One finished string stays the only argument, so that the error survives a trip between processes.
        super().__init__(". ".join(part for part in (f"{place}: {problem}" if place else problem, remedy) if part))


@contextmanager
def reading(place: str, remedy: str) -> Iterator[None]:
    """Turns what a library raises while it reads into one error of ours."""
    try:
        yield
    except CatalogueError:
        raise
    except Exception as error:
        # The kinds differ by file system and version: OSError, ArrowInvalid, DatasetGenerationError, ImportError ...
        cause: BaseException = error
        while type(error).__module__.startswith("datasets") and cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or "no details").splitlines()[0][:300]
        raise CatalogueError(f"cannot be read ({type(cause).__name__}: {reason})", place, remedy) from error
