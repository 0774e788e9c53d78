"""Checkpoints on the Hub: a callback that pushes them in the background, with what resuming elsewhere needs."""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lightning as L
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from transformers.utils import logging as transformers_logging

from mmfusion.data.toy_catalogue import RECORD_NAME
from mmfusion.files import HUB_ID, is_hub_id, link_or_copy
from mmfusion.model.errors import HubError, explain
from mmfusion.stages.sharding import whole_model
from mmfusion.training.background_push import BackgroundPush, Snapshot
from mmfusion.training.best import validation_score
from mmfusion.training.run import Run, step_of

logger = logging.getLogger(__name__)

# Files of a branch of checkpoints.
RECORD, CHECKPOINT, MODEL_FOLDER, BEST_FOLDER = "run.json", "last.ckpt", "model", "best"
# Arguments that name places and services of one machine; they never travel.
LOCAL_ARGUMENTS = ("catalogue", "base", "feature_cache", "hard_negatives", "log_to")
# Files from this size on are sent one by one before the commit: several at a time would run in threads that the end of
# the process waits for, however long they take.
_ALONE_FROM_BYTES = 1 << 20


@dataclass
class HubCheckpoints:
    """Where checkpoints are pushed while training continues; nothing is pushed without a repository.

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

    `last.ckpt` continues training exactly (`--resume hub:org/run`); next to it are `run.json`, free of local paths, and
    the config and processor of the model. `best/` is the model with the highest nDCG@10 of the first ranked view in
    validation, as `from_pretrained("org/run", revision="checkpoints", subfolder="best")` loads it.

    The Hub may be slow or away: training neither waits nor ends. What failed is pushed with the next checkpoint.
    """

    def __init__(self, run: Run, hub: HubCheckpoints) -> None:
        """Checks what can be checked without the Hub.

        Args:
            run: Run folder; snapshots wait in its folder `hub_pending`.
            hub: Where to push.

        Raises:
            HubError: The name of the repository or another value is not valid, or there is no token.
        """
        for name, good, wanted in (
            ("repo", HUB_ID.fullmatch(hub.repo or ""), "a repository with its owner, like org/run"),
            ("branch", re.fullmatch(r"[A-Za-z0-9][\w./-]*", hub.branch), "the name of a branch, like checkpoints"),
            ("every", hub.every is None or hub.every >= 1, "at least 1 optimizer step"),
            ("last_attempt", hub.last_attempt >= 0, "at least 0 seconds"),
        ):
            if not good:
                raise HubError(f"--hub.{name} is {getattr(hub, name)!r}; give {wanted}.")
        if not get_token():
            raise HubError(f"There is no token to push to {hub.repo}; log in with `hf auth login`, or set HF_TOKEN.")
        self.hub, self.repo, self.run = hub, str(hub.repo), run
        self.pending = run.folder / "hub_pending"
        self.best: float | None = None
        self._offered = -1
        self._ready = False
        self._push: BackgroundPush | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            shutil.rmtree(self.pending, ignore_errors=True)
            # Bars of files that are saved and sent would be drawn into that of training.
            self._showed_bars = transformers_logging.is_progress_bar_enabled()
            transformers_logging.disable_progress_bar()
            self._push = BackgroundPush(self._send, self._reason)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        # Lightning writes checkpoints after all other callbacks: that of a step is there when the next one begins.
        if trainer.global_step >= max(self._offered, 0) + (self.hub.every or 1):
            self._offer_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = validation_score(trainer)
        if found is None or (self.best is not None and found[1] <= self.best):
            return
        name, self.best = found
        model, processor = _model_and_processor(trainer)
        # On all ranks, which gather what they share.
        model = whole_model(model)
        if self._push is None:
            return
        facts = {f"val/{name.rpartition('/')[2]}": self.best}
        with self._snapshot("best", trainer.global_step, facts) as folder:
            for part in (model, processor):
                part.save_pretrained(folder / BEST_FOLDER)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._finish(trainer)

    def _offer_last(self, trainer: L.Trainer) -> None:
        checkpoint = self.run.latest_checkpoint()
        if self._push is None or checkpoint is None or step_of(checkpoint) == self._offered:
            return
        self._offered = step_of(checkpoint)
        with self._snapshot("last", self._offered, portable_record(self.run.record)) as folder:
            # Older checkpoints are deleted, perhaps in the middle of a push: this is a second name for the file.
            link_or_copy(checkpoint, folder / CHECKPOINT)
            model, processor = _model_and_processor(trainer)
            model.config.save_pretrained(folder / MODEL_FOLDER)
            processor.save_pretrained(folder / MODEL_FOLDER)
            for code in (folder / MODEL_FOLDER).glob("*.py"):
                # Who continues a training has mmfusion; who uses the best model finds its code next to it.
                code.unlink()

    @contextmanager
    def _snapshot(self, kind: str, step: int, facts: dict[str, Any]) -> Iterator[Path]:
        """A folder for the files of a snapshot, which is offered after the block; a failure only logs a warning."""
        folder = self.pending / f"{kind}-{step}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            assert self._push is not None
            self._push.offer(Snapshot(kind, step, folder, facts))
        except Exception as error:
            logger.warning("%s checkpoint not pushed: %s: %s", kind, type(error).__name__, without_tokens(str(error)))

    def _finish(self, trainer: L.Trainer) -> None:
        if self._push is None:
            return
        self._offer_last(trainer)
        push, self._push = self._push, None
        arrived = push.close(self.hub.last_attempt)
        if self._showed_bars:
            transformers_logging.enable_progress_bar()
        step, place = push.pushed.get("last"), f"{self.repo}@{self.hub.branch}"
        if arrived:
            shutil.rmtree(self.pending, ignore_errors=True)
        if arrived and step is not None:
            logger.info("checkpoint of step %d is on the Hub; continue it with --resume hub:%s", step, place)
        elif not arrived:
            there = "none of this training" if step is None else f"step {step}"
            logger.warning(
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
        files = sorted(path for path in snapshot.folder.rglob("*") if path.is_file())
        additions = [CommitOperationAdd(path.relative_to(snapshot.folder).as_posix(), path) for path in files]
        additions.append(CommitOperationAdd(*_facts(snapshot, additions)))
        for addition in additions:
            if addition.upload_info.size >= _ALONE_FROM_BYTES:
                api.preupload_lfs_files(self.repo, [addition], revision=self.hub.branch, num_threads=1)
        message = f"{snapshot.kind} checkpoint, step {snapshot.step}"
        api.create_commit(self.repo, additions, commit_message=message, revision=self.hub.branch)
        if self.hub.squash:
            api.super_squash_history(self.repo, branch=self.hub.branch, commit_message=message)

    def _reason(self, error: Exception) -> str:
        return without_tokens(str(explain(error, self.repo, self.hub.branch)))


def without_tokens(text: str) -> str:
    """The first line of a text; hides whatever looks like a token, and the query part of each URL, e.g. signatures."""
    token = get_token()
    line = next(iter(text.splitlines()), "")
    line = line.replace(token, "***") if token else line
    return re.sub(r"\?\S+", "?***", re.sub(r"hf_\w{8,}", "***", line))


def _facts(snapshot: Snapshot, additions: list[CommitOperationAdd]) -> tuple[str, bytes]:
    """Path and content of the file that says what a snapshot is, and for `last` how to know that it arrived whole."""
    name, facts = f"{BEST_FOLDER}/best.json", {"step": snapshot.step, **snapshot.facts}
    if snapshot.kind == "last":
        whole = next(addition.upload_info for addition in additions if addition.path_in_repo == CHECKPOINT)
        about = {"step": snapshot.step, "bytes": whole.size, "sha256": whole.sha256.hex()}
        name, facts = RECORD, {**snapshot.facts, "checkpoint": about}
    return name, (json.dumps(facts, indent=2) + "\n").encode()


def _model_and_processor(trainer: L.Trainer) -> tuple[Any, Any]:
    return trainer.lightning_module.model, trainer.datamodule.processor  # type: ignore[attr-defined]


def portable_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run (content of its `run.json`) without what belongs to its machine."""
    arguments = record["arguments"]
    base = record.get("base_reference") or arguments.get("base")
    travelling = ("recipe", "python", "versions", "catalogue_contents", "extensions")
    kept = {name: record[name] for name in travelling if name in record}
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
