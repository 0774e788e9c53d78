"""From catalogue rows to tensors: the data sets behind every loader, indexed by arrays of rows."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from mmfusion.data.augment import photo_view
from mmfusion.data.batch import ProductBatch, QueryBatch, TrainBatch
from mmfusion.data.catalogue import Catalogue, CatalogueError
from mmfusion.data.catalogue_schema import has_text, is_list
from mmfusion.data.feature_cache import FeatureCache
from mmfusion.data.photos import PhotoReader
from mmfusion.data.text_cache import TextCache
from mmfusion.model import MMFusionProcessor

Rows = npt.NDArray[np.int64]
# From (id, text) to the text that is read instead.
Rewrite = Callable[[str, str], str]


class PairRows(NamedTuple):
    """Rows of the queries and the products of one training batch, and which view of their photos it shows."""

    queries: Rows
    products: Rows
    view: int = 0


class QueryTable(Dataset[QueryBatch]):
    """Tokenised queries; an index is an array of query rows.

    Args:
        catalogue: Where the rows point.
        processor: Tokenises.
        text_cache: States of the frozen text encoder to add, or None.
        rewrite: Applied to the texts.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        processor: MMFusionProcessor,
        *,
        text_cache: TextCache | None = None,
        rewrite: Rewrite | None = None,
    ) -> None:
        self.catalogue = catalogue
        self.processor = processor
        self.text_cache = text_cache
        self.rewrite = rewrite

    def __getitem__(self, rows: Rows) -> QueryBatch:
        features = self.processor.process_queries(self.texts(rows))
        batch = QueryBatch(
            query_rows=torch.from_numpy(np.asarray(rows)),
            query_input_ids=features["input_ids"],
            query_attention_mask=features["attention_mask"],
        )
        if self.text_cache is not None:
            batch["query_text_states"] = self.text_cache.states(rows, features["attention_mask"])
        return batch

    def texts(self, rows: Rows) -> list[str]:
        """Query texts, rewritten if asked for."""
        texts = self.catalogue.query_texts(rows)
        if self.rewrite is None:
            return texts
        return [self.rewrite(name, text) for name, text in zip(self.catalogue.query_ids[rows], texts, strict=True)]


