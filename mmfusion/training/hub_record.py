"""What a checkpoint needs beside itself to be continued elsewhere, and nothing that tells where it was written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmfusion.data.toy_record import RECORD_NAME
from mmfusion.files import is_hub_id

# Files of a branch of checkpoints.
RECORD, CHECKPOINT, MODEL_FOLDER, BEST_FOLDER = "run.json", "last.ckpt", "model", "best"

# Arguments that name places and services of one machine; they never travel.
LOCAL_ARGUMENTS = ("catalogue", "base", "feature_cache", "hard_negatives", "log_to")


def portable_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run (content of its `run.json`) without what belongs to its machine."""
    arguments = record["arguments"]
    base = record.get("base_reference") or arguments.get("base")
    kept = {name: record[name] for name in ("recipe", "python", "versions", "catalogue_contents") if name in record}
    return {
        **kept,
        "arguments": {name: value for name, value in arguments.items() if name not in LOCAL_ARGUMENTS},
        "base_reference": base if is_public_place(base) else None,
        "catalogue": portable_catalogue(record.get("catalogue")),
    }


def portable_catalogue(source: str | None) -> dict[str, Any]:
    """Where another machine finds a catalogue: a Hub id or URL, how to draw the toy catalogue, or nothing."""
    if source is None:
        return {}
    if (Path(source) / RECORD_NAME).is_file():
        drawn = json.loads((Path(source) / RECORD_NAME).read_text("utf-8"))["arguments"]
        return {"embedded": {"num_products": drawn["num_products"], "seed": drawn["seed"]}}
    return {"source": source} if is_public_place(source) else {}


def is_public_place(source: str | None) -> bool:
    """Whether a source is a Hub id, or a URL that carries no credentials, rather than a place of this machine."""
    if not isinstance(source, str):
        return False
    if "://" in source:
        parts = urlsplit(source)
        return parts.scheme not in ("", "file", "local") and "@" not in parts.netloc and not parts.query
    return is_hub_id(source)
