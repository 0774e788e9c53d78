"""An output folder that knows what made it: started once, resumed with the same arguments, or refused."""

import json
import logging
import os
import platform
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmfusion.files import is_partial, replace_text
from mmfusion.training.checkpoints import list_checkpoints
from mmfusion.training.output_lock import NAME as LOCK
from mmfusion.training.output_lock import OutputLock, RunError, is_held_by_our_job, take_lock

_RECORD = "run.json"
# Where a run is written, and how it gets there, has no part in what comes out of it.
_NOT_DECISIVE = ("output", "hub", "resume", "trust_checkpoint", "dry_run")
# A slow disk may keep the first rank busy with imports.
_FIRST_RANK_SECONDS = 300.0
_PACKAGES = ("torch", "lightning", "transformers", "huggingface_hub", "mmfusion")


@dataclass
class Run:
    """An output folder.

    Attributes:
        folder: Where everything is written.
        record: What `run.json` holds.
        rehearsal_of: Of a dry run, the output folder that it leaves alone; `folder` is a temporary one then.
        complete: Whether a run with the same arguments has finished in it already.
    """

    folder: Path
    record: dict[str, Any]
    rehearsal_of: Path | None = None
    # Of the folder, on the first rank.
    lock: OutputLock | None = field(default=None, repr=False, compare=False)

    @property
    def complete(self) -> bool:
        return bool(self.record["complete"])

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint with the most steps, or None; see `last_good_checkpoint` for one to resume from."""
        found = list_checkpoints(self.checkpoints)
        return found[-1] if found else None

    def note(self, **facts: Any) -> None:
        """Adds facts to the record, on the first rank only."""
        self.record.update(facts)
        if is_first_rank():
            _write(self.folder / _RECORD, self.record)

    def finish(self, **facts: Any) -> None:
        """Marks the run as complete, and leaves the folder to other jobs."""
        seconds = round(time.time() - self.record["started_at"], 1)
        self.note(complete=True, seconds_since_start=seconds, **facts)
        if self.lock is not None:
            self.lock.release()


def open_run(
    output: str | os.PathLike[str], recipe: str, arguments: Mapping[str, Any], *, dry_run: bool = False
) -> Run:
    """Starts a run in a folder, or picks up the one that was started there with the same arguments.

    Args:
        output: Folder, created if missing.
        recipe: Name of the recipe.
        arguments: Everything that determines the result, JSON-like values and dataclasses.
        dry_run: Leaves the folder as it is; the run is in a temporary one, which goes with the run.

    Raises:
        RunError: The folder holds something else: other files, another recipe, or a run with other arguments; or
            another job is writing it. Or this is not the first rank, which begins a run for all, and that one has not
            done so.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mmfusion").setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    folder = Path(output).absolute()
    wanted = as_recorded(arguments)
    lock = None
    if not dry_run and not is_first_rank():
        _await_first_rank(folder, wanted)
    elif not dry_run:
        lock = take_lock(folder)
    record, stale = _record_to_continue(folder, recipe, wanted)
    if dry_run:
        return _rehearsal(folder, record or _begun(recipe, wanted))
    if stale:
        (folder / _RECORD).unlink()
        shutil.rmtree(folder / "toy_base", ignore_errors=True)
    run = start_run(folder, recipe, wanted) if record is None else Run(folder, record)
    run.lock = lock
    return run


def _await_first_rank(folder: Path, wanted: dict[str, Any]) -> None:
    # A rank that is ahead would put files, such as caches, where the first one then finds no record beside them.
    def is_begun() -> bool:
        record = read_record(folder)
        if record is None:
            return False
        if record["arguments"] != wanted:
            # If it is kept, it is an error for all ranks.
            return not _saved_nothing(folder, record)
        return bool(record["complete"]) or is_held_by_our_job(folder)

    wait_for_first_rank(
        is_begun,
        _FIRST_RANK_SECONDS,
        f"The first rank has begun no run in the output folder {folder} after {_FIRST_RANK_SECONDS:.0f} seconds; see "
        "what it says, and give an --output on a disk that all nodes share.",
    )


def wait_for_first_rank(is_done: Callable[[], bool], seconds: float, refusal: str) -> None:
    """Waits until the first rank has done something that this one finds in the folder they share.

    Raises:
        RunError: It has not after so many seconds; `refusal` says so.
    """
    deadline = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > deadline:
            raise RunError(refusal)
        time.sleep(0.05)


def _record_to_continue(folder: Path, recipe: str, wanted: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """The record of the run in a folder, None if one begins there, and whether what is there is to be removed first."""
    record = read_record(folder)
    if record is not None and _saved_nothing(folder, record) and record["arguments"] != wanted:
        # Refused or interrupted before its first checkpoint: there is nothing to mix up.
        return None, True
    if (
        record is None
        and folder.exists()
        and not all(is_partial(path) or path.name == LOCK for path in folder.iterdir())
    ):
        # What came between two looks is the record of the first rank.
        record = read_record(folder)
        if record is None:
            raise RunError(f"The output folder {folder} holds files that no recipe wrote; give another --output.")
    if record is None:
        return None, False
    if record["recipe"] != recipe:
        raise RunError(
            f"The output folder {folder} belongs to {record['recipe']}, not {recipe}; give another --output."
        )
    changed = [
        name for name in sorted({*wanted, *record["arguments"]}) if wanted.get(name) != record["arguments"].get(name)
    ]
    if changed:
        was = ", ".join(f"{name} was {record['arguments'].get(name)!r}, now {wanted.get(name)!r}" for name in changed)
        raise RunError(
            f"The output folder {folder} was made with other arguments ({was}); repeat them to resume, give another "
            "--output, or delete the folder."
        )
    return record, False


def _is_ours(path: Path) -> bool:
    return is_partial(path) or path.name == LOCK


def _rehearsal(folder: Path, record: dict[str, Any]) -> Run:
    temporary = Path(tempfile.mkdtemp(prefix="mmfusion_dry_run_"))
    run = Run(temporary, dict(record), rehearsal_of=folder)
    # At the end of the process at the latest, and also where the recipe refuses something in between.
    weakref.finalize(run, shutil.rmtree, temporary, ignore_errors=True)
    return run


def decisive(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recipe that determine its result: all but those that say where it goes and comes from."""
    return {name: value for name, value in arguments.items() if name not in _NOT_DECISIVE}


def as_recorded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON values, as a record holds them."""
    recorded: dict[str, Any] = json.loads(json.dumps({name: _plain(value) for name, value in arguments.items()}))
    return recorded


def is_first_rank() -> bool:
    """Whether this process is the one that writes, as the launcher's environment tells before torch does."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"))


def start_run(folder: Path, recipe: str, arguments: dict[str, Any], **facts: Any) -> Run:
    """Makes a folder that of a run which is under way; `arguments` are JSON values."""
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, {**_begun(recipe, arguments), **facts})
    run.note()
    return run


def _begun(recipe: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"recipe": recipe, "arguments": arguments, "complete": False, "started_at": time.time(), **_host()}


def _saved_nothing(folder: Path, record: dict[str, Any]) -> bool:
    return not record["complete"] and not any((folder / "checkpoints").glob("*.ckpt"))


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a run folder, or None if it has none."""
    path = folder / _RECORD
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _host() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "cpu_count": os.cpu_count(),
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    replace_text(path, json.dumps(content, indent=2))
