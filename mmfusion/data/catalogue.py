"""A catalogue: products, queries and graded judgements, read from Parquet tables and memory-mapped, or from records."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue_checks import build_qrels, check_products, check_queries
from mmfusion.data.catalogue_files import ParquetTable, find_folder, load_from_hub
from mmfusion.data.catalogue_schema import SPLITS, TABLES, CatalogueError
from mmfusion.data.qrels import Qrels
from mmfusion.data.records import records_table
from mmfusion.files import is_hub_id
from mmfusion.model.missing import is_missing

__all__ = ["BaseCatalogue", "Catalogue", "CatalogueError"]


class BaseCatalogue:
    """Ids and splits of products, queries, and the judgements between them: what all catalogues share.

    Rows are positions in the tables, counted from 0. A catalogue can be pickled and used in DataLoader workers, which
    map the same files.

    Attributes:
        products: ``product_id``, ``split`` and whatever else of the products is mapped; ids are strings.
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
        """Wraps tables that are checked and in order; `load` and `from_records` make a catalogue of others."""
        self.products = products
        self.queries = queries
        self.qrels = qrels
        self.source = source
        self.photo_root = photo_root

    @classmethod
    def _checked(
        cls, tables: dict[str, datasets.Dataset], source: str, photo_root: str | None, unknown: str = "error"
    ) -> Self:
        """A catalogue of tables that are checked: products, and perhaps queries and judgements."""
        products, queries = tables["products"], tables.get("queries")
        check_products(products.data.table, source, photo_root)
        if queries is None:
            features = datasets.Features({name: datasets.Value("string") for name in ("query_id", "query")})
            queries = datasets.Dataset.from_dict({"query_id": [], "query": []}, features=features)
        else:
            check_queries(queries.data.table, source)
        qrels = Qrels([], [], [])
        if "qrels" in tables:
            qrels = build_qrels(products.data.table, queries.data.table, tables["qrels"].data.table, source, unknown)
        return cls(products, queries, qrels, source=source, photo_root=photo_root)

    @property
    def name(self) -> str:
        """The Hub id, or the last part of the folder or URL: what others may see."""
        return self.source if is_hub_id(self.source) else os.path.basename(self.source.rstrip("/")) or self.source

    @property
    def product_schema(self) -> pa.Schema:
        """Columns of the products and their types."""
        return self.products.data.schema

    @functools.cached_property
    def product_ids(self) -> npt.NDArray[Any]:
        """Product ids by row, ``StringDType`` ``[num products]``; an element is a `str`."""
        return _strings(self.products.data.column("product_id"))

    @functools.cached_property
    def query_ids(self) -> npt.NDArray[Any]:
        """Query ids by row, ``StringDType`` ``[num queries]``; an element is a `str`."""
        return _strings(self.queries.data.column("query_id"))

    def product_rows(self, split: str | None) -> npt.NDArray[np.int64]:
        """Rows of the products of a split.

        Args:
            split: ``train``, ``val`` or ``test``; None gives all rows, as does a table without the column ``split``.

        Returns:
            Ascending rows, int64 ``[n]``. A product whose split is null belongs to none.

        Raises:
            CatalogueError: The name is not one of the three.
        """
        return _rows_of_split(self.products, split)

    def query_rows(self, split: str | None) -> npt.NDArray[np.int64]:
        """Rows of the queries of a split; see `product_rows`."""
        return _rows_of_split(self.queries, split)

    def query_texts(self, rows: Iterable[int]) -> list[str]:
        """Texts of queries, in the order of ``rows``; reads no other column."""
        return _texts(self.queries, "query", rows)

    def split_qrels(self, split: str | None) -> Qrels:
        """Judgements between the queries of a split and the products of the same split; None gives all."""
        if split is None:
            return self.qrels
        return self.qrels.restrict(self.query_rows(split), self.product_rows(split))

    def judged_queries(self, split: str | None) -> npt.NDArray[np.int64]:
        """Rows of the queries of a split that have a judged product in it, ascending, int64 ``[n]``, at least one.

        Raises:
            CatalogueError: There is none, or all grades are 0; says which splits have some. Queries without a column
                ``split`` are all trained on, so that none is of val or test.
        """
        if split in SPLITS[1:] and "split" not in self.queries.column_names:
            raise CatalogueError(
                f"the queries have no column 'split': all of them are trained on, and none is a {split} query",
                self.source,
                "Write the column into the queries (train, val or test), let `mmfusion import` make it, or give "
                "--split train to measure the queries that are trained on.",
            )
        qrels = self.split_qrels(split)
        if (qrels.grade > 0).any():
            return np.unique(qrels.query)
        found = {one: self.split_qrels(one) for one in SPLITS if one != split}
        counts = {one: len(np.unique(own.query[own.grade > 0])) for one, own in found.items()}
        there = [one for one, count in counts.items() if count]
        others = ", ".join(f"{one}: {counts[one]}" for one in there) or "no other split has any"
        problem = f"the split {split!r} has no queries with judgements ({others})"
        elsewhere = self.qrels.restrict(self.query_rows(split))
        if len(qrels):
            problem = f"all {len(qrels)} judgements of the split {split!r} have grade 0, so none is relevant ({others})"
        elif len(elsewhere):
            problem += f": the {len(elsewhere)} judgements of its queries are of products of other splits"
        remedy = f"give --split {' or '.join(there)}, or write {split} queries" if there else "check the column 'split'"
        raise CatalogueError(f"{problem}; {remedy}", self.source)

    def contents_digest(self) -> str:
        """SHA-256 (hex) of ids, splits and judgements, in their order; texts and photos are not read.

        It shows whether something was made with the same catalogue.
        """
        digest = hashlib.sha256()
        for table, ids in ((self.products, self.product_ids), (self.queries, self.query_ids)):
            for values in (ids, table["split"] if "split" in table.column_names else []):
                # A part at a time, as each value is an object while it is written.
                for start in range(0, len(values), 65_536):
                    digest.update(
                        (b"\0" if start else b"") + "\0".join(map(str, values[start : start + 65_536])).encode()
                    )
        for column in (self.qrels.query, self.qrels.product, self.qrels.grade):
            digest.update(column.tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.source!r}: {len(self.products):,} products, {len(self.queries):,} queries, "
            f"{len(self.qrels):,} judgements)"
        )

    def __getstate__(self) -> dict[str, Any]:
        # Ids are read again from the mapped table where they are needed, rather than copied into every worker.
        return {key: value for key, value in self.__dict__.items() if key not in ("product_ids", "query_ids")}


