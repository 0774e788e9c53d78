"""Micro-batches: concurrent requests computed together, in a bounded queue."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class QueueFullError(Exception):
    """So many requests wait already that a further one would time out."""


class MicroBatcher(Generic[T, R]):
    """Computes items in batches, one batch after another, in a thread of its own.

    A batch is what has come while the one before was computed, so that an item which comes alone never waits for
    company, and batches grow with the load.

    Args:
        run: Computes a batch: items -> a result or an exception for each. One that raises fails its whole batch, and
            nothing else.
        max_batch: Items per batch at most.
        max_waiting: Items that wait at most.
    """

    def __init__(self, run: Callable[[list[T]], list[R | Exception]], *, max_batch: int, max_waiting: int) -> None:
        self._run = run
        self._max_batch = max_batch
        self._waiting: asyncio.Queue[tuple[T, asyncio.Future[R]]] = asyncio.Queue(max_waiting)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._loop: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items that wait for a batch."""
        return self._waiting.qsize()

    async def start(self) -> None:
        """Begins to compute."""
        self._loop = asyncio.create_task(self._compute(), name="micro-batches")

    async def stop(self) -> None:
        """Ends; what is not done is given up."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown)
        while not self._waiting.empty():
            self._waiting.get_nowait()[1].cancel()

    async def submit(self, item: T, timeout_s: float) -> R:
        """The result of an item.

        Raises:
            QueueFullError: `max_waiting` items wait already.
            TimeoutError: There was no result in time; an item that still waits is not computed any more.
            Exception: What `run` gave for the item, or raised.
        """
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((item, done))
        except asyncio.QueueFull:
            raise QueueFullError from None
        try:
            return await asyncio.wait_for(done, timeout_s)
        except asyncio.TimeoutError as error:  # another class than the built-in one before Python 3.11
            raise TimeoutError from error

    async def _compute(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._max_batch and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            # Nobody waits for those whose time is up.
            batch = [(item, done) for item, done in batch if not done.done()]
            if not batch:
                continue
            try:
                results = await loop.run_in_executor(self._pool, self._run, [item for item, _ in batch])
            except Exception as error:
                results = [error] * len(batch)
            except asyncio.CancelledError:
                for _, done in batch:
                    done.cancel()
                raise
            for (_, done), result in zip(batch, results, strict=True):
                _settle(done, result)


def _settle(done: asyncio.Future[R], result: R | Exception) -> None:
    if done.done():
        return
    if isinstance(result, Exception):
        done.set_exception(result)
    else:
        done.set_result(result)
