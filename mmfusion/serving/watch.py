"""Follows an index folder: an index that is built anew takes the place of the one that is served."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from mmfusion.retrieval import ProductIndex
from mmfusion.retrieval.index_files import DESCRIPTION, FILES, Stamp, stamp_of

log = logging.getLogger("mmfusion")

# Of each file of an index, None for one that is not there: all of them, as tools that copy replace one by one.
Version = tuple[Stamp | None, ...]


class IndexWatch:
    """Loads an index whenever its folder has been replaced.

    The new one is loaded, checked against the model and readied beside the old one, which answers until then. One that
    cannot be used is logged and left alone, and the old one goes on.

    Args:
        folder: Of the index.
        swap: Called with the new index.
        observe: Called with "done" or "refused".
        seen: `version_of` the folder before the index that is served was read from it; None: as it is now.
        verify: Compares all bytes of a new index with their checksums.
    """

    def __init__(
        self,
        folder: Path,
        swap: Callable[[ProductIndex], None],
        observe: Callable[[str], None] = lambda outcome: None,
        seen: Version | None = None,
        verify: bool = False,
    ) -> None:
        self.folder = folder
        self._verify = verify
        self._swap = swap
        self._observe = observe
        self._seen = version_of(folder) if seen is None else seen

    async def run(self, every_s: float) -> None:
        """Looks at the folder again and again."""
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Looks once."""
        version = version_of(self.folder)
        # Between two renames there is no folder for a moment.
        if version == self._seen or not (self.folder / DESCRIPTION).is_file():
            return
        try:
            index = load_index(self.folder, self._verify)
            if self._changed_since(version):
                return
            self._swap(index)
        except Exception as error:  # Whatever a damaged file brings about must not end the watch.
            if self._changed_since(version):
                return
            unexpected = not isinstance(error, (OSError, ValueError))
            text = "the new index in %s is not served, the one before goes on: %s"
            log.error(text, self.folder, repr(error) if unexpected else error, exc_info=unexpected)
            self._observe("refused")
        else:
            log.info("the new index in %s is served: %s products", self.folder, f"{len(index):,}")
            self._observe("done")
        self._seen = version

    def _changed_since(self, version: Version) -> bool:
        # What was read while files were being replaced may be of two indexes; the next look reads it again.
        return version_of(self.folder) != version


def load_index(folder: Path, verify: bool = False) -> ProductIndex:
    """Loads an index, ready to look up products by id; `verify` as of [`ProductIndex.load`]."""
    index = ProductIndex.load(folder, verify=verify)
    index.prepare_ids()
    return index


def version_of(folder: Path) -> Version:
    """What tells the files of an index from those that take their place."""
    return tuple(stamp_of(folder / name) for name in sorted(FILES))
