"""What is known of a step that ran: its command, model, commit, time, and whether its result still holds."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from mmfusion.ablation.plan import AblationStep
from mmfusion.ablation.settings import AblationError
from mmfusion.files import replace_text
from mmfusion.training.run import read_record

_MODEL_FILES = ("*.safetensors", "*config.json")


@dataclass
class StepRecord:
    """Attributes:
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
        path = _path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(asdict(self), indent=2))


def load_step_record(step: AblationStep) -> StepRecord | None:
    """The record of a step, or None if it was never started."""
    path = _path(step)
    if not path.is_file():
        return None
    record = StepRecord(**json.loads(path.read_text()))
    # As commands were written before `mmfusion COMMAND` was there.
    record.command = re.sub(r"^python recipes/(\w+)\.py", r"mmfusion \1", record.command)
    return record


def is_finished(step: AblationStep) -> bool:
    """Whether a step need not run: it succeeded with this command, from the model that is there now.

    An evaluation of a model that has changed since is not finished.

    Raises:
        AblationError: A finished training started from a model that has changed since.
    """
    record = load_step_record(step)
    if record is None or not record.complete or record.command != step.command() or not _has_result(step):
        return False
    if record.model == model_digest(step.model):
        return True
    if step.name:
        return False
    raise AblationError(
        f"{step.folder} was trained from {step.model}, which has changed since; delete {step.folder} to train it again."
    )


def model_digest(model: str | None) -> str:
    """SHA-256 (hex) of the files of a model folder; a Hub id stands for itself."""
    if model is None or not Path(model).is_dir():
        return model or ""
    digest = hashlib.sha256()
    for path in sorted(found for pattern in _MODEL_FILES for found in Path(model).glob(pattern)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def _has_result(step: AblationStep) -> bool:
    if step.name:
        return all((step.folder / f"{step.name}{end}").is_file() for end in (".json", ".per_query.parquet"))
    return bool((read_record(step.folder) or {}).get("complete"))


def _path(step: AblationStep) -> Path:
    return step.stem.with_name(f"{step.stem.name}.step.json")
