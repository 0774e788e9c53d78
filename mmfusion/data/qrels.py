"""Graded relevance judgements (qrels) between query rows and product rows."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from mmfusion.model.errors import MMFusionError

IntArray = npt.NDArray[np.int64]

_CELLS = 2**20
"""Of the largest table of grades by query and product: 8 MiB."""


class DuplicateJudgementError(MMFusionError):
    """The same (query, product) pair was judged more than once.

    Attributes:
        query: Row of the query.
        product: Row of the product.
        grades: The first two grades given to the pair.
    """

    def __init__(self, message: str, query: int = -1, product: int = -1, grades: tuple[int, int] = (-1, -1)) -> None:
        super().__init__(message)
        self.query, self.product, self.grades = query, product, grades


class Qrels:
    """Graded judgements between query rows and product rows, sorted by (query, product).

    A *row* is a position in the catalogue's table of queries or products. A pair that was not judged has grade 0.

    Attributes:
        query: Query rows, int64 ``[n]``, ascending.
        product: Product rows, int64 ``[n]``, ascending within one query.
        grade: Grades, int64 ``[n]``, at least 0, higher is better.
    """

    def __init__(self, query: npt.ArrayLike, product: npt.ArrayLike, grade: npt.ArrayLike) -> None:
        """Checks and sorts the judgements.

        Args:
            query: Query rows, integers ``[n]``, at least 0, in any order.
            product: Product rows, integers ``[n]``, at least 0.
            grade: Grades, integers ``[n]``, at least 0.

        Raises:
            DuplicateJudgementError: A pair is judged twice, whether or not the two grades agree.
            ValueError: Lengths differ, an array is not one-dimensional, or a value is not an integer of at least 0.
        """
        given = {"query": query, "product": product, "grade": grade}
        columns = {name: _as_rows(name, values) for name, values in given.items()}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Qrels: columns of different length {lengths}. Give one entry per judgement in each.")
        for name, values in columns.items():
            if (values < 0).any():
                at = int(np.argmax(values < 0))
                raise ValueError(
                    f"Qrels: {name}[{at}] is {values[at]} (query {columns['query'][at]}, product "
                    f"{columns['product'][at]}); rows and grades are at least 0. Remove or correct that judgement."
                )
        self.query, self.product, self.grade = columns.values()
        highest = int(self.query.max(initial=0))
        if (highest + 1) * self._width > np.iinfo(np.int64).max:
            raise ValueError(
                f"Qrels: query row {highest} and product row {self._width - 1} are too large to be looked up together. "
                "Rows are positions in the catalogue's tables, not ids: pass positions."
            )
        if not (self._key[1:] >= self._key[:-1]).all():
            # Stable, so that a duplicate's grades are named in the order in which they were given.
            order = np.argsort(self._key, kind="stable")
            self.query, self.product, self.grade = self.query[order], self.product[order], self.grade[order]
            del self._key
        same = self._key[1:] == self._key[:-1]
        if same.any():
            at = int(np.argmax(same))
            pair, grades = (int(self.query[at]), int(self.product[at])), (int(self.grade[at]), int(self.grade[at + 1]))
            raise DuplicateJudgementError(
                f"Qrels: query row {pair[0]} and product row {pair[1]} are judged more than once, with grades "
                f"{grades[0]} and {grades[1]} ({int(same.sum())} judgements too many in all). Keep one judgement per "
                "pair.",
                *pair,
                grades,
            )

    @functools.cached_property
    def _width(self) -> int:
        return int(self.product.max(initial=0)) + 1

    @functools.cached_property
    def _key(self) -> IntArray:
        """The single key that pairs are sorted and looked up by."""
        return self.query * self._width + self.product

    def __len__(self) -> int:
        return len(self.query)

    def __repr__(self) -> str:
        return f"Qrels({len(self):,} judgements of {len(np.unique(self.query)):,} queries)"

    def __getstate__(self) -> dict[str, IntArray]:
        # The key is as large as a column and cheap to compute: the process that unpickles builds its own.
        return {"query": self.query, "product": self.product, "grade": self.grade}

    def grades(self, query_rows: npt.ArrayLike, product_rows: npt.ArrayLike) -> IntArray:
        """Grades of every query against every product.

        The work grows with the judgements of the given queries rather than with Q x P searches.

        Args:
            query_rows: Integers ``[Q]``, repeats allowed; -1 (padding) has no judgements.
            product_rows: Integers ``[P]``, repeats allowed; -1 (padding) has no judgements.

        Returns:
            Grades, int64 ``[Q, P]``; 0 where the pair was not judged.
        """
        queries, query_of = np.unique(_as_rows("query_rows", query_rows), return_inverse=True)
        products, product_of = np.unique(_as_rows("product_rows", product_rows), return_inverse=True)
        table = np.zeros((len(queries), len(products)), dtype=np.int64)
        if table.size and len(self):
            row, at = equals(queries, self.query)
            column = np.searchsorted(products, self.product[at])
            column[column == len(products)] = 0
            known = products[column] == self.product[at]
            table[row[known], column[known]] = self.grade[at[known]]
        return table[np.ix_(query_of, product_of)]

    def pairs(self, query_rows: npt.ArrayLike, product_rows: npt.ArrayLike) -> tuple[IntArray, IntArray, IntArray]:
        """The few pairs of given queries and products that have a positive grade.

        Args:
            query_rows: Integers ``[Q]``, repeats allowed; -1 (padding) has no judgements.
            product_rows: Integers ``[P]``, repeats allowed; -1 (padding) has no judgements.

        Returns:
            Positions in ``query_rows`` (ascending), positions in ``product_rows`` and grades, int64 ``[n]`` each.
        """
        query, at = equals(_as_rows("query_rows", query_rows), self.query)
        positive = self.grade[at] > 0
        query, at = query[positive], at[positive]
        products = _as_rows("product_rows", product_rows)
        order = np.argsort(products, kind="stable")
        pair, place = equals(self.product[at], products[order])
        return query[pair], order[place], self.grade[at[pair]]

    def grades_of(self, query_rows: npt.ArrayLike, product_rows: npt.ArrayLike) -> IntArray:
        """Grades of each query against its own list of products.

        Args:
            query_rows: Integers ``[Q]``, repeats allowed; -1 (padding) has no judgements.
            product_rows: Integers ``[Q, K]``, repeats allowed; -1 (padding) has no judgements.

        Returns:
            Grades, int64 ``[Q, K]``; 0 where the pair was not judged.

        Raises:
            ValueError: The shapes do not fit each other.
        """
        queries = _as_rows("query_rows", query_rows)
        products = _as_rows("product_rows", product_rows, dimensions=2)
        if len(queries) != len(products):
            raise ValueError(
                f"Qrels.grades_of: {len(queries)} query rows but {len(products)} lists of product rows. "
                "Give one list of products for each query."
            )
        if self._width > min(_CELLS, products.size):
            return self._searched(queries, products)
        # Twice as fast as the search: a table of all products for as many queries as stay in the cache. What is outside
        # it, and as an unsigned number -1 is, too, takes the grade 0 of one column more.
        width, grades = self._width + 1, np.empty(products.shape, dtype=np.int64)
        step, outside = min(max(1, _CELLS // width), len(queries)), np.uint64(self._width)
        table, first = np.zeros(step * width, dtype=np.int64), np.arange(step)[:, None] * width
        for start in range(0, len(queries), step):
            query, at = equals(queries[start : start + step], self.query)
            cells = query * width + self.product[at]
            table[cells] = self.grade[at]
            asked = np.minimum(products[start : start + step].view(np.uint64), outside).view(np.int64)
            # All cells are inside: "clip" spares a copy that NumPy makes to raise an error.
            np.take(table, asked + first[: len(asked)], out=grades[start : start + step], mode="clip")
            table[cells] = 0
        return grades

    def _searched(self, queries: IntArray, products: IntArray) -> IntArray:
        """As `grades_of`, by a search for each pair, whose memory does not grow with the catalogue."""
        if not len(self):
            return np.zeros(products.shape, dtype=np.int64)
        inside = (products >= 0) & (products < self._width) & (queries >= 0)[:, None]
        inside &= (queries <= self.query[-1])[:, None]
        # A row outside the known range would take the key of another pair, so its key is one that nothing has.
        keys = np.where(inside, queries[:, None] * self._width + products, -1)
        at = np.minimum(np.searchsorted(self._key, keys), len(self) - 1)
        return np.where(self._key[at] == keys, self.grade[at], 0)

    def restrict(self, query_rows: npt.ArrayLike | None = None, product_rows: npt.ArrayLike | None = None) -> Qrels:
        """Keeps only the judgements of some queries and some products.

        Args:
            query_rows: Integers, the queries to keep; None keeps all.
            product_rows: Integers, the products to keep; None keeps all.

        Returns:
            New qrels; rows keep their numbers.
        """
        keep = np.ones(len(self), dtype=bool)
        if query_rows is not None:
            keep &= np.isin(self.query, _as_rows("query_rows", query_rows))
        if product_rows is not None:
            keep &= np.isin(self.product, _as_rows("product_rows", product_rows))
        # Already checked and sorted.
        kept = Qrels.__new__(Qrels)
        kept.query, kept.product, kept.grade = self.query[keep], self.product[keep], self.grade[keep]
        return kept

    def for_query(self, row: int) -> tuple[IntArray, IntArray]:
        """Judged products of one query.

        Args:
            row: Query row; a row without judgements is allowed.

        Returns:
            Product rows (int64 ``[n]``, ascending) and their grades (int64 ``[n]``), without a copy.
        """
        first, last = np.searchsorted(self.query, row, side="left"), np.searchsorted(self.query, row, side="right")
        return self.product[first:last], self.grade[first:last]


def equals(values: IntArray, ascending: IntArray) -> tuple[IntArray, IntArray]:
    """All positions (in ``values``, in ``ascending``) of equal numbers, int64 ``[n]`` each, in the order of these."""
    first = np.searchsorted(ascending, values, side="left")
    count = np.searchsorted(ascending, values, side="right") - first
    value = np.repeat(np.arange(len(values), dtype=np.int64), count)
    ends = np.cumsum(count)
    return value, np.arange(len(value), dtype=np.int64) + np.repeat(first - (ends - count), count)


def best_grades(rows: IntArray, grades: IntArray) -> IntArray:
    """Highest grade of each row, by row, int64; 0 for rows without any."""
    best = np.zeros(int(rows.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(best, rows, grades)
    return best


def _as_rows(name: str, values: npt.ArrayLike, dimensions: int = 1) -> IntArray:
    """Returns int64 ``values``, an error for what would be rounded or wrapped."""
    array = np.asarray(values)
    if array.ndim != dimensions:
        raise ValueError(
            f"Qrels: {name} has shape {array.shape}, which is not {dimensions}-dimensional. "
            f"Pass {dimensions} dimensions."
        )
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"Qrels: {name} has dtype {array.dtype}, which is not an integer type. Pass integers.")
    return array.astype(np.int64, copy=False)