class Catalogue(BaseCatalogue):
    """Products, queries and graded judgements, of which any row can be looked up.

    Loaded tables are memory-mapped Arrow files below ``cache_dir``: loading converts the Parquet files once, batch by
    batch, and neither loading nor use holds a table in memory. ``products`` has ``product_id``, ``title`` and any of
    ``description``, ``image`` (undecoded), ``split`` and further columns (metadata), as stored.

    A title or description that is null or blank means that the product lacks it, and is read as ``""``; any other
    text is returned exactly as stored, of any length.
    """

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        unknown: Literal["error", "drop"] = "error",
        photos: bool = True,
    ) -> Catalogue:
        """Loads and checks a catalogue.

        Args:
            source: A folder or an fsspec URL of one, holding ``products.parquet``, ``products-*.parquet`` or
                ``products/*.parquet`` and likewise ``queries`` and ``qrels``; or a Hub data set id (``org/name``)
                with the configurations ``products``, ``queries`` and ``qrels``.
            cache_dir: Folder for the memory-mapped tables (about the size of the uncompressed catalogue) and
                downloads; nothing is written elsewhere. A table is converted again when its files change. None: a
                temporary folder, which is removed when this process ends.
            revision: Branch, tag or commit of a Hub data set.
            unknown: What to do with judgements of queries or products that are not in the tables: raise an error, or
                drop the judgements and log their number.
            photos: As for `load_products`.

        Raises:
            CatalogueError: A table or column is missing, empty, unreadable or of the wrong type, an id is null or
                used twice, a query is blank, a split is unknown, a grade is null or negative, a pair is judged twice,
                a photo's path leaves the folder, or (by default) a judgement names something unknown.
        """
        check_unknown(unknown)
        leave_out = () if photos else ("image",)
        tables, name, photo_root = _load_tables(source, cache_dir, revision, TABLES, leave_out)
        return cls._checked(tables, name, photo_root, unknown)

    @classmethod
    def load_products(
        cls,
        source: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        photos: bool = True,
    ) -> Catalogue:
        """Loads products alone: a catalogue without queries and judgements, from which an index is made.

        Further arguments and errors are those of `load`; the other tables need not be there.

        Args:
            photos: False leaves the column ``image`` out, which is most of a catalogue's bytes.
        """
        leave_out = () if photos else ("image",)
        tables, name, photo_root = _load_tables(source, cache_dir, revision, ("products",), leave_out)
        return cls._checked(tables, name, photo_root)

    @classmethod
    def from_records(
        cls,
        products: Any,
        queries: Any = None,
        qrels: Any = None,
        *,
        photo_root: str | os.PathLike[str] | None = None,
        unknown: Literal["error", "drop"] = "error",
    ) -> Catalogue:
        """Makes a catalogue in memory, with the same columns and checks as `load`.

        Each table is a pandas or polars frame, an Arrow table, a data set of `datasets`, or an iterable of dicts.

        Args:
            products: With ``product_id`` and ``title``. ``image`` is a path, the bytes of a file, a PIL image, a
                mapping with ``bytes`` or ``path``, a list of these, or None. A PIL image is kept as `upright_rgb` of
                it.
            queries: With ``query_id`` and ``query``; None: there are none.
            qrels: With ``query_id``, ``product_id`` and ``grade``; None: there are none.
            photo_root: Folder that relative paths are in and that no path may leave; None: relative paths are in the
                working directory, and any path may be given.
            unknown: As for `load`.

        Raises:
            CatalogueError: As for `load`.
        """
        check_unknown(unknown)
        given = {"products": products, "queries": queries, "qrels": qrels}
        root = os.path.abspath(os.sep if photo_root is None else photo_root)
        tables = {
            name: records_table(records, name, os.getcwd() if photo_root is None else root)
            for name, records in given.items()
            if records is not None
        }
        return cls._checked(tables, "memory", root, unknown)

    def product(self, row: int) -> dict[str, Any]:
        """One product.

        Args:
            row: 0 to number of products - 1.

        Returns:
            ``product_id``, ``title`` and ``description`` (`str`, ``""`` where lacking), ``image`` (None, a mapping
            with ``bytes`` and an absolute ``path``, or a list of such mappings) and all further columns.

        Raises:
            IndexError: There is no such row; -1 means padding.
        """
        _check_rows([row], len(self.products))
        return _tidy(self.products[int(row)], self.photo_root)

    def titles(self, rows: Iterable[int]) -> list[str]:
        """Titles of products, ``""`` where lacking, in the order of ``rows``; reads no other column."""
        return _texts(self.products, "title", rows)


