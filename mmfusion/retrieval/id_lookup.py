"""From a product id to its row, without an object for each of ten million ids."""

import bisect
import threading
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


class IdLookup:
    """Finds the row of an id by binary search in an order that is made once, at the first look.

    Args:
        products: Table with the column `product_id`, of different strings.
    """

    def __init__(self, products: pa.Table) -> None:
        self._names = products.column("product_id")
        self._order: Any = None
        self._making = threading.Lock()

    def prepare(self) -> pa.Array:
        """Makes the order, 8 bytes per product, unless it is there."""
        with self._making:
            if self._order is None:
                self._order = pc.sort_indices(self._names)
            return self._order

    def row_of(self, product_id: str) -> int | None:
        """Row of an id, None if there is no such id."""
        order = self.prepare()
        # Arrow sorts by UTF-8 bytes, which is the order of code points, Python's.
        place = bisect.bisect_left(order, product_id, key=self._name)
        if place == len(self._names) or self._name(order[place]) != product_id:
            return None
        row: int = order[place].as_py()
        return row

    def _name(self, row: pa.Scalar) -> str:
        name: str = self._names[row.as_py()].as_py()
        return name
