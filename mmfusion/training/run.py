"""An output folder that knows what made it: started once, and resumed by the same command with the same arguments."""

import json
import logging
import os
import platform
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmfusion.files import is_partial, replace_text
from mmfusion.training.output_lock import NAME as LOCK
from mmfusion.training.output_lock import OutputLock, RunError, refuse_lock_of_another_job, take_lock

_RECORD = "run.json"
# Where a run is written, and how it gets there, does not change the result.
NOT_RECORDED = (
    "output",
    "hub",
    "resume",
    "trust_checkpoint",
    "dry_run",
    "allow_missing_photos",
    "unknown_judgements",
    "cache_dir",
)
# Settings that came later, and what they were before: a record without them was made so.
_CAME_LATER: dict[str, Any] = {
    "keep": "last",
    "patience": None,
    "pseudo_queries": False,
    "lora": {"rank": None, "alpha": None, "dropout": 0.0, "targets": "attention", "vision_targets": None},
}
# A slow disk may keep the first rank busy with imports.
_FIRST_RANK_SECONDS = 300.0
_PACKAGES = ("torch", "lightning", "transformers", "huggingface_hub", "mmfusion")


@dataclass
class Run:
    """An output folder.

    Attributes:
        folder: Where everything is written.
        record: What `run.json` holds.
        planned_for: Of a dry run, the output folder that it leaves alone; `folder` is a temporary one then.
        complete: Whether a run with the same arguments has finished in it already.
    """

    folder: Path
    record: dict[str, Any]
    planned_for: Path | None = None
    # Of the folder, on the first rank.
    lock: OutputLock | None = field(default=None, repr=False, compare=False)

    @property
    def complete(self) -> bool:
        return bool(self.record["complete"])

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def schedules(self, steps: int) -> list[tuple[int, int]]:
        """First step and number of steps of each schedule of learning rates: one, and one for each extension.

        Args:
            steps: Optimizer steps of the whole run as it is now.
        """
        extensions = self.record.get("extensions", [])
        begins, ends = [0, *(one["at"] for one in extensions)], [*(one["steps"] for one in extensions), steps]
        return [(begin, end - begin) for begin, end in zip(begins, ends, strict=True)]

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint with the most steps, or None; see `last_good_checkpoint` for one to resume from."""
        found = list_checkpoints(self.checkpoints)
        return found[-1] if found else None

    def note(self, **facts: Any) -> None:
        """Adds facts to the record, on the first rank only."""
        self.record.update(facts)
        if is_first_rank():
            replace_text(self.folder / _RECORD, json.dumps(self.record, indent=2))

    def finish(self, **facts: Any) -> None:
        """Marks the run as complete, and leaves the folder to other jobs."""
        seconds = round(time.time() - self.record["started_at"], 1)
        self.note(complete=True, seconds_since_start=seconds, **facts)
        if self.lock is not None:
            self.lock.release()


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, that with the most steps last."""
    return sorted(folder.glob("step=*.ckpt"), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that a checkpoint was written after."""
    return int(checkpoint.stem.split("=")[1])


def recorded_arguments(config: Any) -> dict[str, Any]:
    """Those fields of a config that change the result, as the JSON values of a record."""
    values = {name: value for name, value in _as_json(asdict(config)).items() if name not in NOT_RECORDED}
    return {name: value for name, value in values.items() if name not in _CAME_LATER or value != _CAME_LATER[name]}


def open_run(
    output: str | os.PathLike[str],
    recipe: str,
    arguments: Mapping[str, Any],
    *,
    dry_run: bool = False,
    extendable: bool = False,
) -> Run:
    """Starts a run in a folder, or returns the one that was started there with the same arguments.

    Args:
        output: Folder, created if missing.
        recipe: Name of the command.
        arguments: Everything that changes the result, as JSON values; see `recorded_arguments`.
        dry_run: Leaves the folder as it is; the run is in a temporary folder, which is removed with the run.
        extendable: Whether a finished run continues where `steps` alone is another number, and a higher one. Where it
            ended is kept in the record under `extensions`, as the schedule of learning rates depends on it.

    Raises:
        RunError: The folder holds something else (other files, another command, a run with other arguments), another
            job is writing it, or this is not the first rank and the first one has not started the run in time.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mmfusion").setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    folder, wanted, lock = Path(output).absolute(), _as_json(arguments), None
    if not dry_run and is_first_rank():
        lock = take_lock(folder)
    elif not dry_run:
        _wait_for_run(folder, wanted, extendable)
    record = read_record(folder)
    if record is None and _holds_files(folder):
        raise RunError(f"The output folder {folder} holds files that no command wrote; give another --output.")
    if record is not None and _saved_nothing(folder, record) and record["arguments"] != wanted:
        # It failed or was interrupted before its first checkpoint: there is nothing to mix up.
        record = None
    extended = record is not None and extendable and record["recipe"] == recipe and _extends(record, wanted)
    if record is not None and extended:
        before = {"at": record["steps"], "steps": record["arguments"]["steps"]}
        record |= {"arguments": wanted, "complete": False, "extensions": [*record.get("extensions", []), before]}
    elif record is not None:
        _check_same_run(folder, record, recipe, wanted)
    if dry_run:
        return _in_temporary_folder(folder, record or _begun(recipe, wanted))
    if record is None:
        shutil.rmtree(folder / "toy_base", ignore_errors=True)
        run = start_run(folder, recipe, wanted)
    else:
        run = Run(folder, record)
        if extended:
            run.note()
    run.lock = lock
    return run


def start_run(folder: Path, recipe: str, arguments: dict[str, Any], **facts: Any) -> Run:
    """Makes a folder that of a run which is under way; `arguments` are JSON values."""
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, {**_begun(recipe, arguments), **facts})
    run.note()
    return run


