"""A searchable index of product embeddings that knows its products and its model."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.retrieval.folder import replacing
from mmfusion.retrieval.hit import Hit
from mmfusion.retrieval.vectors import as_float32, build_faiss, set_search_parameters

SCHEMA_VERSION = 1
MODALITIES = ("text", "image")
_INDEX, _PRODUCTS, _DESCRIPTION = "index.faiss", "products.parquet", "index.json"


@dataclass(frozen=True)
class IndexDescription:
    """What `index.json` says.

    Attributes:
        schema_version: version of the folder's layout.
        dimension: of the embeddings.
        count: number of products.
        factory: FAISS factory string.
        metric: always "inner_product".
        model_fingerprint: identifies the model that made the embeddings; queries must come from the same one.
        search_parameters: FAISS run-time parameters, for example "nprobe=16"; empty for FAISS's own.
        created_by: software that built the index.
    """

    schema_version: int
    dimension: int
    count: int
    factory: str
    metric: str
    model_fingerprint: str
    search_parameters: str
    created_by: str


class ProductIndex:
    """Product embeddings with their ids, modality weights and metadata. Make one with `build` or `load`."""

    def __init__(self, index: faiss.Index, products: pa.Table, description: IndexDescription) -> None:
        self._index = index
        self._products = products
        self.description = description

    def __len__(self) -> int:
        return self.description.count

    @property
    def product_ids(self) -> list[str]:
        """All N ids in the order of the embeddings."""
        return self._products.column("product_id").to_pylist()

    @classmethod
    def build(
        cls,
        embeds: Any | Iterable[Any],
        product_ids: Sequence[str] | np.ndarray,
        *,
        model_fingerprint: str,
        metadata: pa.Table | None = None,
        modality_weights: np.ndarray | None = None,
        factory: str = "Flat",
        search_parameters: str = "",
        train_size: int = 262_144,
    ) -> "ProductIndex":
        """Index product embeddings for search by inner product.

        Args:
            embeds: float [N, D] (numpy, memory-mapped or tensor), or an iterable of blocks [n, D] of N rows in all.
            product_ids: N different strings of any characters.
            model_fingerprint: identifies the model that made the embeddings.
            metadata: N rows, any columns (title …); returned with each hit.
            modality_weights: float [N, 2], shares of text and image; returned with each hit.
            factory: FAISS factory string: "Flat" is exact, "HNSW32" fast, "IVF256,PQ32" small.
            search_parameters: FAISS run-time parameters, for example "nprobe=16" (an IVF index looks into a single
                cluster otherwise) or "efSearch=64".
            train_size: vectors that an index in need of training is trained on at most: spread evenly over an array,
                the first ones of an iterable (shuffle the catalogue if it is sorted by category).

        Raises:
            ValueError: numbers of rows differ, an id comes twice, an embedding or weight is NaN or infinite, FAISS
                cannot make such an index, or there are too few vectors to train it.
        """
        if not model_fingerprint:
            raise ValueError("model_fingerprint is empty; pass the fingerprint of the model that made the embeddings")
        products = _products_table(product_ids, metadata, modality_weights)
        index = build_faiss(embeds, factory, train_size)
        if index.ntotal != len(products):
            raise ValueError(f"{index.ntotal} product embeddings for {len(products)} product ids; pass one each")
        if search_parameters:
            set_search_parameters(index, search_parameters)
        description = IndexDescription(
            schema_version=SCHEMA_VERSION,
            dimension=index.d,
            count=len(products),
            factory=factory,
            metric="inner_product",
            model_fingerprint=model_fingerprint,
            search_parameters=search_parameters,
            created_by=created_by(),
        )
        return cls(index, products, description)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `index.faiss`, `products.parquet` and `index.json` into a folder, as a whole or not at all.

        The files are written into a hidden folder beside it, which then takes its place.

        Args:
            folder: new or empty; with `overwrite` also one that holds an index.
            overwrite: replace an index that is there.

        Returns:
            The folder.

        Raises:
            FileExistsError: the folder holds an index and `overwrite` is off, or holds anything else.
        """
        folder = Path(folder).absolute()
        with replacing(folder, files=frozenset({_INDEX, _PRODUCTS, _DESCRIPTION}), overwrite=overwrite) as new:
            faiss.write_index(self._index, str(new / _INDEX))
            pq.write_table(self._products, new / _PRODUCTS)
            text = json.dumps(asdict(self.description), indent=2, ensure_ascii=False)
            (new / _DESCRIPTION).write_text(text + "\n", "utf-8")
        return folder

    @classmethod
    def load(
        cls, folder: str | Path, *, model_fingerprint: str | None = None, memory_map: bool = True
    ) -> "ProductIndex":
        """Read what `save` wrote.

        Args:
            folder: the folder.
            model_fingerprint: the model whose queries will be searched; None leaves the check to `search`.
            memory_map: leave vectors on disk until they are needed, where FAISS can.

        Raises:
            FileNotFoundError: a file of the index is missing.
            ValueError: a file is damaged, of a later layout or of another index, or the fingerprint differs.
        """
        folder = Path(folder)
        for name in (_DESCRIPTION, _INDEX, _PRODUCTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is no product index: {name} is missing; build one with index.py")
        description = _read_description(folder / _DESCRIPTION)
        index = _read_faiss(folder / _INDEX, memory_map)
        products = _read_products(folder / _PRODUCTS, memory_map)
        found = (index.d, index.ntotal, len(products))
        expected = (description.dimension, description.count, description.count)
        if found != expected:
            raise ValueError(
                f"the files of {folder} do not belong together: {_DESCRIPTION} says (dimension, vectors, products) "
                f"{expected}, the files hold {found}; build the index again"
            )
        if description.search_parameters:
            set_search_parameters(index, description.search_parameters)
        loaded = cls(index, products, description)
        if model_fingerprint is not None:
            loaded.check_model(model_fingerprint)
        return loaded

    def check_model(self, model_fingerprint: str) -> None:
        """Refuse queries of another model, whose scores would be noise.

        Raises:
            ValueError: the fingerprint is not the index's.
        """
        if model_fingerprint != self.description.model_fingerprint:
            raise ValueError(
                f"the index was built with model {self.description.model_fingerprint!r} but the queries come from "
                f"model {model_fingerprint!r}; load the index's model or build the index again with this one"
            )

    def search(self, query_embeds: Any, k: int, *, model_fingerprint: str | None = None) -> list[list[Hit]]:
        """Find the k products with the largest inner product for each query.

        Equal scores are ordered as in evaluation, by product id descending; which of several equal products gets the
        last place is FAISS's choice.

        Args:
            query_embeds: float [Q, D], numpy or tensor.
            k: hits wanted, at least 1; more than there are products gives all products.
            model_fingerprint: the model that made the query embeddings; None skips the check.

        Returns:
            For each query its hits, best first: min(k, N) with an exact index, perhaps fewer with an IVF index.

        Raises:
            ValueError: k is below 1, or the embeddings have another dimension, a NaN, or come from another model.
        """
        if model_fingerprint is not None:
            self.check_model(model_fingerprint)
        scores, rows = self.search_rows(query_embeds, k)
        return [self._hits(*one) for one in zip(scores, rows, strict=True)]

    def search_rows(self, query_embeds: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find products as `search` does, but by their place in the index: for many queries and many hits.

        Args:
            query_embeds: float [Q, D], numpy or tensor.
            k: hits wanted, at least 1.

        Returns:
            Scores float32 and places int64, both [Q, min(k, N)], best first in FAISS's order; place -1 where an index
            that is not exact found no more.

        Raises:
            ValueError: k is below 1, or the embeddings have another dimension or a NaN.
        """
        if k < 1:
            raise ValueError(f"k={k}: ask for at least one hit")
        queries = as_float32(query_embeds, what="query embeddings")
        if queries.shape[1] != self.description.dimension:
            raise ValueError(
                f"query embeddings have dimension {queries.shape[1]} but the index {self.description.dimension}; embed "
                f"queries with the model that built the index ({self.description.model_fingerprint!r})"
            )
        scores, rows = self._index.search(queries, min(k, len(self)))
        return scores, rows

    def _hits(self, scores: np.ndarray, rows: np.ndarray) -> list[Hit]:
        found = [(float(score), self._product(int(row))) for score, row in zip(scores, rows, strict=True) if row >= 0]
        found.sort(key=lambda pair: (pair[0], pair[1]["product_id"]), reverse=True)
        return [
            Hit(
                product_id=product["product_id"],
                score=score,
                rank=rank,
                modality_weights=product.get("modality_weights", {}),
                metadata=product.get("metadata", {}),
            )
            for rank, (score, product) in enumerate(found, start=1)
        ]

    def _product(self, row: int) -> dict[str, Any]:
        return {name: self._products.column(name)[row].as_py() for name in self._products.column_names}


def _products_table(
    product_ids: Sequence[str] | np.ndarray, metadata: pa.Table | None, modality_weights: np.ndarray | None
) -> pa.Table:
    ids = list(product_ids)
    for row, product_id in enumerate(ids):
        if not isinstance(product_id, str):
            raise ValueError(f"product id {product_id!r} in row {row} is no string; convert ids before indexing")
    _check_unique(ids)
    # Structs keep metadata columns of any name apart from ours.
    columns: dict[str, Any] = {"product_id": pa.array(ids, pa.string())}
    if modality_weights is not None:
        weights = as_float32(modality_weights, what="modality weights")
        _check_rows("modality weights", len(weights), len(ids))
        if weights.shape[1] != len(MODALITIES):
            raise ValueError(f"modality weights have {weights.shape[1]} columns; pass one each for {MODALITIES}")
        columns["modality_weights"] = pa.StructArray.from_arrays(list(map(pa.array, weights.T)), MODALITIES)
    if metadata is not None and metadata.num_columns:
        _check_rows("metadata", len(metadata), len(ids))
        columns["metadata"] = metadata.to_struct_array()
    return pa.table(columns)


def _check_rows(what: str, rows: int, expected: int) -> None:
    if rows != expected:
        raise ValueError(f"{what} has {rows} rows for {expected} product ids; pass one each")


def _check_unique(ids: list[str]) -> None:
    if len(set(ids)) == len(ids):
        return
    first_row: dict[str, int] = {}
    for row, product_id in enumerate(ids):
        if product_id in first_row:
            raise ValueError(
                f"product id {product_id!r} comes twice, in rows {first_row[product_id]} and {row}; remove one"
            )
        first_row[product_id] = row


def created_by() -> str:
    try:
        ours = version("mmfusion")
    except PackageNotFoundError:
        ours = "(not installed)"
    return f"mmfusion {ours}, faiss {faiss.__version__}"


def _read_description(path: Path) -> IndexDescription:
    try:
        fields = json.loads(path.read_text("utf-8"))
        schema_version = int(fields["schema_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); build the index again") from error
    if schema_version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {schema_version}, this mmfusion reads {SCHEMA_VERSION}; update mmfusion or "
            "build the index again"
        )
    try:
        return IndexDescription(**fields)
    except TypeError as error:
        raise ValueError(f"{path} is damaged ({error}); build the index again") from error


def _read_faiss(path: Path, memory_map: bool) -> faiss.Index:
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if memory_map else 0)
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged and FAISS cannot read it; build the index again") from error


def _read_products(path: Path, memory_map: bool) -> pa.Table:
    try:
        return pq.read_table(path, memory_map=memory_map)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); build the index again") from error
