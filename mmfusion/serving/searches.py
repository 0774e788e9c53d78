"""Batches of searches against an index that may be swapped between two of them."""

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from mmfusion.retrieval import Hit, MilvusError, Searcher, StoredProduct
from mmfusion.serving.requests import RequestError, SearchRequest


class Neighbours(NamedTuple):
    """A stored product and the products most like it."""

    product: StoredProduct
    hits: list[Hit]


class ProductRequest(NamedTuple):
    """A product's id, and how many products most like it are wanted."""

    product_id: str
    k: int


Asked = SearchRequest | ProductRequest
Answer = list[Hit] | Neighbours


class Searches:
    """Answers batches of requests.

    Attributes:
        searcher: Replaced as a whole when there is a new index; a batch keeps the one that it began with.
    """

    def __init__(self, searcher: Searcher, observe_batch: Callable[[int], None] = lambda size: None) -> None:
        self.searcher = searcher
        self._observe = observe_batch

    def answer(self, asked: list[Asked]) -> list[Answer | Exception]:
        """An answer for each request, or a `RequestError` that says why there is none."""
        try:
            return self._answer(self.searcher, asked)
        except MilvusError as error:
            return [RequestError(503, str(error))] * len(asked)

    def _answer(self, searcher: Searcher, asked: list[Asked]) -> list[Answer | Exception]:
        answers: list[Answer | Exception] = [RequestError(500, "no answer")] * len(asked)
        searches = [(place, one) for place, one in enumerate(asked) if isinstance(one, SearchRequest)]
        if searches:
            self._observe(len(searches))
            _search(searcher, searches, answers)
        for place, one in enumerate(asked):
            if isinstance(one, ProductRequest):
                answers[place] = _neighbours(searcher, one)
        return answers


def _search(searcher: Searcher, asked: list[tuple[int, SearchRequest]], answers: list[Answer | Exception]) -> None:
    # Embedded together whatever is asked of the index; searched together where filters are the same.
    products = len(searcher.index)
    for place, one in asked:
        if one.k > products:
            answers[place] = RequestError(
                400, f"k is {one.k}, and the index has {products} products; give at most that."
            )
    asked = [(place, one) for place, one in asked if one.k <= products]
    if not asked:
        return
    vectors = searcher.embed([one.query for _, one in asked])
    groups: dict[str, list[int]] = defaultdict(list)
    for row, (_, one) in enumerate(asked):
        groups[repr(one.filter)].append(row)
    for rows in groups.values():
        wanted = [asked[row][1] for row in rows]
        try:
            found = searcher.index.search(vectors[rows], max(one.k for one in wanted), filter=wanted[0].filter)
        except MilvusError:
            raise
        except ValueError as error:
            for row in rows:
                answers[asked[row][0]] = RequestError(400, str(error))
            continue
        for row, one, hits in zip(rows, wanted, found, strict=True):
            answers[asked[row][0]] = hits[: one.k]


def _neighbours(searcher: Searcher, asked: ProductRequest) -> Answer | Exception:
    try:
        product = searcher.index.product(asked.product_id)
    except KeyError:
        return RequestError(404, f"there is no product {asked.product_id!r} in the index.")
    found = searcher.index.search(product.vector[None], asked.k + 1)[0]
    others = [hit for hit in found if hit.product_id != product.product_id][: asked.k]
    return Neighbours(product, [Hit(**{**vars(hit), "rank": rank}) for rank, hit in enumerate(others, start=1)])
