"""Follows an index folder: an index that is built again replaces the one that is served."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from mmfusion.retrieval import ProductIndex
from mmfusion.retrieval.index_files import DESCRIPTION, FILES, Stamp, stamp_of

logger = logging.getLogger(__name__)

# Of each file of an index, None for one that is not there: all of them, as tools that copy replace one by one.
Version = tuple[Stamp | None, ...]


class IndexWatch:
    """Loads an index whenever its folder has been replaced since the watch was made.

    Args:
        folder: Folder of the index.
        verify: Compares all bytes of a new index with their checksums.
    """

    def __init__(self, folder: Path, verify: bool = False) -> None:
        self.folder = folder
        self._verify = verify
        self._seen = _version_of(folder)

    def look(self, swap: Callable[[ProductIndex], None]) -> Literal["done", "refused"] | None:
        """Loads a new index, prepares it, and hands it to `swap`, which may raise an error, too.

        Returns:
            "done", or "refused" if it cannot be used, which is logged; None: there is none, or it is not complete yet.
        """
        version = _version_of(self.folder)
        # Between two renames there is no folder for a moment.
        if version == self._seen or not (self.folder / DESCRIPTION).is_file():
            return None
        try:
            index = load_index(self.folder, self._verify)
            # What was read while files were being replaced may be of two indexes; the next look reads it again.
            if _version_of(self.folder) != version:
                return None
            swap(index)
        except Exception as error:  # No error of a damaged file may end the watch.
            if _version_of(self.folder) != version:
                return None
            self._seen = version
            text = "the new index in %s cannot be used, the one before stays: %r"
            logger.error(text, self.folder, error, exc_info=not isinstance(error, (OSError, ValueError)))
            return "refused"
        self._seen = version
        logger.info("the new index in %s is served: %s products", self.folder, f"{len(index):,}")
        return "done"


def load_index(folder: Path, verify: bool = False) -> ProductIndex:
    """Loads an index, ready to look up products by id; `verify` as of [`ProductIndex.load`]."""
    index = ProductIndex.load(folder, verify=verify)
    index.prepare_ids()
    return index


def _version_of(folder: Path) -> Version:
    """What distinguishes the files of an index from those that replace them."""
    return tuple(stamp_of(folder / name) for name in sorted(FILES))
