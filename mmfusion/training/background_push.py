"""A thread that brings snapshots to a place that may be away, while training goes on."""

import logging
import random
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("mmfusion")


@dataclass(frozen=True)
class Snapshot:
    """Files of one moment of training.

    Attributes:
        kind: What it is a snapshot of; a newer one of the same kind replaces it.
        step: Optimizer step.
        files: File on this machine by its path in the repository.
        folder: Folder of its own that goes once the snapshot is pushed or replaced.
        facts: What is known about it; JSON values.
    """

    kind: str
    step: int
    files: Mapping[str, Path]
    folder: Path
    facts: Mapping[str, object]

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class BackgroundPush:
    """Pushes the newest snapshot of each kind, one at a time, from a thread of its own.

    At most one snapshot per kind waits. A push that fails is a warning of one line and is tried again after a pause
    that doubles from failure to failure, with a newer snapshot if there is one by then. Nothing that happens to a push
    reaches the thread that trains.

    Attributes:
        pushed: Step of the last snapshot that arrived, by kind.
    """

    def __init__(
        self,
        push: Callable[[Snapshot], None],
        reason: Callable[[Exception], str],
        *,
        first_pause: float = 2.0,
        longest_pause: float = 300.0,
    ) -> None:
        """Starts the thread.

        Args:
            push: Brings a snapshot to its place, or raises.
            reason: Says in one line, without secrets, why it could not.
            first_pause: Seconds after the first failure in a row.
            longest_pause: Seconds that the pause grows to.
        """
        self.pushed: dict[str, int] = {}
        self._push, self._reason = push, reason
        self._first_pause, self._longest_pause = first_pause, longest_pause
        self._pending: dict[str, Snapshot] = {}
        self._closing = False
        self._given_up = False
        self._changed = threading.Condition()
        # A generator of its own: the global one belongs to training, which must draw what it would draw without us.
        self._random = random.Random()
        # A daemon, as a transfer that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="push checkpoints", daemon=True)
        self._thread.start()

    def offer(self, snapshot: Snapshot) -> None:
        """Has a snapshot pushed as soon as may be, in place of an older one of its kind that still waits."""
        with self._changed:
            replaced = self._pending.pop(snapshot.kind, None)
            self._pending[snapshot.kind] = snapshot
            self._changed.notify_all()
        if replaced is not None:
            replaced.discard()

    def close(self, seconds: float) -> bool:
        """Tries what waits once more, without a pause, and ends the thread.

        Args:
            seconds: Longest time to wait; a transfer that is under way then is left to itself.

        Returns:
            Whether everything that was offered, or a newer one of its kind, has arrived.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive() and not self._given_up

    def _run(self) -> None:
        failures = 0
        while (snapshot := self._next()) is not None:
            last_attempt = self._closing
            try:
                self._push(snapshot)
            except Exception as error:
                failures += 1
                self._failed(snapshot, error, failures, last_attempt)
            else:
                failures = 0
                self.pushed[snapshot.kind] = snapshot.step
                snapshot.discard()

    def _next(self) -> Snapshot | None:
        """The snapshot that has waited longest; None when nothing waits and nothing more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or bool(self._pending))
            return self._pending.pop(next(iter(self._pending))) if self._pending else None

    def _failed(self, snapshot: Snapshot, error: Exception, failures: int, last_attempt: bool) -> None:
        pause = min(self._first_pause * 2 ** min(failures - 1, 30), self._longest_pause)
        # Jitter, so that many runs do not come back to a Hub that has just recovered all at once.
        pause *= self._random.uniform(0.5, 1.0)
        then = "that was the last attempt" if last_attempt else f"trying again in {pause:.0f} s"
        try:
            reason = self._reason(error)
        except Exception:
            reason = type(error).__name__
        log.warning("%s checkpoint of step %d not pushed, %s: %s", snapshot.kind, snapshot.step, then, reason)
        with self._changed:
            if last_attempt or snapshot.kind in self._pending:
                self._given_up |= last_attempt
                snapshot.discard()
            else:
                self._pending[snapshot.kind] = snapshot
            if not last_attempt:
                self._changed.wait_for(lambda: self._closing, timeout=pause)
