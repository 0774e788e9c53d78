"""Follows an index folder: an index that is built anew takes the place of the one that is served."""

import logging
from collections.abc import Callable
from pathlib import Path

from prometheus_client import Counter

from mmfusion.retrieval import ProductIndex
from mmfusion.retrieval.index_files import DESCRIPTION, FILES, Stamp, stamp_of

log = logging.getLogger(__name__)

# Of each file of an index, None for one that is not there: all of them, as tools that copy replace one by one.
Version = tuple[Stamp | None, ...]


class IndexWatch:
    """Loads an index whenever its folder has been replaced.

    The new one is loaded, checked against the model and prepared while the old one answers. If it cannot be used, this
    is logged, and the old one stays.

    Args:
        folder: Folder of the index.
        swap: Called with the new index.
        outcomes: Counts the outcomes "done" and "refused".
        seen: `version_of` the folder before the index that is served was read from it; None: as it is now.
        verify: Compares all bytes of a new index with their checksums.
    """

    def __init__(
        self,
        folder: Path,
        swap: Callable[[ProductIndex], None],
        outcomes: Counter,
        seen: Version | None = None,
        verify: bool = False,
    ) -> None:
        self.folder = folder
        self._swap, self._outcomes, self._verify = swap, outcomes, verify
        self._seen = version_of(folder) if seen is None else seen

    def look(self) -> None:
        """Looks once."""
        version = version_of(self.folder)
        # Between two renames there is no folder for a moment.
        if version == self._seen or not (self.folder / DESCRIPTION).is_file():
            return
        try:
            index = load_index(self.folder, self._verify)
            # What was read while files were being replaced may be of two indexes; the next look reads it again.
            if version_of(self.folder) != version:
                return
            self._swap(index)
        except Exception as error:  # Whatever a damaged file brings about must not end the watch.
            if version_of(self.folder) != version:
                return
            text = "the new index in %s cannot be used, the one before stays: %r"
            log.error(text, self.folder, error, exc_info=not isinstance(error, (OSError, ValueError)))
            self._outcomes.labels("refused").inc()
        else:
            log.info("the new index in %s is served: %s products", self.folder, f"{len(index):,}")
            self._outcomes.labels("done").inc()
        self._seen = version


def load_index(folder: Path, verify: bool = False) -> ProductIndex:
    """Loads an index, ready to look up products by id; `verify` as of [`ProductIndex.load`]."""
    index = ProductIndex.load(folder, verify=verify)
    index.prepare_ids()
    return index


def version_of(folder: Path) -> Version:
    """What tells the files of an index from those that take their place."""
    return tuple(stamp_of(folder / name) for name in sorted(FILES))
