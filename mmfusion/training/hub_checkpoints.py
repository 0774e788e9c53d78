"""Checkpoints on the Hub: a callback that pushes them in the background, with what resuming elsewhere needs."""

import json
import logging
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)
from transformers.utils import logging as transformers_logging

from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.files import link_or_copy
from mmfusion.hub.errors import HubError, explain, is_a
from mmfusion.stages import Stage
from mmfusion.training.background_push import BackgroundPush, Snapshot
from mmfusion.training.hub_record import BEST_FOLDER, CHECKPOINT, MODEL_FOLDER, RECORD, portable_record
from mmfusion.training.run import Run

log = logging.getLogger("mmfusion")

# Files from this size on are sent one by one before the commit: several at a time would run in threads that the end of
# the process waits for, however long they take.
_ALONE_FROM_BYTES = 1 << 20


@dataclass
class HubCheckpoints:
    """Where checkpoints are pushed while training goes on; nothing is pushed without a repository.

    Attributes:
        repo: Hub repository of models, e.g. `org/run`; it is made if it is missing.
        branch: Branch that the checkpoints go to; it is made if it is missing.
        every: Optimizer steps between pushes of the last checkpoint, at least; default: each checkpoint.
        squash: Keep only the newest commit of the branch, so that old checkpoints take no room.
        private: Whether a repository that is made is private.
        last_attempt: Seconds that the end of training waits for the last push.
    """

    repo: str | None = None
    branch: str = "checkpoints"
    every: int | None = None
    squash: bool = False
    private: bool = True
    last_attempt: float = 120.0


class PushCheckpoints(L.Callback):
    """Pushes the `last` checkpoint and the `best` model to a branch of a Hub repository, from the first rank.

    `last.ckpt` continues training exactly (`--resume hub:org/run`); beside it are `run.json`, free of local paths, and
    the config and processor of the model. `best/` is the model with the highest nDCG@10 of the first ranked view in
    validation, as `from_pretrained("org/run", revision="checkpoints", subfolder="best")` loads it.

    The Hub may be slow or away: training neither waits nor ends, and the newest snapshots are pushed once it is back.
    """

    def __init__(self, run: Run, hub: HubCheckpoints) -> None:
        """Checks what can be checked without the Hub.

        Args:
            run: Run folder; snapshots wait in its folder `hub_pending`.
            hub: Where to push.

        Raises:
            HubError: The name of the repository or another value is not valid, or there is no token.
        """
        self.hub = _checked(hub)
        self.repo = str(hub.repo)
        self.run = run
        self.best: float | None = None
        self._offered = -1
        self._ready = False
        self._showed_bars = False
        self._push: BackgroundPush | None = None

    @property
    def pending(self) -> Path:
        return self.run.folder / "hub_pending"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        shutil.rmtree(self.pending, ignore_errors=True)
        with _never_fatal("model files"):
            _save_description(trainer, pl_module, self.pending / MODEL_FOLDER)
        # Bars of transfers would be drawn into that of training.
        self._showed_bars = not are_progress_bars_disabled()
        disable_progress_bars()
        self._push = BackgroundPush(self._send, self._reason)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        # Lightning writes checkpoints after all other callbacks: that of a step is there when the next one begins.
        if trainer.global_step >= max(self._offered, 0) + (self.hub.every or 1):
            self._offer_last()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = _validation_score(trainer)
        if self._push is None or score is None or (self.best is not None and score <= self.best):
            return
        self.best = score
        with _never_fatal("best model"):
            folder = self.pending / f"best-{trainer.global_step}"
            _save_model(trainer, pl_module, folder / BEST_FOLDER)
            files = {f"{BEST_FOLDER}/{path.name}": path for path in sorted((folder / BEST_FOLDER).iterdir())}
            self._push.offer(Snapshot("best", trainer.global_step, files, folder, {"val/ndcg@10": score}))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._finish()

    def _offer_last(self) -> None:
        checkpoint = self.run.latest_checkpoint()
        if self._push is None or checkpoint is None:
            return
        step = int(checkpoint.stem.split("=")[1])
        if step == self._offered:
            return
        self._offered = step
        with _never_fatal("last checkpoint"):
            folder = self.pending / f"last-{step}"
            folder.mkdir(parents=True, exist_ok=True)
            # Lightning deletes old checkpoints, perhaps in the middle of a push: this is a second name for the file.
            link_or_copy(checkpoint, folder / CHECKPOINT)
            described = sorted((self.pending / MODEL_FOLDER).iterdir())
            files = {CHECKPOINT: folder / CHECKPOINT} | {f"{MODEL_FOLDER}/{path.name}": path for path in described}
            self._push.offer(Snapshot("last", step, files, folder, portable_record(self.run.record)))

    def _finish(self) -> None:
        if self._push is None:
            return
        self._offer_last()
        arrived = self._push.close(self.hub.last_attempt)
        step, place = self._push.pushed.get("last"), f"{self.repo}@{self.hub.branch}"
        self._push = None
        if self._showed_bars:
            enable_progress_bars()
        if arrived:
            shutil.rmtree(self.pending, ignore_errors=True)
        if arrived and step is not None:
            log.info("checkpoint of step %d is on the Hub; continue it with --resume hub:%s", step, place)
        elif not arrived:
            there = "none of this training" if step is None else f"step {step}"
            log.warning(
                "not all checkpoints reached %s; the last one there is %s, all are in %s",
                *(place, there, self.run.checkpoints),
            )

    def _send(self, snapshot: Snapshot) -> None:
        """Makes one commit of a snapshot; called in the background."""
        api = HfApi()
        if not self._ready:
            api.create_repo(self.repo, private=self.hub.private, exist_ok=True)
            api.create_branch(self.repo, branch=self.hub.branch, exist_ok=True)
            self._ready = True
        additions = [CommitOperationAdd(name, path) for name, path in snapshot.files.items()]
        additions.append(CommitOperationAdd(*_facts(snapshot, additions)))
        for addition in additions:
            if addition.upload_info.size >= _ALONE_FROM_BYTES:
                api.preupload_lfs_files(self.repo, [addition], revision=self.hub.branch, num_threads=1)
        message = f"{snapshot.kind} checkpoint, step {snapshot.step}"
        api.create_commit(self.repo, additions, commit_message=message, revision=self.hub.branch)
        if self.hub.squash:
            api.super_squash_history(self.repo, branch=self.hub.branch, commit_message=message)

    def _reason(self, error: Exception) -> str:
        if is_a(error, "TransportError"):
            return f"the Hub cannot be reached ({type(error).__name__})"
        return without_tokens(str(explain(error, self.repo, self.hub.branch)))


