"""Loaders of batches: their workers leave SIGTERM to training, they continue in mid-epoch, and ranks fail together."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from mmfusion.data.catalogue import CatalogueError
from mmfusion.data.sampler import RowsSampler
from mmfusion.data.streaming import ReadError, StreamedTable

# From whether this rank is well to whether all are.
Agree = Callable[[bool], bool]

# By what a checkpoint notes: how it is called, and what to give to have the same.
_SOURCES = {
    "negatives": ("mined negatives", "--hard_negatives"),
    "stream": ("streams", "--stream, --shuffle_buffer, devices, workers and files"),
}


class WorkersLoader(DataLoader[Any]):
    """A loader whose workers ignore SIGTERM, which schedulers send to each process of a job.

    Training needs its workers to finish the step, and ends them then; one whose training is gone ends by itself.
    """

    def __init__(self, *args: Any, agree: Agree | None = None, **options: Any) -> None:
        """Args: agree: Of a loader over a [`StreamedTable`], with as many batches on each rank; others as of torch."""
        super().__init__(*args, **{**options, "worker_init_fn": _leave_stopping_to_training})
        self._agree = agree

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if isinstance(self.dataset, StreamedTable):
            # What an epoch that ended early has left.
            self.dataset.products.held.clear()
        # A worker that is not ready to ignore the signal yet would die of it.
        with _stopping_held_back():
            batches = super().__iter__()
        return batches if self._agree is None else raise_together(batches, self._agree)


class ResumableLoader(WorkersLoader):
    """A loader over a sampler that can begin in mid-epoch; Lightning saves and restores its state.

    Attributes:
        last_fetch: When the fetch of the last batch began, by `time.perf_counter`, and the seconds that it took.
    """

    sampler: RowsSampler
    last_fetch = (0.0, 0.0)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._yielded = 0
        self._resume_at = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Workers read ahead, so the sampler's own position says nothing: what counts is what was handed out.
        self.sampler.start_batch = self._yielded = self._resume_at
        self._resume_at = 0
        batches = super().__iter__()
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.last_fetch = began, time.perf_counter() - began
            if batch is None:
                return
            self._yielded += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        # Of this epoch's length, as the one that restores it does not know yet which epoch it is in.
        return {"yielded": self._yielded % len(self), **self.sampler.sources}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, (name, flags) in _SOURCES.items():
            before, now = state.get(key), self.sampler.sources.get(key)
            if before != now:
                raise ValueError(
                    f"The checkpoint was written by a training with other {name}, or with none ({before or 'none'}; "
                    f"now {now or 'none'}); give the same {flags} to resume, or another --output to start again."
                )
        self._resume_at = state["yielded"]


def raise_together(batches: Iterable[Any], agree: Agree) -> Iterator[Any]:
    """Hands batches on until a rank could not read one, and raises on all ranks then.

    Raises:
        CatalogueError: A row group cannot be read, here or on another rank.
    """
    for batch in batches:
        failed = isinstance(batch, ReadError)
        if not agree(not failed):
            raise CatalogueError(
                batch.message if failed else "Another rank could not read its products; see its error."
            )
        yield batch


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
