"""Files that are whole or not there."""

import os
import shutil
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes a text beside its place and renames it there, so that no reader and no kill ever sees a half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name, or a copy where the file system has no links; `target` is replaced.

    Of a symbolic link, as the cache of the Hub is made of, the file behind it gets the name.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
