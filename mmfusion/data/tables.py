"""From catalogue rows to tensors: the data sets behind every loader, indexed by arrays of rows."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset

from mmfusion.data.batch import ProductBatch, QueryBatch, TrainBatch
from mmfusion.data.catalogue import BaseCatalogue, CatalogueError
from mmfusion.data.catalogue_schema import has_text, is_list
from mmfusion.data.feature_cache import FeatureCache
from mmfusion.data.photos import PhotoReader, cropped_photo
from mmfusion.model import MMFusionProcessor
from mmfusion.model.pixels import in_threads

logger = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]
# From (id, text) to the text that is read instead.
Rewrite = Callable[[str, str], str]

# What a run of any size can tokenise once more without being slower for it.
_MOST_TEXTS = 20_000
# More special tokens than any tokenizer puts around a text.
_SPECIAL_TOKENS = 8


class PairRows(NamedTuple):
    """Rows of the queries and the products of one training batch, and which crop of their photos it shows."""

    queries: Rows
    products: Rows
    crop: int = 0


class _TextTable(Dataset[Any]):
    """What tables of queries and of products share: texts, perhaps rewritten, as tokens or cached states.

    Attributes:
        text_cache: States of the frozen text encoder, which take the place of tokens, or None.
        means: Whether the mean of a text's states is all that is read of them.
    """

    def __init__(
        self, catalogue: BaseCatalogue, processor: MMFusionProcessor, *, rewrite: Rewrite | None = None
    ) -> None:
        self.catalogue, self.processor, self.rewrite = catalogue, processor, rewrite
        self.text_cache: FeatureCache | None = None
        self.means = False

    def _text_batch(self, role: str, rows: Rows) -> dict[str, Any]:
        if self.text_cache is None:
            features = self._tokens(rows)
        else:
            features = self.text_cache.texts(np.asarray(rows), means=self.means)
        named = {f"{role}_{name}": value for name, value in features.items()}
        return {f"{role}_rows": torch.from_numpy(np.asarray(rows)), **named}

    def _tokens(self, rows: Rows) -> Mapping[str, Any]:
        """`input_ids` and `attention_mask` of texts."""
        raise NotImplementedError

    def _rewritten(self, ids: Iterable[str], texts: list[str]) -> list[str]:
        if self.rewrite is None:
            return texts
        return [self.rewrite(name, text) for name, text in zip(ids, texts, strict=True)]


class QueryTable(_TextTable):
    """Tokenised queries; an index is an array of query rows.

    Args:
        catalogue: Where the rows point.
        processor: Tokenises.
        rewrite: Applied to the texts.
    """

    def __getitem__(self, rows: Rows) -> QueryBatch:
        return cast(QueryBatch, self._text_batch("query", rows))

    def _tokens(self, rows: Rows) -> Mapping[str, Any]:
        return self.processor.process_queries(self.texts(rows))

    def texts(self, rows: Rows) -> list[str]:
        """Query texts, rewritten if asked for."""
        # The ids of all queries are read for the first of them.
        ids: Iterable[str] = [] if self.rewrite is None else self.catalogue.query_ids[rows]
        return self._rewritten(ids, self.catalogue.query_texts(rows))


class ProductTable(_TextTable):
    """Tokenised products with decoded photos or cached activations; an index is an array of product rows.

    Args:
        catalogue: Where the rows point.
        processor: Renders, tokenises and normalises.
        cache: Activations to return instead of pixels; None decodes photos.
        photos: False leaves photos out, for towers that do not look at them.
        photo_of: Row whose photo each product shows, int64 (number of products,); the control that shuffles photos.
        rewrite: Applied to the rendered texts; a product whose text it makes empty has none.

    Raises:
        CatalogueError: The product template names a column that the catalogue lacks, or one of structs or bytes.
    """

    def __init__(
        self,
        catalogue: BaseCatalogue,
        processor: MMFusionProcessor,
        *,
        cache: FeatureCache | None = None,
        photos: bool = True,
        photo_of: Rows | None = None,
        rewrite: Rewrite | None = None,
    ) -> None:
        super().__init__(catalogue, processor, rewrite=rewrite)
        self.caches: tuple[FeatureCache, ...] = () if cache is None else (cache,)
        # How many of the first values of a photo's activations are read; None: all.
        self.photo_width: int | None = None
        self.photos, self.photo_of = photos and "image" in self.column_names, photo_of
        self.reader = PhotoReader(max_photos=processor.max_photos, root=catalogue.photo_root)
        self._check_template()

    @property
    def column_names(self) -> list[str]:
        """Columns that products have."""
        return list(self.catalogue.product_schema.names)

    def _check_template(self) -> None:
        schema = self.catalogue.product_schema
        known = {*schema.names, "description"} - {"image"}
        for column in self.processor.template_columns:
            problem = f"product_template {self.processor.product_template!r} names the column {column!r}"
            place = f"products of {self.catalogue.source}"
            if column not in known:
                raise CatalogueError(problem, place, f"Use one of {', '.join(sorted(known))}.")
            if column in schema.names and not has_text(schema.field(column).type):
                raise CatalogueError(
                    f"{problem}, which is {schema.field(column).type}",
                    place,
                    "Use columns of texts, numbers, dates or lists of those: put the fields that are text into columns "
                    "of their own, or decode bytes.",
                )

    def __getitem__(self, rows: Rows) -> ProductBatch:
        return self.batch(rows)

    def batch(self, rows: Rows, crop: int = 0) -> ProductBatch:
        """A batch of these products that shows one of the crops of their photos, see [`cropped_photo`]."""
        batch = self._text_batch("product", rows)
        if self.photos:
            shown = np.asarray(rows) if self.photo_of is None else self.photo_of[rows]
            cached = self.caches[crop].photos(shown, self.photo_width) if self.caches else None
            found = self.processor.process_photos(self.decode(shown, crop)) if cached is None else cached
            batch.update(found)
        return cast(ProductBatch, batch)

    def _tokens(self, rows: Rows) -> Mapping[str, Any]:
        return self.processor.process_product_texts(self.texts(rows))

    def texts(self, rows: Rows) -> list[str]:
        """Product texts as the template renders them, rewritten if asked for."""
        columns = dict.fromkeys(["product_id", *self.processor.template_columns], "")
        table = self.columns([column for column in columns if column in self.column_names], rows)
        texts = [
            self.processor.product_text({**columns, **dict(zip(table, values, strict=True))})
            for values in zip(*table.values(), strict=True)
        ]
        return self._rewritten(table["product_id"], texts)

    def decode(self, rows: Rows, crop: int = 0) -> list[list[Any]]:
        """Readable photos of products as RGB images; bad ones are logged by the reader and left out."""
        table = self.columns(["product_id", "image"], rows)

        def read(product: tuple[str, Any]) -> list[Any]:
            return [cropped_photo(photo, product[0], crop) for photo in self.reader(*product)]

        return in_threads(read, list(zip(table["product_id"], table["image"], strict=True)))

    def columns(self, names: Sequence[str], rows: Rows) -> dict[str, list[Any]]:
        """Values of some columns, undecoded, in the order of the rows."""
        values: dict[str, list[Any]] = self.catalogue.products.select_columns(names)[np.asarray(rows).tolist()]
        return values


class PairTable(Dataset[TrainBatch]):
    """Training batches; an index is a [`PairRows`]."""

    def __init__(self, queries: QueryTable, products: ProductTable) -> None:
        self.queries = queries
        self.products = products

    def __getitem__(self, pairs: PairRows) -> TrainBatch:
        return cast(TrainBatch, {**self.queries[pairs.queries], **self.products.batch(pairs.products, pairs.crop)})


def text_lengths(
    catalogue: BaseCatalogue, columns: Sequence[str], of: Literal["products", "queries"] = "products"
) -> npt.NDArray[np.int64]:
    """Characters of the texts in some columns by row, int64 (rows of the table,); estimates tokens, for bucketing."""
    table = catalogue.queries if of == "queries" else catalogue.products
    total = np.zeros(len(table), dtype=np.int64)
    for column in columns:
        values = table.data.column(column) if column in table.column_names else None
        if values is not None and (str(values.type) in ("string", "large_string")):
            total += pc.fill_null(pc.utf8_length(values), 0).to_numpy()
    return total


def photo_counts(catalogue: BaseCatalogue, most: int) -> npt.NDArray[np.int64]:
    """Photos of each product by row, at most `most`, int64 (products,); none is read, so that bad ones count."""
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


def no_text(name: str, text: str) -> str:
    """The empty text, whatever it is: a function by name, so that workers can be handed it."""
    return ""


def log_cut_texts(table: ProductTable | QueryTable, rows: Rows) -> None:
    """Logs one line if texts are cut at the processor's limit; of more than 20,000 texts a sample is looked at.

    Args:
        table: Products or queries.
        rows: (N,) int64, their rows.
    """
    products = isinstance(table, ProductTable)
    field = "max_product_length" if products else "max_query_length"
    processor = table.processor
    prompt = processor.product_prompt if products else processor.query_prompt
    limit = min(getattr(processor, field), processor.tokenizer.model_max_length)
    sample = rows if len(rows) <= _MOST_TEXTS else rows[np.linspace(0, len(rows) - 1, _MOST_TEXTS).astype(np.int64)]
    texts = [prompt + text for text in table.texts(sample)]
    # No tokenizer makes more tokens than bytes, so that short titles need no second look.
    long = [text for text in texts if len(text.encode()) + _SPECIAL_TOKENS > limit]
    tokens = processor.tokenizer(long, verbose=False)["input_ids"] if long else []
    cut = sum(len(ids) > limit for ids in tokens)
    if cut:
        logger.info(
            "%s of %s%s %s are longer than %s %s, and are cut there",
            f"{cut:,}",
            f"{len(texts):,}",
            "" if len(sample) == len(rows) else f" sampled (of {len(rows):,})",
            "product texts" if products else "queries",
            field,
            f"{limit} tokens",
        )