class ProductTable(Dataset[ProductBatch]):
    """Tokenised products with decoded photos or cached activations; an index is an array of product rows.

    Args:
        catalogue: Where the rows point.
        processor: Renders, tokenises and normalises.
        cache: Activations to return instead of pixels; None decodes photos.
        text_cache: States of the frozen text encoder to add, or None.
        photos: False leaves photos out, for towers that do not look at them.
        photo_of: Row whose photo each product shows, int64 (number of products,); the control that shuffles photos.
        rewrite: Applied to the rendered texts; a product whose text it makes empty has none.

    Raises:
        CatalogueError: The product template names a column that the catalogue lacks, or one of structs or bytes.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        processor: MMFusionProcessor,
        *,
        cache: FeatureCache | None = None,
        text_cache: TextCache | None = None,
        photos: bool = True,
        photo_of: Rows | None = None,
        rewrite: Rewrite | None = None,
    ) -> None:
        self.catalogue = catalogue
        self.processor = processor
        self.caches: tuple[FeatureCache, ...] = () if cache is None else (cache,)
        self.text_cache = text_cache
        self.photos = photos and "image" in self.column_names
        self.photo_of = photo_of
        self.rewrite = rewrite
        self.read = PhotoReader(max_photos=processor.max_photos, root=catalogue.photo_root)
        self._check_template()

    @property
    def column_names(self) -> list[str]:
        """Columns that products have."""
        return list(self.schema.names)

    @property
    def schema(self) -> pa.Schema:
        """Columns that products have, and their types."""
        return self.catalogue.products.data.schema

    def _check_template(self) -> None:
        known = {*self.column_names, "description"} - {"image"}
        for column in self.processor.template_columns:
            if column not in known:
                raise CatalogueError(
                    f"product_template {self.processor.product_template!r} names the column {column!r}",
                    f"products of {self.catalogue.source}",
                    f"Use one of {', '.join(sorted(known))}.",
                )
            kind = self.schema.field(column).type if column in self.column_names else None
            if kind is not None and not has_text(kind):
                raise CatalogueError(
                    f"product_template {self.processor.product_template!r} names {column!r}, which is {kind}",
                    f"products of {self.catalogue.source}",
                    "Use columns of texts, numbers, dates or lists of those: put the fields that are text into columns "
                    "of their own, or decode bytes.",
                )

    def __getitem__(self, rows: Rows) -> ProductBatch:
        return self.read_view(rows, 0)

    def read_view(self, rows: Rows, view: int) -> ProductBatch:
        """A batch that shows one of the views of the photos, see [`photo_view`]."""
        features = self.processor.process_product_texts(self.texts(rows))
        batch = ProductBatch(
            product_rows=torch.from_numpy(np.asarray(rows)),
            product_input_ids=features["input_ids"],
            product_attention_mask=features["attention_mask"],
        )
        if self.text_cache is not None:
            batch["product_text_states"] = self.text_cache.states(rows, features["attention_mask"])
        if self.photos:
            shown = np.asarray(rows) if self.photo_of is None else self.photo_of[rows]
            cached = self.caches[view][shown] if self.caches else None
            found = self.processor.process_photos(self.decode(shown, view)) if cached is None else cached
            batch.update(cast(ProductBatch, found))
        return batch

    def texts(self, rows: Rows) -> list[str]:
        """Product texts as the template renders them, rewritten if asked for."""
        columns = ["product_id", *self.processor.template_columns]
        present = [column for column in dict.fromkeys(columns) if column in self.column_names]
        table = self._columns(present, rows)
        blank = {column: "" for column in columns}
        texts = [
            self.processor.product_text({**blank, **dict(zip(present, values, strict=True))})
            for values in zip(*(table[column] for column in present), strict=True)
        ]
        if self.rewrite is None:
            return texts
        return [self.rewrite(name, text) for name, text in zip(table["product_id"], texts, strict=True)]

    def decode(self, rows: Rows, view: int = 0) -> list[list[Any]]:
        """Readable photos of products as RGB images; bad ones are logged by the reader and left out."""
        table = self._columns(["product_id", "image"], rows)
        return [
            [photo_view(photo, product_id, view) for photo in self.read(product_id, image)]
            for product_id, image in zip(table["product_id"], table["image"], strict=True)
        ]

    def _columns(self, names: Sequence[str], rows: Rows) -> dict[str, list[Any]]:
        """Values of some columns, undecoded, in the order of the rows."""
        values: dict[str, list[Any]] = self.catalogue.products.select_columns(names)[np.asarray(rows).tolist()]
        return values


class PairTable(Dataset[TrainBatch]):
    """Training batches; an index is a [`PairRows`]."""

    def __init__(self, queries: QueryTable, products: ProductTable) -> None:
        self.queries = queries
        self.products = products

    def __getitem__(self, pairs: PairRows) -> TrainBatch:
        return cast(TrainBatch, {**self.queries[pairs.queries], **self.products.read_view(pairs.products, pairs.view)})


def text_lengths(
    catalogue: Catalogue, columns: Sequence[str], of: Literal["products", "queries"] = "products"
) -> npt.NDArray[np.int64]:
    """Characters of the texts in some columns by row, int64 (rows of the table,); estimates tokens, for bucketing."""
    import pyarrow.compute as pc

    table = catalogue.queries if of == "queries" else catalogue.products
    total = np.zeros(len(table), dtype=np.int64)
    for column in columns:
        values = table.data.column(column) if column in table.column_names else None
        if values is not None and (str(values.type) in ("string", "large_string")):
            total += pc.fill_null(pc.utf8_length(values), 0).to_numpy()
    return total


def photo_counts(catalogue: Catalogue, most: int) -> npt.NDArray[np.int64]:
    """Photos of each product by row, at most `most`, int64 (products,); none is read, so that bad ones count."""
    import pyarrow.compute as pc

    table = catalogue.products
    if "image" not in table.column_names:
        return np.zeros(len(table), dtype=np.int64)
    column = table.data.column("image")
    if is_list(column.type):
        counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    else:
        counts = pc.is_valid(column).to_numpy()
        if pa.types.is_struct(column.type):
            fields = [pc.struct_field(column, field.name) for field in column.type]
            counts = counts & np.any([pc.is_valid(field).to_numpy() for field in fields], axis=0)
    return np.minimum(counts.astype(np.int64), most)
