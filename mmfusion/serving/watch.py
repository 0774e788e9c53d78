"""Follows an index folder: an index that is built anew takes the place of the one that is served."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from mmfusion.retrieval import ProductIndex
from mmfusion.retrieval.index_files import DESCRIPTION

log = logging.getLogger("mmfusion")

# Identity of a file: another one has been put in its place if any of these is another.
Version = tuple[int, int, int] | None


class IndexWatch:
    """Loads an index whenever its folder has been replaced.

    The new one is loaded, checked against the model and readied beside the old one, which answers until then. One that
    cannot be used is logged and left alone, and the old one goes on.

    Args:
        folder: Of the index.
        swap: Called with the new index.
        observe: Called with "done" or "refused".
    """

    def __init__(
        self, folder: Path, swap: Callable[[ProductIndex], None], observe: Callable[[str], None] = lambda outcome: None
    ) -> None:
        self.folder = folder
        self._swap = swap
        self._observe = observe
        self._seen = _version(folder)

    async def run(self, every_s: float) -> None:
        """Looks at the folder again and again."""
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Looks once."""
        version = _version(self.folder)
        # Between two renames there is no folder for a moment.
        if version is None or version == self._seen:
            return
        self._seen = version
        try:
            index = load_index(self.folder)
            self._swap(index)
        except (OSError, ValueError) as error:
            log.error("the new index in %s is not served, the one before goes on: %s", self.folder, error)
            self._observe("refused")
        else:
            log.info("the new index in %s is served: %s products", self.folder, f"{len(index):,}")
            self._observe("done")


def load_index(folder: Path) -> ProductIndex:
    """Loads an index, ready to look up products by id."""
    index = ProductIndex.load(folder)
    index.prepare_ids()
    return index


def _version(folder: Path) -> Version:
    try:
        found = (folder / DESCRIPTION).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
