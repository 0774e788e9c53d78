"""Micro-batches: concurrent requests computed together, in a bounded queue."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

# Part of the time that an item has which it may be expected to take: batches differ.
_IN_TIME = 0.8

T = TypeVar("T")
R = TypeVar("R")


class QueueFullError(Exception):
    """So many items wait already that a further one finds no place, or would not be done in time."""


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
        self._max_waiting = max_waiting
        # In the order in which they came; whoever gives up takes its item out and makes room at once.
        self._waiting: dict[asyncio.Future[R], T] = {}
        self._came = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._loop: asyncio.Task[None] | None = None
        self._computing = False
        # Of a batch, a moving average.
        self._batch_s = 0.0

    @property
    def waiting(self) -> int:
        """Items that wait for a batch."""
        return len(self._waiting)

    async def start(self) -> None:
        """Begins to compute."""
        self._loop = asyncio.create_task(self._compute(), name="micro-batches")

    async def stop(self) -> None:
        """Ends; what is not done is given up."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown)
        for done in [*self._waiting]:
            done.cancel()

    async def submit(self, item: T, timeout_s: float) -> R:
        """The result of an item.

        Raises:
            QueueFullError: `max_waiting` items wait already, or so many that this one would be late, as batches go now.
            TimeoutError: There was no result in time; an item that still waits is not computed any more, nor is that of
                a task which is cancelled.
            Exception: What `run` gave for the item, or raised.
        """
        if self.waiting >= self._max_waiting or self._expected_s() > _IN_TIME * timeout_s:
            raise QueueFullError
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting[done] = item
        self._came.set()
        try:
            return await asyncio.wait_for(done, timeout_s)
        finally:
            self._waiting.pop(done, None)

    def _expected_s(self) -> float:
        """Seconds until an item that comes now is done; 0 for one that finds nothing before it, which is let in."""
        before = self.waiting + self._computing
        batches = -(-(self.waiting + 1) // self._max_batch) + self._computing
        return batches * self._batch_s if before else 0.0

    async def _compute(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._came.wait()
            batch = self._take()
            if not batch:
                continue
            self._computing, start = True, loop.time()
            try:
                results = await loop.run_in_executor(self._pool, self._run, [*batch.values()])
            except Exception as error:
                results = [error] * len(batch)
            except asyncio.CancelledError:
                for done in batch:
                    done.cancel()
                raise
            self._computing = False
            took = loop.time() - start
            self._batch_s = 0.8 * self._batch_s + 0.2 * took if self._batch_s else took
            for done, result in zip(batch, results, strict=True):
                _settle(done, result)

    def _take(self) -> dict[asyncio.Future[R], T]:
        """The items that have waited longest, which wait no more; none if nobody waits for them."""
        batch = {done: self._waiting.pop(done) for done in [*islice(self._waiting, self._max_batch)]}
        if not self._waiting:
            self._came.clear()
        # Whose time is up this very moment has not taken its item out yet.
        return {done: item for done, item in batch.items() if not done.done()}


def _settle(done: asyncio.Future[R], result: R | Exception) -> None:
    if done.done():
        return
    if isinstance(result, Exception):
        done.set_exception(result)
    else:
        done.set_result(result)