def without_tokens(text: str) -> str:
    """The first line of a text, with whatever looks like a token, and the signature of each URL, blotted out."""
    token = get_token()
    line = next(iter(text.splitlines()), "")
    line = line.replace(token, "***") if token else line
    return re.sub(r"\?\S+", "?***", re.sub(r"hf_\w{8,}", "***", line))


def _checked(hub: HubCheckpoints) -> HubCheckpoints:
    try:
        validate_repo_id(hub.repo or "")
    except HFValidationError as error:
        raise HubError(f"--hub.repo {hub.repo!r} is not the name of a repository; give one like org/run.") from error
    if "/" not in str(hub.repo):
        raise HubError(f"--hub.repo {hub.repo!r} names no owner; give one like org/run.")
    if not re.fullmatch(r"[A-Za-z0-9][\w./-]*", hub.branch):
        raise HubError(f"--hub.branch {hub.branch!r} is not the name of a branch; give one like checkpoints.")
    if hub.every is not None and hub.every < 1:
        raise HubError(f"--hub.every is {hub.every}; give at least 1 optimizer step.")
    if hub.last_attempt < 0:
        raise HubError(f"--hub.last_attempt is {hub.last_attempt}; give at least 0 seconds.")
    if not get_token():
        raise HubError(f"There is no token to push to {hub.repo} with; log in with `hf auth login`, or set HF_TOKEN.")
    return hub


def _facts(snapshot: Snapshot, additions: list[CommitOperationAdd]) -> tuple[str, bytes]:
    """Path and content of the file that says what a snapshot is, and for `last` how to know that it arrived whole."""
    name, facts = f"{BEST_FOLDER}/best.json", {"step": snapshot.step, **snapshot.facts}
    if snapshot.kind == "last":
        whole = next(addition.upload_info for addition in additions if addition.path_in_repo == CHECKPOINT)
        about = {"step": snapshot.step, "bytes": whole.size, "sha256": whole.sha256.hex()}
        name, facts = RECORD, {**snapshot.facts, "checkpoint": about}
    return name, (json.dumps(facts, indent=2) + "\n").encode()


def _validation_score(trainer: L.Trainer) -> float | None:
    """nDCG@10 of the view that chooses checkpoints, the first one that the stage ranks; None without a validation."""
    for name, value in trainer.callback_metrics.items():
        if name.startswith("val/") and name.endswith("/ndcg@10"):
            return None if math.isnan(float(value)) else float(value)
    return None


def _save_description(trainer: L.Trainer, stage: L.LightningModule, folder: Path) -> None:
    """Config and processor of the model, as files."""
    assert isinstance(stage, Stage)
    folder.mkdir(parents=True, exist_ok=True)
    stage.model.config.save_pretrained(folder)
    _save_processor(trainer, folder)
    for code in folder.glob("*.py"):
        # Who continues a training has mmfusion; who uses the best model finds its code beside that.
        code.unlink()


def _save_model(trainer: L.Trainer, stage: L.LightningModule, folder: Path) -> None:
    assert isinstance(stage, Stage)
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        stage.model.save_pretrained(folder)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    _save_processor(trainer, folder)


def _save_processor(trainer: L.Trainer, folder: Path) -> None:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, MMFusionDataModule)
    data.processor.save_pretrained(folder)


@contextmanager
def _never_fatal(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.warning("%s not pushed: %s: %s", what, type(error).__name__, without_tokens(str(error)))
