"""Where commands keep a catalogue in the form that they map into memory: converted once, and shared."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from mmfusion.data.catalogue import BaseCatalogue

VARIABLE = "MMFUSION_CACHE"
"""Environment variable for the folder that all commands share, where no flag names one."""

# Commands of a project are typed again within days; an old table may be about as large as its catalogue.
_KEPT_SECONDS = 7 * 86_400

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded", bound=BaseCatalogue)


def load_shared(
    load: Callable[..., Loaded], source: str, folder: Path, cache_dir: str | None = None, base: str | None = None
) -> Loaded:
    """Loads a catalogue from tables that are converted once.

    In a shared folder, tables that no command has used for a week are removed. Without one, nothing is written outside
    of the output folder, and tables in output folders beside it, or in that of the base, get a second name (a hard
    link) there instead of being converted again.

    Args:
        load: Takes the source, and as `cache_dir` the folder of its tables.
        source: Folder, URL or Hub id of the catalogue.
        folder: Output folder of the command.
        cache_dir: Folder to share; None: the one that the environment variable MMFUSION_CACHE names, if it does.
        base: Folder of the base model, whose tables may be shared.
    """
    named = cache_dir or os.environ.get(VARIABLE)
    shared = None if not named else _of_source(Path(named).expanduser().absolute(), source)
    if shared is not None and _is_writable(shared):
        catalogue = load(source, cache_dir=shared)
        _remove_unused(shared, _files_of(catalogue))
        return catalogue
    own = folder / "cache" / "catalogue"
    beside = [folder.parent / "cache" / "catalogue", *sorted(folder.parent.glob("*/cache/catalogue"))]
    others = [shared, None if base is None else Path(base) / "cache" / "catalogue"]
    linked = _link_tables(own, [*beside, *(place for place in others if place is not None)])
    catalogue = load(source, cache_dir=own)
    used = _files_of(catalogue)
    for path in linked:
        # Judgements are small, and no file of theirs is held.
        if path.name.startswith("products-") and path.resolve() not in used:
            path.unlink(missing_ok=True)
    return catalogue


def _of_source(cache: Path, source: str) -> Path:
    """The folder of one catalogue: two may have files of the same names and footers."""
    place = os.path.abspath(source) if os.path.isdir(source) else source
    name = os.path.basename(source.rstrip("/")) or "catalogue"
    return cache / "catalogues" / f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = str(error.strerror or error)
    else:
        if os.access(folder, os.W_OK):
            return True
        problem = "no permission to write"
    logger.warning("the cache %s cannot be written to (%s); the output folder is used", folder, problem)
    return False


def _link_tables(own: Path, places: Iterable[Path]) -> list[Path]:
    """Gives converted tables of other folders a name in this one; returns the names that are new."""
    linked = []
    for place in places:
        for path in place.glob("*.arrow") if place != own else ():
            target = own / path.name
            if target.exists():
                continue
            own.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                # On another disk, or by another owner, it is converted once more.
                os.link(path.resolve(), target)
                linked.append(target)
    return linked


def _files_of(catalogue: Any) -> set[Path]:
    tables = (catalogue.products, catalogue.queries)
    return {Path(file["filename"]).resolve() for table in tables for file in table.cache_files}


def _remove_unused(folder: Path, used: set[Path]) -> None:
    now = time.time()
    for path in folder.glob("*.arrow"):
        # Another user's, or removed by another command at the same time.
        with suppress(OSError):
            if path.resolve() in used or path.name.startswith("qrels-"):
                os.utime(path)
            elif now - path.stat().st_mtime > _KEPT_SECONDS:
                path.unlink()