def read_record(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The record of a run folder, or None if it has none."""
    path = Path(folder) / _RECORD
    record: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return record


def finished_record(folder: str | os.PathLike[str], what: str, command: str) -> dict[str, Any]:
    """The record of a run folder that is complete.

    Args:
        folder: Output folder of a command.
        what: What the command writes, for the error.
        command: The command.

    Raises:
        RunError: There is no such run, or it is not complete.
    """
    record = read_record(folder)
    if record is None or not record["complete"]:
        raise RunError(f"{str(folder)!r} holds no finished {what}; run `mmfusion {command} --output {folder}` first.")
    return record


def is_first_rank() -> bool:
    """Whether this process is the one that writes, by the launcher's environment, which is there before torch's."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"))


def wait_for_first_rank(is_done: Callable[[], bool], seconds: float, message: str) -> None:
    """Waits until the first rank has done something in the folder that all ranks share.

    Raises:
        RunError: It has not after so many seconds; `message` says so.
    """
    deadline = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > deadline:
            raise RunError(message)
        time.sleep(0.05)


def _wait_for_run(folder: Path, wanted: dict[str, Any], extendable: bool) -> None:
    # A rank that is ahead would write files, such as caches, in which the first rank then finds no record. What is an
    # error on the first rank is seen here as well: that one may have ended before this one looks.
    def is_begun() -> bool:
        refuse_lock_of_another_job(folder)
        record = read_record(folder)
        if record is None:
            return _holds_files(folder)
        soon = _saved_nothing(folder, record) or (extendable and _extends(record, wanted))
        return record["arguments"] == wanted or not soon

    wait_for_first_rank(
        is_begun,
        _FIRST_RANK_SECONDS,
        f"The first rank has not started a run in the output folder {folder} after {_FIRST_RANK_SECONDS:.0f} seconds; "
        "see what it says, and give an --output on a disk that all nodes share.",
    )


def _holds_files(folder: Path) -> bool:
    return folder.exists() and not all(is_partial(path) or path.name == LOCK for path in folder.iterdir())


def _extends(record: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a run with these arguments is a finished one with more steps."""
    was = record["arguments"]
    more = record["complete"] and "steps" in record and {**was, "steps": None} == {**wanted, "steps": None}
    return bool(more and wanted["steps"] > max(was["steps"], record["steps"]))


def _check_same_run(folder: Path, record: dict[str, Any], recipe: str, wanted: dict[str, Any]) -> None:
    if record["recipe"] != recipe:
        raise RunError(
            f"The output folder {folder} belongs to {record['recipe']}, not {recipe}; give another --output."
        )
    was = record["arguments"]
    changed = [name for name in sorted({*wanted, *was}) if wanted.get(name) != was.get(name)]
    if changed:
        differences = ", ".join(f"{name} was {was.get(name)!r}, now {wanted.get(name)!r}" for name in changed)
        raise RunError(
            f"The output folder {folder} was made with other arguments ({differences}); repeat them to resume, give "
            "another --output, or delete the folder. (Of a training that has finished, --steps may be raised.)"
        )


def _saved_nothing(folder: Path, record: dict[str, Any]) -> bool:
    return not record["complete"] and not any((folder / "checkpoints").glob("*.ckpt"))


def _in_temporary_folder(folder: Path, record: dict[str, Any]) -> Run:
    temporary = Path(tempfile.mkdtemp(prefix="mmfusion_dry_run_"))
    run = Run(temporary, dict(record), planned_for=folder)
    # At the end of the process at the latest, and also where the command fails in between.
    weakref.finalize(run, shutil.rmtree, temporary, ignore_errors=True)
    return run


def _begun(recipe: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "arguments": arguments,
        "complete": False,
        "started_at": time.time(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "cpu_count": os.cpu_count(),
    }


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(values, default=os.fspath))
    return plain
