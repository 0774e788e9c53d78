"""A catalogue: products, queries and graded judgements, read from Parquet tables and memory-mapped."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import datasets
import numpy as np
import numpy.typing as npt

from mmfusion.data.catalogue_checks import check_products, check_queries
from mmfusion.data.catalogue_error import CatalogueError
from mmfusion.data.catalogue_files import find_folder, refuse_revision
from mmfusion.data.catalogue_judgements import build_qrels
from mmfusion.data.catalogue_load import load_from_folder, load_from_hub
from mmfusion.data.catalogue_rows import check_rows, rows_of_split, text_or_blank, tidy_product, to_strings
from mmfusion.data.catalogue_schema import COLUMNS, SPLITS, TABLES, check_split_name
from mmfusion.data.catalogue_stream import batched, stream_from_folder, stream_from_hub
from mmfusion.data.qrels import Qrels
from mmfusion.files import is_hub_id

__all__ = ["Catalogue", "CatalogueError"]


class Catalogue:
    """Products, queries and graded judgements.

    The tables are memory-mapped Arrow files below ``cache_dir``: loading converts the Parquet files once, batch by
    batch, and neither loading nor use holds a table in memory. A catalogue can be pickled and used in DataLoader
    workers, which map the same files. Rows are positions in the tables, counted from 0.

    A title or description that is null or blank means that the product lacks it, and is read as ``""``; any other
    text is returned exactly as stored, of any length.

    Attributes:
        products: ``product_id``, ``title`` and any of ``description``, ``image``, ``split`` and further columns
            (metadata), as stored; ids are strings and ``image`` is undecoded.
        queries: ``query_id``, ``query`` and any of ``split``, ``kind`` and further columns.
        qrels: The judgements of all splits, between rows of ``queries`` and rows of ``products``.
        source: The folder, URL or Hub id that the catalogue was loaded from.
        photo_root: Folder in which photos that are stored as a path are found; None for a URL.
    """

    def __init__(
        self,
        products: datasets.Dataset,
        queries: datasets.Dataset,
        qrels: Qrels,
        *,
        source: str = "memory",
        photo_root: str | None = None,
    ) -> None:
        """Wraps tables that are already in order; use `load` to read and check them."""
        self.products = products
        self.queries = queries
        self.qrels = qrels
        self.source = source
        self.photo_root = photo_root

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str],
        revision: str | None = None,
        unknown: Literal["error", "drop"] = "error",
    ) -> Catalogue:
        """Loads and checks a catalogue.

        Args:
            source: A folder or an fsspec URL of one, holding ``products.parquet``, ``products-*.parquet`` or
                ``products/*.parquet`` and likewise ``queries`` and ``qrels``; or a Hub data set id (``org/name``)
                with the configurations ``products``, ``queries`` and ``qrels``.
            cache_dir: Folder for the memory-mapped tables (about the size of the uncompressed catalogue) and
                downloads; nothing is written elsewhere. A table is converted again when its files change.
            revision: Branch, tag or commit of a Hub data set.
            unknown: What to do with judgements of queries or products that are not in the tables: refuse the
                catalogue, or drop the judgements and log their number.

        Raises:
            CatalogueError: A table or column is missing, empty, unreadable or of the wrong type, an id is null or
                used twice, a query is blank, a split is unknown, a grade is null or negative, a pair is judged twice,
                a photo's path leaves the folder, or (by default) a judgement names something unknown.
        """
        if unknown not in ("error", "drop"):
            raise CatalogueError(f"unknown={unknown!r}", "Catalogue.load", "Use 'error' or 'drop'.")
        name = os.fspath(source)
        cache = os.path.abspath(cache_dir)
        tables, photo_root = _load_tables(name, cache, revision, TABLES)
        check_products(tables["products"], name, photo_root)
        check_queries(tables["queries"], name)
        qrels = build_qrels(tables, name, unknown)
        return cls(tables["products"], tables["queries"], qrels, source=name, photo_root=photo_root)

    @staticmethod
    def load_products(
        source: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str],
        revision: str | None = None,
        photos: bool = True,
    ) -> Catalogue:
        """Loads and checks products alone: a catalogue without queries and judgements, as an index is made of.

        Further arguments and errors are those of `load`; the other tables need not be there.

        Args:
            photos: False leaves the column ``image`` out, which is most of a catalogue's bytes.
        """
        name = os.fspath(source)
        leave_out = () if photos else ("image",)
        tables, photo_root = _load_tables(name, os.path.abspath(cache_dir), revision, ("products",), leave_out)
        check_products(tables["products"], name, photo_root)
        nobody = datasets.Dataset.from_dict({"query_id": [], "query": []})
        return Catalogue(tables["products"], nobody, Qrels([], [], []), source=name, photo_root=photo_root)

    @staticmethod
    def stream(
        source: str | os.PathLike[str],
        *,
        columns: Sequence[str] | None = None,
        split: str | None = None,
        batch_size: int = 256,
        revision: str | None = None,
    ) -> Iterator[list[dict[str, Any]]]:
        """Reads the products of a catalogue once, in order, without a cache and without the other tables.

        Duplicate ids are not looked for, as that takes memory that grows with the catalogue.

        Args:
            source: As for `load`; only the products are needed.
            columns: Columns to read; ``product_id`` is always read. None reads all.
            split: Only products of this split. None, or a catalogue without the column ``split``: all products.
            batch_size: Products per batch, at least 1; the last batch may be smaller.
            revision: Branch, tag or commit of a Hub data set.

        Returns:
            Batches of products, each as `product` gives it (restricted to ``columns``).

        Raises:
            CatalogueError: The table is missing or unreadable, or a column is missing or of the wrong type (at
                once); an id is null or a photo's path leaves the folder (when its batch is reached).
        """
        if batch_size < 1:
            raise CatalogueError(f"batch_size={batch_size}", "Catalogue.stream", "Use at least 1.")
        if split is not None:
            check_split_name(split, "Catalogue.stream")
        name = os.fspath(source)
        folder = find_folder(name)
        if folder is None:
            records = stream_from_hub(name, columns, split, revision)
        else:
            refuse_revision(name, revision)
            records = stream_from_folder(folder, columns, split)
        return batched(records, batch_size)

    @property
    def name(self) -> str:
        """The Hub id, or the last part of the folder or URL: what may be told to others."""
        if is_hub_id(self.source):
            return self.source
        return os.path.basename(self.source.rstrip("/")) or self.source

    @functools.cached_property
    def product_ids(self) -> npt.NDArray[Any]:
        """Product ids by row, ``StringDType`` ``[num products]``; an element is a `str`."""
        return to_strings(self.products.data.column("product_id"))

    @functools.cached_property
    def query_ids(self) -> npt.NDArray[Any]:
        """Query ids by row, ``StringDType`` ``[num queries]``; an element is a `str`."""
        return to_strings(self.queries.data.column("query_id"))

    @property
    def metadata_columns(self) -> list[str]:
        """Product columns beyond those of the format, in the order of the table."""
        return [column for column in self.products.column_names if column not in COLUMNS["products"]]

    def product_rows(self, split: str | None) -> npt.NDArray[np.int64]:
        """Rows of the products of a split.

        Args:
            split: ``train``, ``val`` or ``test``; None gives all rows, as does a table without the column ``split``.

        Returns:
            Ascending rows, int64 ``[n]``. A product whose split is null belongs to none.

        Raises:
            CatalogueError: The name is not one of the three.
        """
        return rows_of_split(self.products, split, "product_rows")

    def query_rows(self, split: str | None) -> npt.NDArray[np.int64]:
        """Rows of the queries of a split; see `product_rows`."""
        return rows_of_split(self.queries, split, "query_rows")

    def split_qrels(self, split: str | None) -> Qrels:
        """Judgements between the queries of a split and the products of the same split; None gives all."""
        if split is None:
            return self.qrels
        return self.qrels.restrict(self.query_rows(split), self.product_rows(split))

    def judged_queries(self, split: str | None) -> npt.NDArray[np.int64]:
        """Rows of the queries of a split that have a judged product in it, ascending, int64 ``[n]``, at least one.

        Raises:
            CatalogueError: There is none, or all grades are 0; says which splits have some.
        """
        qrels = self.split_qrels(split)
        if (qrels.grade > 0).any():
            return np.unique(qrels.query)
        counts = {one: len(_asked(self.split_qrels(one))) for one in SPLITS if one != split}
        there = [one for one, count in counts.items() if count]
        others = ", ".join(f"{one}: {counts[one]}" for one in there) or "no other split has any"
        problem = f"the split {split!r} has no queries with judgements ({others})"
        queries = np.arange(len(self.queries)) if split is None else self.query_rows(split)
        elsewhere = self.qrels.restrict(query_rows=queries, product_rows=np.arange(len(self.products)))
        if len(qrels):
            problem = (
                f"all {len(qrels)} judgements of the split {split!r} have grade 0, which asks for nothing ({others})"
            )
        elif len(elsewhere):
            problem += f": the {len(elsewhere)} judgements of its queries are of products of other splits"
        remedy = f"give --split {' or '.join(there)}, or write {split} queries" if there else "check the column 'split'"
        raise CatalogueError(f"{problem}; {remedy}", self.source)

    def product(self, row: int) -> dict[str, Any]:
        """One product.

        Args:
            row: 0 to number of products - 1.

        Returns:
            ``product_id``, ``title`` and ``description`` (`str`, ``""`` where lacking), ``image`` (None, a mapping
            with ``bytes`` and an absolute ``path``, or a list of such mappings) and all further columns.

        Raises:
            IndexError: There is no such row; -1 is none, as it stands for padding.
        """
        check_rows([row], len(self.products), "product")
        return tidy_product(self.products[int(row)], self.photo_root)

    def titles(self, rows: Iterable[int]) -> list[str]:
        """Titles of products, ``""`` where lacking, in the order of ``rows``; reads no other column."""
        return self._texts(self.products, "title", rows)

    def descriptions(self, rows: Iterable[int]) -> list[str]:
        """Descriptions of products, ``""`` where lacking, in the order of ``rows``; reads no other column."""
        return self._texts(self.products, "description", rows)

    def query_texts(self, rows: Iterable[int]) -> list[str]:
        """Texts of queries, in the order of ``rows``; reads no other column."""
        return self._texts(self.queries, "query", rows)

    def _texts(self, table: datasets.Dataset, column: str, rows: Iterable[int]) -> list[str]:
        wanted = [int(row) for row in rows]
        check_rows(wanted, len(table), column)
        if column not in table.column_names or not wanted:
            return [""] * len(wanted)
        return [text_or_blank(value) for value in table.select_columns([column])[wanted][column]]

    def __repr__(self) -> str:
        return (
            f"Catalogue({self.source!r}: {len(self.products):,} products, {len(self.queries):,} queries, "
            f"{len(self.qrels):,} judgements)"
        )

    def __getstate__(self) -> dict[str, Any]:
        # Ids are read again from the mapped table where they are needed, rather than copied into every worker.
        return {key: value for key, value in self.__dict__.items() if key not in ("product_ids", "query_ids")}


def _asked(qrels: Qrels) -> npt.NDArray[np.int64]:
    """Queries that have something to find."""
    return np.unique(qrels.query[qrels.grade > 0])


def _load_tables(
    name: str, cache: str, revision: str | None, wanted: Sequence[str], leave_out: Sequence[str] = ()
) -> tuple[dict[str, datasets.Dataset], str | None]:
    """Tables by name, and the folder in which photos are found that are stored as a path."""
    folder = find_folder(name)
    if folder is None:
        return {table: load_from_hub(name, table, cache, revision, leave_out) for table in wanted}, cache
    refuse_revision(name, revision)
    return {table: load_from_folder(folder, table, cache, leave_out) for table in wanted}, folder.photo_root
