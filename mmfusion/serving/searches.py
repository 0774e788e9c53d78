"""Batches of searches against an index that may be swapped between two of them."""

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from mmfusion.retrieval import Hit, MilvusError, Searcher, StoredProduct
from mmfusion.serving.requests import RequestError, SearchRequest, limited, short

DEFAULT_K = 10


class Neighbours(NamedTuple):
    """A stored product and the products most like it."""

    product: StoredProduct
    hits: list[Hit]


class ProductRequest(NamedTuple):
    """A product's id, and how many products most like it are wanted (None: it was not said)."""

    product_id: str
    k: int | None


Asked = SearchRequest | ProductRequest
Answer = list[Hit] | Neighbours


class Searches:
    """Answers batches of requests.

    Args:
        searcher: The first one.
        observe_batch: Is told how many queries are computed together.
        default_k: Products for a request that does not say how many; fewer if the index has no more.

    Attributes:
        searcher: Replaced as a whole when there is a new index; a batch keeps the one that it began with.
    """

    def __init__(
        self,
        searcher: Searcher,
        observe_batch: Callable[[int], None] = lambda size: None,
        default_k: int = DEFAULT_K,
    ) -> None:
        self.searcher = searcher
        self._observe = observe_batch
        self._default_k = default_k

    def answer(self, asked: list[Asked]) -> list[Answer | Exception]:
        """An answer for each request, or a `RequestError` that says why there is none.

        Where one of them brings something else about, the others are answered one by one, and it gets that exception.
        """
        try:
            return self._answer(self.searcher, asked)
        except MilvusError as error:
            return [RequestError(503, str(error))] * len(asked)
        except Exception as error:
            return [error] if len(asked) == 1 else [self.answer([one])[0] for one in asked]

    def _answer(self, searcher: Searcher, asked: list[Asked]) -> list[Answer | Exception]:
        answers: list[Answer | Exception] = [RequestError(500, "no answer")] * len(asked)
        products = len(searcher.index)
        searches = [(place, one) for place, one in enumerate(asked) if isinstance(one, SearchRequest)]
        if searches:
            self._observe(len(searches))
            self._search(searcher, searches, answers, products)
        for place, one in enumerate(asked):
            if isinstance(one, ProductRequest):
                answers[place] = self._neighbours(searcher, one, products)
        return answers

    def _search(
        self,
        searcher: Searcher,
        asked: list[tuple[int, SearchRequest]],
        answers: list[Answer | Exception],
        products: int,
    ) -> None:
        # Embedded together whatever is asked of the index; searched together where filters are the same.
        for place, one in asked:
            if one.k is not None and one.k > products:
                answers[place] = RequestError(
                    400, f"k is {one.k}, and the index has {products} products; give at most that."
                )
        asked = [(place, one) for place, one in asked if one.k is None or one.k <= products]
        if not asked:
            return
        vectors = searcher.embed([one.query for _, one in asked])
        groups: dict[str, list[int]] = defaultdict(list)
        for row, (_, one) in enumerate(asked):
            groups[repr(one.filter)].append(row)
        for rows in groups.values():
            wanted = [asked[row][1] for row in rows]
            hits = [one.k or self._default_k for one in wanted]
            try:
                found = searcher.index.search(vectors[rows], max(hits), filter=wanted[0].filter)
            except MilvusError:
                raise
            except ValueError as error:
                for row in rows:
                    answers[asked[row][0]] = RequestError(400, limited(str(error)))
                continue
            for row, k, one in zip(rows, hits, found, strict=True):
                answers[asked[row][0]] = one[:k]

    def _neighbours(self, searcher: Searcher, asked: ProductRequest, products: int) -> Answer | Exception:
        try:
            product = searcher.index.product(asked.product_id)
        except KeyError:
            return RequestError(404, f"there is no product {short(asked.product_id)} in the index.")
        if asked.k is not None and asked.k >= products:
            return RequestError(
                400, f"k is {asked.k}, and the index has {products - 1} other products; give at most that."
            )
        k = asked.k or self._default_k
        found = searcher.index.search(product.vector[None], k + 1)[0]
        others = [hit for hit in found if hit.product_id != product.product_id][:k]
        return Neighbours(product, [Hit(**{**vars(hit), "rank": rank}) for rank, hit in enumerate(others, start=1)])
