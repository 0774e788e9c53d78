"""Output folders that are written once: an ``embedded.json`` says what is in them and whether it is complete."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mmfusion.files import replace_text

RECORD_NAME: Final = "embedded.json"


def is_complete(folder: Path, arguments: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether ``folder`` already holds ``names``, completely written with ``arguments``.

    Args:
        folder: Output folder, which may not exist.
        arguments: What the content depends on; JSON values.
        names: Files or folders that a complete output has.

    Raises:
        ValueError: The folder was written with other arguments.
        FileExistsError: The folder holds one of ``names`` but no record: it is not ours to overwrite.
        NotADirectoryError: ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder to write to")
    record_path = folder / RECORD_NAME
    present = [name for name in names if (folder / name).exists()]
    if not record_path.exists():
        if present:
            raise FileExistsError(
                f"{folder} already holds {present[0]} and no {RECORD_NAME}, so it was not written here; "
                "name another folder, or delete this one"
            )
        return False
    record = _read_record(record_path)
    if record.get("arguments") != dict(arguments):
        raise ValueError(
            f"{folder} was written with {record.get('arguments')}, but {dict(arguments)} is asked for; "
            "name another folder, ask for the same, or delete this one"
        )
    return record.get("complete") is True and len(present) == len(names)


def write_record(folder: Path, arguments: Mapping[str, Any], *, complete: bool) -> None:
    """Writes the record of ``folder``: first with ``complete=False``, and with ``True`` once everything is there."""
    record = {"arguments": dict(arguments), "complete": complete}
    replace_text(folder / RECORD_NAME, json.dumps(record, indent=2) + "\n", concurrent=True)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete its folder and write it again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds {record!r} instead of a record; delete its folder and write it again")
    return record
