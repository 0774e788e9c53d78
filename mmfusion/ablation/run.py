"""Runs the steps of an ablation one after the other, skips finished ones, and stops at the first that fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mmfusion.ablation.facts import git_commit
from mmfusion.ablation.plan import AblationStep
from mmfusion.ablation.record import StepRecord, is_finished, load_step_record, model_digest
from mmfusion.model.errors import MMFusionError

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
        log = log_path(step)
        super().__init__(
            f"{step.title} failed with exit code {code}. The end of {log}:\n\n{tail(log)}\n\n"
            f"The command was: {step.command()}\nRun the ablation again to go on from here."
        )


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
    """A guess in words of how long it takes, from finished steps of the same kind, or else of the same recipe.

    Args:
        remaining: Steps from the present one on; those that are finished cost nothing.
        steps: All steps of the ablation.
    """
    by_kind, by_recipe = _times(steps)
    guesses: list[float | None] = []
    for step in remaining:
        if _seconds(step) is None:
            same = by_recipe.get(step.recipe)
            guesses.append(by_kind.get(step.kind, sum(same) / len(same) if same else None))
    known = [guess for guess in guesses if guess is not None]
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


def log_path(step: AblationStep) -> Path:
    """Where a step's output goes: beside its folder or its results."""
    return step.stem.with_name(f"{step.stem.name}.log")


def tail(log: Path) -> str:
    """The last lines of a log; of a progress bar, which overwrites itself, the last state."""
    if not log.is_file():
        return "(no log)"
    # Bytes, as reading text turns the carriage returns of a progress bar into line ends.
    text = log.read_bytes().decode(errors="replace")
    lines = [line.rstrip("\r").split("\r")[-1] for line in text.split("\n")]
    return "\n".join([line for line in lines if line.strip()][-_TAIL_LINES:]) or "(empty)"


def _times(steps: Sequence[AblationStep]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds of finished steps by kind and by recipe."""
    by_kind: dict[str, float] = {}
    by_recipe: dict[str, list[float]] = {}
    for step in steps:
        seconds = _seconds(step)
        if seconds is not None:
            by_kind[step.kind] = seconds
            by_recipe.setdefault(step.recipe, []).append(seconds)
    return by_kind, by_recipe


def _seconds(step: AblationStep) -> float | None:
    record = load_step_record(step)
    return record.seconds if record is not None and record.complete and record.command == step.command() else None


def _run(step: AblationStep) -> None:
    before = load_step_record(step)
    same = before is not None and before.command == step.command() and not before.complete
    spent = before.seconds if before is not None and same else 0.0
    record = StepRecord(step.command(), model_digest(step.model), git_commit(), spent)
    record.save(step)
    begin = time.monotonic()
    try:
        code = _call([*MMFUSION, step.recipe, *step.arguments], log_path(step))
        record.complete = code == 0
    finally:
        record.seconds = round(spent + time.monotonic() - begin, 1)
        record.save(step)
    if code != 0:
        raise StepFailedError(step, code)


def _call(command: list[str], log: Path) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    return process.wait(timeout=_HEARTBEAT_SECONDS)
                except subprocess.TimeoutExpired:
                    last = tail(log).splitlines()[-1].strip()
                    print(f"    {duration(time.monotonic() - begin)}: {last[:160]}", flush=True)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
