"""What a checkpoint needs beside itself to be continued elsewhere, and nothing that tells where it was written."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from jsonargparse import ArgumentError, ArgumentParser

from mmfusion.data.toy_record import RECORD_NAME
from mmfusion.files import is_hub_id
from mmfusion.training.run import NOT_RECORDED, RunError

# Files of a branch of checkpoints.
RECORD, CHECKPOINT, MODEL_FOLDER, BEST_FOLDER = "run.json", "last.ckpt", "model", "best"

# Arguments that name places and services of one machine; they never travel.
LOCAL_ARGUMENTS = ("catalogue", "base", "feature_cache", "hard_negatives", "log_to")
# May differ from machine to machine: it changes where and how fast the same steps are made.
_PER_MACHINE = "hardware."


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


Config = TypeVar("Config")


def continued_config(given: Config, recorded: Mapping[str, Any], run: object) -> Config:
    """The config of a run that goes on elsewhere: its own values where none are given, and none that contradict them.

    Args:
        given: Config of the command; a field counts as given where it differs from its default.
        recorded: Arguments of the run, JSON values.
        run: What the run is called in errors.

    Raises:
        RunError: A field contradicts the run, or the run was made with fields or values that the command does not take.
    """
    config: Any = given
    command = type(config)
    default, parser = command(), ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(command)
    values = {name: value for name, value in recorded.items() if name not in LOCAL_ARGUMENTS}
    try:
        own = command(**parser.instantiate(parser.parse_object(values)))
    except (ArgumentError, TypeError, ValueError) as error:
        raise RunError(
            f"{run} was made with arguments that this command does not take ({' '.join(str(error).split())}); name "
            "another revision, or continue it with the version of mmfusion that began it."
        ) from error
    if config.base not in (None, default.base):
        raise RunError(f"--base {config.base!r} is not for a run that goes on: {run} has its own; leave it out.")
    free = {name: getattr(default, name) for name in (*LOCAL_ARGUMENTS, *NOT_RECORDED)}
    merged = _merge("", replace(config, **free), default, own, run)
    return replace(merged, **{name: getattr(config, name) for name in (*LOCAL_ARGUMENTS, "output", "hub")})


def _merge(prefix: str, given: Any, default: Any, recorded: Any, run: object) -> Any:
    """The recorded values, with those of the given ones that may differ."""
    changes = {}
    for name in (field.name for field in fields(given)):
        flag, value, own = f"{prefix}{name}", getattr(given, name), getattr(recorded, name)
        if is_dataclass(value):
            changes[name] = _merge(f"{flag}.", value, getattr(default, name), own, run)
        elif value not in (getattr(default, name), own):
            if not flag.startswith(_PER_MACHINE):
                raise RunError(
                    f"--{flag} is {value!r}, but {run} was begun with {own!r}; leave it out to continue exactly, or "
                    "begin a run of its own."
                )
            changes[name] = value
    return replace(recorded, **changes)
