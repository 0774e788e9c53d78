"""Runs the steps of an ablation one after the other, skips finished ones, and stops at the first that fails."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmfusion.ablation.plan import AblationStep
from mmfusion.ablation.settings import AblationError
from mmfusion.files import replace_text
from mmfusion.model.errors import MMFusionError
from mmfusion.training.run import read_record

# The command `mmfusion`, wherever its script is.
MMFUSION = (sys.executable, "-m", "mmfusion")

_TAIL_LINES = 20
_HEARTBEAT_SECONDS = 60.0
# What a finished training needs no more: checkpoints for resuming, and its copy of the catalogue.
_WORKING_FILES = ("checkpoints", "cache")


class StepFailedError(MMFusionError, RuntimeError):
    """A sub-process failed; the text names the step, its command and the end of its log."""

    def __init__(self, step: AblationStep, code: int) -> None:
        self.step = step
        log = _beside(step, ".log")
        super().__init__(
            f"{step.title} failed with exit code {code}. The end of {log}:\n\n{tail(log)}\n\n"
            f"The command was: {step.command()}\nRun the ablation again to continue from here."
        )


@dataclass
class StepRecord:
    """What is known of a step that was started.

    Attributes:
        command: The command as it was run.
        model: Digest of the model that it read; "" where it read none.
        commit: Git commit of the checkout.
        seconds: Wall time of all attempts.
        complete: Whether the last attempt succeeded.
    """

    command: str
    model: str
    commit: str
    seconds: float = 0.0
    complete: bool = False

    def save(self, step: AblationStep) -> None:
        path = _beside(step, ".step.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, step: AblationStep) -> StepRecord | None:
        """The record of a step with this command; None if it was never started, or with another command."""
        path = _beside(step, ".step.json")
        if not path.is_file():
            return None
        record = cls(**json.loads(path.read_text()))
        return record if record.command == step.command() else None


def is_finished(step: AblationStep) -> bool:
    """Whether a step need not run: it succeeded with this command, from the model that is there now.

    An evaluation of a model that has changed since is not finished.

    Raises:
        AblationError: A finished training started from a model that has changed since.
    """
    record = StepRecord.load(step)
    if step.name:
        results = (step.folder / f"{step.name}{end}" for end in (".json", ".per_query.parquet"))
        has_result = all(path.is_file() for path in results)
    else:
        has_result = bool((read_record(step.folder) or {}).get("complete"))
    if record is None or not record.complete or not has_result:
        return False
    unchanged = record.model == model_digest(step.model)
    if not unchanged and not step.name:
        raise AblationError(
            f"{step.folder} was trained from {step.model}, which has changed since; delete {step.folder} to train it "
            "again."
        )
    return unchanged


def model_digest(model: str | None) -> str:
    """SHA-256 (hex) of the files of a model folder; a Hub id stands for itself."""
    if model is None or not Path(model).is_dir():
        return model or ""
    digest = hashlib.sha256()
    for path in sorted([*Path(model).glob("*.safetensors"), *Path(model).glob("*config.json")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def run_steps(
    steps: Sequence[AblationStep],
    *,
    keep_working_files: bool = False,
    after: Callable[[AblationStep], None] | None = None,
) -> None:
    """Runs steps in their order.

    Args:
        steps: What to run; a finished step is skipped.
        keep_working_files: Keeps checkpoints and the copy of the catalogue in the folders of finished trainings.
        after: Called with each step that is finished, skipped ones included.

    Raises:
        StepFailedError: A sub-process ended with another code than 0.
        AblationError: A finished training started from a model that has changed since.
    """
    for place, step in enumerate(steps):
        if not is_finished(step):
            print(f"[{place + 1}/{len(steps)}] {step.title} ({time_left(steps[place:], steps)})", flush=True)
            _run(step)
            if not keep_working_files and not step.name:
                for name in _WORKING_FILES:
                    shutil.rmtree(step.folder / name, ignore_errors=True)
        if after is not None:
            after(step)


def time_left(remaining: Sequence[AblationStep], steps: Sequence[AblationStep]) -> str:
    """A guess in words of how long it takes, from finished steps of the same kind, or else of the same command.

    Args:
        remaining: Steps from the present one on; those that are finished cost nothing.
        steps: All steps of the ablation.
    """
    records = {step: record for step in steps if (record := StepRecord.load(step)) and record.complete}
    seconds: dict[str, list[float]] = {}
    for step, record in records.items():
        for name in (step.kind, step.recipe):
            seconds.setdefault(name, []).append(record.seconds)
    guesses = [seconds.get(step.kind) or seconds.get(step.recipe) for step in remaining if step not in records]
    known = [sum(guess) / len(guess) for guess in guesses if guess]
    if not known:
        return "time left not known yet"
    if len(known) == len(guesses):
        return f"about {duration(sum(known))} left"
    return f"at least {duration(sum(known))} left, as {len(guesses) - len(known)} steps are the first of their kind"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(42), duration(420), duration(42000)
    ('42 s', '7 min', '11 h 40 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def tail(log: Path) -> str:
    """The last lines of a log; of a progress bar, which overwrites itself, the last state."""
    if not log.is_file():
        return "(no log)"
    # Bytes, as reading text turns the carriage returns of a progress bar into line ends.
    text = log.read_bytes().decode(errors="replace")
    lines = [line.rstrip("\r").split("\r")[-1] for line in text.split("\n")]
    return "\n".join([line for line in lines if line.strip()][-_TAIL_LINES:]) or "(empty)"


def git_commit() -> str:
    """Short hash of the commit, with a remark where files differ from it; "not available" outside a checkout."""
    checkout = Path(__file__).resolve().parents[2]
    # An installed package may lie in a repository of something else.
    if not (checkout / ".git").exists():
        return "not available"
    try:
        commit, changed = (
            subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, timeout=30, check=True).stdout
            for words in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return "not available"
    return commit.strip() + (" with uncommitted changes" if changed.strip() else "")


def _run(step: AblationStep) -> None:
    before, log = StepRecord.load(step), _beside(step, ".log")
    spent = before.seconds if before is not None and not before.complete else 0.0
    record = StepRecord(step.command(), model_digest(step.model), git_commit(), spent)
    record.save(step)
    begin = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen([*MMFUSION, step.recipe, *step.arguments], stdout=out, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                try:
                    process.wait(timeout=_HEARTBEAT_SECONDS)
                except subprocess.TimeoutExpired:
                    last = tail(log).splitlines()[-1].strip()
                    print(f"    {duration(time.monotonic() - begin)}: {last[:160]}", flush=True)
            record.complete = process.returncode == 0
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            record.seconds = round(spent + time.monotonic() - begin, 1)
            record.save(step)
    if not record.complete:
        raise StepFailedError(step, process.returncode)


def _beside(step: AblationStep, ending: str) -> Path:
    """A file next to the folder or the results of a step."""
    return step.stem.with_name(f"{step.stem.name}{ending}")
