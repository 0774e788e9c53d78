"""Requests answered in batches: those that come while one is computed wait in a bounded queue."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from starlette.exceptions import HTTPException

from mmfusion.retrieval import Hit, MilvusError, Searcher
from mmfusion.serving.requests import ProductRequest, SearchRequest, short

# Share of its time limit that an item may be expected to take; batches differ.
_IN_TIME = 0.8

T = TypeVar("T")
R = TypeVar("R")


class QueueFullError(Exception):
    """A further item would find no place in the queue, or would not be done in time."""


class MicroBatcher(Generic[T, R]):
    """Computes items in batches, one batch after another, in a separate thread.

    A batch is what has come while the one before was computed: an item that comes alone does not wait for others, and
    batches grow with the load.

    Args:
        run: Computes a batch: items -> a result or an exception for each. If it raises, its whole batch fails, and
            nothing else.
        max_batch: Items per batch at most.
        max_waiting: Items that wait at most.
    """

    def __init__(self, run: Callable[[list[T]], list[R | Exception]], *, max_batch: int, max_waiting: int) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        # In the order in which they came; a caller that gives up takes its item out and makes room at once.
        self._waiting: dict[asyncio.Future[R], T] = {}
        self._computing: dict[asyncio.Future[R], T] = {}
        self._came = asyncio.Event()
        # Moving average of a batch.
        self._batch_s = 0.0

    @property
    def waiting(self) -> int:
        """Items that wait for a batch."""
        return len(self._waiting)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Computes batches until the end of the block; items that are not done by then are cancelled."""
        with ThreadPoolExecutor(1, thread_name_prefix="batch") as pool:
            loop = asyncio.create_task(self._compute(pool), name="micro-batches")
            try:
                yield
            finally:
                loop.cancel()
                await asyncio.gather(loop, return_exceptions=True)
                await asyncio.to_thread(pool.shutdown)
                for done in (*self._computing, *self._waiting):
                    done.cancel()

    async def submit(self, item: T, timeout_s: float) -> R:
        """The result of an item.

        Raises:
            QueueFullError: `max_waiting` items wait already, or so many that this one would be late, as batches go now.
            TimeoutError: There was no result in time. An item that still waits is then not computed any more, nor is
                that of a task which is cancelled.
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
        """Seconds until an item that comes now is done; 0 if nothing is before it."""
        if not self._waiting and not self._computing:
            return 0.0
        batches = -(-(self.waiting + 1) // self._max_batch) + bool(self._computing)
        return batches * self._batch_s

    async def _compute(self, pool: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while await self._came.wait():
            # The items that have waited longest, but those whose callers give up at this very moment.
            taken = {done: self._waiting.pop(done) for done in [*islice(self._waiting, self._max_batch)]}
            if not self._waiting:
                self._came.clear()
            self._computing = {done: item for done, item in taken.items() if not done.done()}
            if not self._computing:
                continue
            start = loop.time()
            try:
                results = await loop.run_in_executor(pool, self._run, [*self._computing.values()])
            except Exception as error:
                results = [error] * len(self._computing)
            took = loop.time() - start
            self._batch_s = 0.8 * self._batch_s + 0.2 * took if self._batch_s else took
            for done, result in zip(self._computing, results, strict=True):
                if done.done():
                    continue
                if isinstance(result, Exception):
                    done.set_exception(result)
                else:
                    done.set_result(result)
            self._computing = {}


Asked = SearchRequest | ProductRequest
# Of a search its hits; of a product what the index holds of it, with the products most like it as `neighbours`.
Answer = list[Hit] | dict[str, Any]


@dataclass
class Searches:
    """Answers batches of requests.

    Attributes:
        searcher: Query tower and index; replaced when there is a new index. A batch keeps the one that it started with.
        observe_batch: Gets the number of queries that are computed together.
        default_k: Products for a request that does not say how many; fewer if the index has no more.
    """

    searcher: Searcher
    observe_batch: Callable[[int], None]
    default_k: int

    def answer(self, asked: list[Asked]) -> list[Answer | Exception]:
        """An answer for each request, or the exception that it is answered with.

        If one of them fails unexpectedly, the others are answered one by one.
        """
        try:
            return self._answer(self.searcher, asked)
        except Exception as error:
            if len(asked) == 1 or isinstance(error, MilvusError):
                return [error] * len(asked)
            return [self.answer([one])[0] for one in asked]

    def _answer(self, searcher: Searcher, asked: list[Asked]) -> list[Answer | Exception]:
        answers: dict[int, Answer | Exception] = {}
        searches: dict[int, SearchRequest] = {}
        products = len(searcher.index)
        for place, one in enumerate(asked):
            if isinstance(one, ProductRequest):
                answers[place] = self._neighbours(searcher, one, products)
            elif one.k is not None and one.k > products:
                answers[place] = _beyond(one.k, f"{products} products")
            else:
                searches[place] = one
        if searches:
            answers |= self._search(searcher, searches)
        return [answers[place] for place in range(len(asked))]

    def _search(self, searcher: Searcher, asked: dict[int, SearchRequest]) -> dict[int, Answer | Exception]:
        # All are embedded together; those with the same filter and ranking are searched together.
        self.observe_batch(len(asked))
        photos = {place: one.photo for place, one in asked.items() if one.photo is not None}
        texts = {place: one.query for place, one in asked.items() if one.mode != "words" and place not in photos}
        vectors = dict(zip(texts, searcher.embed([*texts.values()]), strict=True)) if texts else {}
        if photos:
            seen = searcher.embed_photos([*photos.values()], [asked[place].query for place in photos])
            vectors |= zip(photos, seen, strict=True)
        groups: dict[str, list[int]] = defaultdict(list)
        for place, one in asked.items():
            # How far lists reach may depend on k.
            groups[repr((one.filter, one.ranking, None if one.ranking.is_plain else one.k))].append(place)
        answers: dict[int, Answer | Exception] = {}
        for places in groups.values():
            first, counts = asked[places[0]], [asked[place].k or self.default_k for place in places]
            queries = np.stack([vectors[place] for place in places]) if first.mode != "words" else None
            words = [asked[place].query for place in places]
            how: Any = {"filter": first.filter, "ranking": first.ranking, "texts": words}
            try:
                found = searcher.index.search(queries, max(counts), **how)
            except MilvusError:
                raise
            except ValueError as error:
                answers |= dict.fromkeys(places, HTTPException(400, short(str(error), 400)))
            else:
                answers |= {place: hits[:k] for place, hits, k in zip(places, found, counts, strict=True)}
        return answers

    def _neighbours(self, searcher: Searcher, asked: ProductRequest, products: int) -> Answer | Exception:
        try:
            product = searcher.index.product(asked.product_id)
        except KeyError:
            return HTTPException(404, f"there is no product {short(repr(asked.product_id))} in the index.")
        if asked.k is not None and asked.k >= products:
            return _beyond(asked.k, f"{products - 1} other products")
        k = asked.k or self.default_k
        try:
            found = searcher.index.search(product.vector[None], k + 1, filter=asked.filter)[0]
        except MilvusError:
            raise
        except ValueError as error:
            return HTTPException(400, short(str(error), 400))
        others = [hit for hit in found if hit.product_id != product.product_id][:k]
        neighbours = [replace(hit, rank=rank) for rank, hit in enumerate(others, start=1)]
        stored = {name: value for name, value in vars(product).items() if name != "vector"}
        return {**stored, "neighbours": neighbours}


def _beyond(k: int, there: str) -> HTTPException:
    return HTTPException(400, f"k is {k}, and the index has {there}; give at most that.")
