"""Loaders whose worker processes leave SIGTERM, which schedulers send to each process of a job, to training."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader


class WorkersLoader(DataLoader[Any]):
    """A loader whose workers ignore SIGTERM.

    Training needs its workers to finish the step, and ends them then; one whose training is gone ends by itself.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "worker_init_fn": _leave_stopping_to_training})

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A worker that is not ready to ignore the signal yet would die of it.
        with _stopping_held_back():
            return super().__iter__()


def _leave_stopping_to_training(worker: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


@contextmanager
def _stopping_held_back() -> Iterator[None]:
    """Blocks SIGTERM, which processes that are forked meanwhile inherit; it is handled afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
