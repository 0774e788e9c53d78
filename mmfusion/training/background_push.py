"""A thread that pushes snapshots to a place that may be away, while training continues."""

import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """Files of one moment of training.

    Attributes:
        kind: What it is a snapshot of; a newer one of the same kind replaces it.
        step: Optimizer step.
        folder: Folder of its own, with the files; it is removed once the snapshot is pushed or replaced.
        facts: What is known about it; JSON values.
    """

    kind: str
    step: int
    folder: Path
    facts: Mapping[str, object]

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class BackgroundPush:
    """Pushes the newest snapshot of each kind, one at a time, from a separate thread.

    At most one snapshot per kind waits. A push that fails logs a warning of one line, and is tried again together with
    the next snapshot and at the end, unless a newer one of its kind has replaced it by then. Short faults are up to the
    retries of the client that pushes. Nothing that happens to a push reaches the thread that trains.

    Attributes:
        pushed: Step of the last snapshot that arrived, by kind.
    """

    def __init__(self, push: Callable[[Snapshot], None], reason: Callable[[Exception], str]) -> None:
        """Starts the thread.

        Args:
            push: Brings a snapshot to its place, or raises.
            reason: Says in one line, without secrets, why it could not.
        """
        self.pushed: dict[str, int] = {}
        self._push, self._reason = push, reason
        self._pending: dict[str, Snapshot] = {}
        self._news = self._closing = False
        self._changed = threading.Condition()
        # A daemon, as a transfer that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="push checkpoints", daemon=True)
        self._thread.start()

    def offer(self, snapshot: Snapshot) -> None:
        """Pushes a snapshot as soon as possible, in place of an older one of its kind that still waits."""
        with self._changed:
            replaced = self._pending.pop(snapshot.kind, None)
            self._pending[snapshot.kind] = snapshot
            self._news = True
            self._changed.notify_all()
        if replaced is not None:
            replaced.discard()

    def close(self, seconds: float) -> bool:
        """Tries what waits once more, and ends the thread.

        Args:
            seconds: Longest time to wait; a transfer that is under way then is left to itself.

        Returns:
            Whether everything that was offered, or a newer one of its kind, has arrived.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive() and not self._pending

    def _run(self) -> None:
        last_attempt = False
        while not last_attempt:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._closing)
                self._news, last_attempt = False, self._closing
                kinds = list(self._pending)
            for kind in kinds:
                with self._changed:
                    snapshot = self._pending.pop(kind)
                self._try(snapshot, last_attempt)

    def _try(self, snapshot: Snapshot, last_attempt: bool) -> None:
        try:
            self._push(snapshot)
        except Exception as error:
            with self._changed:
                waits = self._pending.setdefault(snapshot.kind, snapshot) is snapshot
            then = "that was the last attempt" if last_attempt else "trying again with the next one"
            reason = self._reason(error)
            logger.warning("%s checkpoint of step %d not pushed, %s: %s", snapshot.kind, snapshot.step, then, reason)
        else:
            self.pushed[snapshot.kind] = snapshot.step
            waits = False
        if last_attempt or not waits:
            snapshot.discard()
