"""From streamed products to tensors: a table that holds only the rows that were read for it and not used yet."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset

from mmfusion.data.batch import ProductBatch
from mmfusion.data.catalogue import CatalogueError
from mmfusion.data.stream_reads import Read, StreamIndex
from mmfusion.data.streamed_catalogue import StreamedCatalogue
from mmfusion.data.tables import PairTable, ProductTable, Rows
from mmfusion.model import MMFusionProcessor


class ReadError(NamedTuple):
    """What stands for a batch whose products cannot be read: what a worker raises would end one rank alone."""

    message: str


class StreamedProductTable(ProductTable):
    """Products that `hold` has read; making a batch of them lets go of them.

    Attributes:
        held: Values by column of the products that are held, by row.
    """

    def __init__(self, catalogue: StreamedCatalogue, processor: MMFusionProcessor, *, photos: bool = True) -> None:
        self.shards = catalogue.shards
        super().__init__(catalogue, processor, photos=photos)
        wanted = dict.fromkeys(["product_id", *processor.template_columns, *(["image"] if self.photos else [])])
        self._wanted = [name for name in wanted if name in self.shards.column_names]
        self.held: dict[int, dict[str, Any]] = {}

    @property
    def schema(self) -> pa.Schema:
        return self.shards.schema

    def hold(self, reads: Iterable[Read]) -> None:
        """Reads rows and holds them.

        Raises:
            CatalogueError: They cannot be read, or are other products than when the catalogue was loaded.
        """
        for group, rows in reads:
            records = self.shards.read(group, rows, self._wanted)
            if [record["product_id"] for record in records] != self.catalogue.products[rows.tolist()]["product_id"]:
                raise self.shards.changed(group)
            self.held.update(zip(rows.tolist(), records, strict=True))

    def forget(self) -> None:
        """Lets go of all rows: what an epoch that ended early has left."""
        self.held.clear()

    def read_view(self, rows: Rows, view: int) -> ProductBatch:
        batch = super().read_view(rows, view)
        for row in np.asarray(rows).tolist():
            del self.held[row]
        return batch

    def _columns(self, names: Sequence[str], rows: Rows) -> dict[str, list[Any]]:
        records = [self.held[row] for row in np.asarray(rows).tolist()]
        return {name: [record[name] for record in records] for name in names}


class StreamedTable(Dataset[Any]):
    """Reads what a batch needs and makes it; an index is a [`StreamIndex`], and a failure is a [`ReadError`]."""

    def __init__(self, batches: PairTable | StreamedProductTable, products: StreamedProductTable) -> None:
        self.batches = batches
        self.products = products

    def __getitem__(self, streamed: StreamIndex) -> Any:
        try:
            self.products.hold(streamed.reads)
        except CatalogueError as error:
            return ReadError(str(error))
        return self.batches[streamed.batch]