def check_unknown(unknown: str) -> None:
    """Raises an error for a value of ``unknown`` that `Catalogue.load` does not know."""
    if unknown not in ("error", "drop"):
        raise CatalogueError(f"unknown={unknown!r}", remedy="Use 'error' or 'drop'.")


def _load_tables(
    source: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str] | None,
    revision: str | None,
    wanted: Sequence[str],
    leave_out: Sequence[str] = (),
) -> tuple[dict[str, datasets.Dataset], str, str | None]:
    """Tables by name, the source, and the folder in which photos are found that are stored as a path."""
    name, cache = os.fspath(source), os.path.abspath(_temporary_folder().name if cache_dir is None else cache_dir)
    folder = find_folder(name, revision)
    if folder is None:
        return {table: load_from_hub(name, table, cache, revision, leave_out) for table in wanted}, name, cache
    return {table: ParquetTable(folder, table).mapped(cache, leave_out) for table in wanted}, name, folder.photo_root


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mmfusion-")


def _strings(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column of strings as ``StringDType``, ``[num rows]``."""
    # Chunk by chunk: one `str` object per id at the same time would take several times the memory of the result.
    strings = np.empty(len(column), dtype=np.dtypes.StringDType())
    start = 0
    for chunk in column.chunks:
        strings[start : start + len(chunk)] = chunk.to_pylist()
        start += len(chunk)
    return strings


def _rows_of_split(table: datasets.Dataset, split: str | None) -> npt.NDArray[np.int64]:
    if split is not None and split not in SPLITS:
        raise CatalogueError(f"split {split!r} does not exist", remedy=f"Use one of {', '.join(SPLITS)}, or None.")
    if split is None or "split" not in table.column_names:
        return np.arange(len(table), dtype=np.int64)
    return pc.indices_nonzero(pc.equal(table.data.column("split"), split)).to_numpy().astype(np.int64)


def _check_rows(rows: Sequence[int], count: int) -> None:
    if rows and not (min(rows) >= 0 and max(rows) < count):
        wrong = next(row for row in rows if not 0 <= row < count)
        raise IndexError(f"Catalogue: row {wrong} does not exist. Rows are 0 to {count - 1}.")


def _texts(table: datasets.Dataset, column: str, rows: Iterable[int]) -> list[str]:
    wanted = [int(row) for row in rows]
    _check_rows(wanted, len(table))
    if column not in table.column_names or not wanted:
        return [""] * len(wanted)
    return [_text(value) for value in table.select_columns([column])[wanted][column]]


def _text(value: str | None) -> str:
    return value if value and value.strip() else ""


def _tidy(record: dict[str, Any], photo_root: str | None) -> dict[str, Any]:
    """A product as callers see it: lacking text is "", and a photo's path is absolute."""
    image = record.get("image")
    photos = [_located(photo, photo_root) for photo in (image if isinstance(image, list) else [image])]
    there = [photo for photo in photos if photo is not None]
    text = {name: _text(record.get(name)) for name in ("title", "description")}
    return {**record, **text, "image": there if isinstance(image, list) else photos[0]}


def _located(photo: dict[str, Any] | None, photo_root: str | None) -> dict[str, Any] | None:
    if is_missing(photo) or photo is None or (photo.get("bytes") is None and not photo.get("path")):
        return None
    if photo.get("bytes") is None and photo_root is not None:
        return {**photo, "bytes": None, "path": os.path.join(photo_root, photo["path"])}
    return photo
