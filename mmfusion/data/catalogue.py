"""A catalogue: products, queries and graded judgements, read from Parquet tables and memory-mapped."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import datasets
import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmfusion.data.qrels import DuplicateJudgementError, Qrels

logger = logging.getLogger("mmfusion")

SPLITS = ("train", "val", "test")
TABLES = ("products", "queries", "qrels")

_COLUMNS: dict[str, dict[str, str]] = {
    "products": {"product_id": "id", "title": "text", "description": "text", "image": "photo", "split": "text"},
    "queries": {"query_id": "id", "query": "text", "split": "text", "kind": "text"},
    "qrels": {"query_id": "id", "product_id": "id", "grade": "grade"},
}
_REQUIRED: dict[str, tuple[str, ...]] = {
    "products": ("product_id", "title"),
    "queries": ("query_id", "query"),
    "qrels": ("query_id", "product_id", "grade"),
}
_EXPECTED = {
    "id": "strings or integers",
    "text": "strings",
    "photo": "a struct with `bytes` and `path`, or a list of such structs",
    "grade": "integers of at least 0",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_BATCH_BYTES = 16 << 20
"""About how much of a table is held in memory at a time while it is converted, in bytes."""
_MAX_BATCH_ROWS = 65_536


class CatalogueError(ValueError):
    """A catalogue cannot be used as it is; the message names the value, the place and the remedy."""

    def __init__(self, problem: str, place: str = "", remedy: str = "") -> None:
        # One finished string stays the only argument, so that the error survives a trip between processes.
        super().__init__(". ".join(part for part in (f"{place}: {problem}" if place else problem, remedy) if part))


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
        folder = _find_folder(name)
        if folder is None:
            tables = {table: _load_from_hub(name, table, cache, revision) for table in TABLES}
        else:
            _refuse_revision(name, revision)
            tables = {table: _load_from_folder(folder, table, cache) for table in TABLES}
        photo_root = cache if folder is None else folder.photo_root
        _check_products(tables["products"], name, photo_root)
        _check_queries(tables["queries"], name)
        qrels = _build_qrels(tables, name, unknown)
        return cls(tables["products"], tables["queries"], qrels, source=name, photo_root=photo_root)

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
            _check_split_name(split, "Catalogue.stream")
        name = os.fspath(source)
        folder = _find_folder(name)
        if folder is None:
            records = _stream_from_hub(name, columns, split, revision)
        else:
            _refuse_revision(name, revision)
            records = _stream_from_folder(folder, columns, split)
        return _batched(records, batch_size)

    @functools.cached_property
    def product_ids(self) -> npt.NDArray[Any]:
        """Product ids by row, ``StringDType`` ``[num products]``; an element is a `str`."""
        return _to_strings(self.products.data.column("product_id"))

    @functools.cached_property
    def query_ids(self) -> npt.NDArray[Any]:
        """Query ids by row, ``StringDType`` ``[num queries]``; an element is a `str`."""
        return _to_strings(self.queries.data.column("query_id"))

    @property
    def metadata_columns(self) -> list[str]:
        """Product columns beyond those of the format, in the order of the table."""
        return [column for column in self.products.column_names if column not in _COLUMNS["products"]]

    def product_rows(self, split: str | None) -> npt.NDArray[np.int64]:
        """Rows of the products of a split.

        Args:
            split: ``train``, ``val`` or ``test``; None gives all rows, as does a table without the column ``split``.

        Returns:
            Ascending rows, int64 ``[n]``. A product whose split is null belongs to none.

        Raises:
            CatalogueError: The name is not one of the three.
        """
        return _rows_of_split(self.products, split, "product_rows")

    def query_rows(self, split: str | None) -> npt.NDArray[np.int64]:
        """Rows of the queries of a split; see `product_rows`."""
        return _rows_of_split(self.queries, split, "query_rows")

    def split_qrels(self, split: str | None) -> Qrels:
        """Judgements between the queries of a split and the products of the same split; None gives all."""
        if split is None:
            return self.qrels
        return self.qrels.restrict(self.query_rows(split), self.product_rows(split))

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
        _check_rows([row], len(self.products), "product")
        return _tidy_product(self.products[int(row)], self.photo_root)

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
        _check_rows(wanted, len(table), column)
        if column not in table.column_names or not wanted:
            return [""] * len(wanted)
        return [_text(value) for value in table.select_columns([column])[wanted][column]]

    def __repr__(self) -> str:
        return (
            f"Catalogue({self.source!r}: {len(self.products):,} products, {len(self.queries):,} queries, "
            f"{len(self.qrels):,} judgements)"
        )

    def __getstate__(self) -> dict[str, Any]:
        # Ids are read again from the mapped table where they are needed, rather than copied into every worker.
        return {key: value for key, value in self.__dict__.items() if key not in ("product_ids", "query_ids")}


# --- Finding the files -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folder:
    """A folder of Parquet files on any file system that fsspec knows."""

    name: str
    fs: Any
    root: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, fsspec.get_filesystem_class("file"))

    @property
    def photo_root(self) -> str | None:
        return self.root if self.is_local else None

    def files(self, table: str) -> list[str]:
        """Paths of a table's files, sorted by name."""
        with _reading(f"catalogue {self.name!r}", "Check the address and your access to it."):
            names = self._list(self.root)
            nested = self._list(f"{self.root}/{table}") if names.get(table) == "directory" else {}
        layouts = {
            f"{table}.parquet": [f"{table}.parquet"] if f"{table}.parquet" in names else [],
            f"{table}-*.parquet": [name for name in names if re.fullmatch(rf"{table}-.*\.parquet", name)],
            f"{table}/*.parquet": [f"{table}/{name}" for name in nested if name.endswith(".parquet")],
        }
        found = [layout for layout, paths in layouts.items() if paths]
        if not found:
            here = ", ".join(sorted(names)[:8]) or "nothing"
            raise CatalogueError(
                f"table {table!r} is missing (the folder holds: {here})",
                f"catalogue {self.name!r}",
                f"Add {' or '.join(layouts)}.",
            )
        if len(found) > 1:
            raise CatalogueError(
                f"table {table!r} is there more than once: {' and '.join(found)}",
                f"catalogue {self.name!r}",
                "Keep one of them.",
            )
        return [f"{self.root}/{path}" for path in sorted(layouts[found[0]])]

    def _list(self, path: str) -> dict[str, str]:
        """Kind of each entry (``file`` or ``directory``) by its name; links count as what they lead to."""
        kinds = {}
        for entry in self.fs.ls(path, detail=True):
            linked = entry.get("islink") and self.fs.isdir(entry["name"])
            kinds[entry["name"].rstrip("/").rsplit("/", 1)[-1]] = "directory" if linked else entry["type"]
        return kinds


def _find_folder(name: str) -> _Folder | None:
    """The folder that a source means, or None where it is a Hub data set id."""
    remedy = "Give a folder, a URL of a folder, or a Hub data set id such as 'organisation/name'."
    if "://" in name:
        with _reading(f"catalogue {name!r}", remedy):
            fs, root = fsspec.url_to_fs(name)
            is_folder = fs.isdir(root)
        if not is_folder:
            raise CatalogueError("there is no such folder", f"catalogue {name!r}", remedy)
        return _Folder(name, fs, root.rstrip("/"))
    path = os.path.abspath(os.path.expanduser(name))
    if os.path.isdir(path):
        return _Folder(name, fsspec.filesystem("file"), path)
    if os.path.exists(path):
        raise CatalogueError("this is a file, not a folder", f"catalogue {name!r}", "Give the folder that holds it.")
    if _HUB_ID.fullmatch(name):
        return None
    raise CatalogueError("there is no such folder", f"catalogue {name!r}", remedy)


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise CatalogueError(
            f"revision={revision!r} for a folder", f"catalogue {name!r}", "Only a Hub data set has revisions: drop it."
        )


@contextmanager
def _reading(place: str, remedy: str) -> Iterator[None]:
    """Turns what a library raises while it reads into one error of ours."""
    try:
        yield
    except CatalogueError:
        raise
    except Exception as error:
        # The kinds differ by file system and version: OSError, ArrowInvalid, DatasetGenerationError, ImportError ...
        cause: BaseException = error
        while type(error).__module__.startswith("datasets") and cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or "no details").splitlines()[0][:300]
        raise CatalogueError(f"cannot be read ({type(cause).__name__}: {reason})", place, remedy) from error


# --- Schemas -----------------------------------------------------------------------------------------------------


def _read_schemas(folder: _Folder, table: str, files: Sequence[str]) -> tuple[pa.Schema, str]:
    """The schema that all files of a table are read with, and a fingerprint of their footers."""
    schemas, rows, fingerprint = [], 0, hashlib.sha256()
    for path in files:
        place = f"catalogue {folder.name!r}, file {os.path.relpath(path, folder.root)!r}"
        remedy = "Check that it is a complete Parquet file, and write it again if it is not."
        with _reading(place, remedy), folder.fs.open(path, "rb") as handle:
            file = pq.ParquetFile(handle)
            schema, count = file.schema_arrow, file.metadata.num_rows
            fingerprint.update(_fingerprint(folder, path, handle))
        schemas.append(_target_schema(schema, table, place))
        rows += count
    if rows == 0:
        raise CatalogueError(
            f"table {table!r} has no rows", f"catalogue {folder.name!r}", "Write at least one row to it."
        )
    schema = _unify(schemas, folder, table, files)
    fingerprint.update(str(schema).encode())
    return schema, fingerprint.hexdigest()[:16]


def _fingerprint(folder: _Folder, path: str, handle: Any) -> bytes:
    """What changes when the file does: its footer (sizes and statistics of all columns), and its time or tag."""
    size = handle.seek(-8, 2) + 8
    footer = int.from_bytes(handle.read(4), "little")
    handle.seek(size - 8 - footer)
    info = folder.fs.info(path)
    state = [str(info[key]) for key in ("mtime", "ETag", "etag", "LastModified", "created") if key in info]
    return hashlib.sha256(handle.read(footer) + repr((size, state)).encode()).digest()


def _target_schema(schema: pa.Schema, table: str, place: str) -> pa.Schema:
    """Checks one file's columns and returns the types that they are read as."""
    names = schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CatalogueError(f"column {twice[0]!r} is there twice", place, "Rename or remove one of them.")
    for name in _REQUIRED[table]:
        if name not in names:
            raise CatalogueError(
                f"column {name!r} of table {table!r} is missing (columns: {', '.join(names)})",
                place,
                f"Add it, or rename the column that holds it; {table} need {', '.join(_REQUIRED[table])}.",
            )
    return pa.schema([(field.name, _target_type(field, table, place)) for field in schema])


def _target_type(field: pa.Field, table: str, place: str) -> pa.DataType:
    stored = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    role = _COLUMNS[table].get(field.name, "metadata")
    target = {"id": _id_type, "text": _text_type, "photo": _photo_type, "grade": _grade_type}.get(role, lambda t: t)(
        stored
    )
    if target is None:
        raise CatalogueError(
            f"column {field.name!r} of table {table!r} has type {field.type}, not {_EXPECTED[role]}",
            place,
            f"Convert it to {_EXPECTED[role]}.",
        )
    return target


def _id_type(stored: pa.DataType) -> pa.DataType | None:
    if pa.types.is_integer(stored):
        return pa.string()
    return _text_type(stored) if not pa.types.is_null(stored) else None


def _text_type(stored: pa.DataType) -> pa.DataType | None:
    if pa.types.is_string(stored) or pa.types.is_large_string(stored):
        return stored
    return pa.string() if pa.types.is_null(stored) or pa.types.is_string_view(stored) else None


def _grade_type(stored: pa.DataType) -> pa.DataType | None:
    return pa.int64() if pa.types.is_integer(stored) or pa.types.is_null(stored) else None


def _photo_type(stored: pa.DataType) -> pa.DataType | None:
    inner = stored.value_type if _is_list(stored) else stored
    if pa.types.is_null(inner):
        return stored
    if not pa.types.is_struct(inner):
        return None
    fields = {inner.field(i).name: inner.field(i).type for i in range(inner.num_fields)}
    wanted = {
        "bytes": (pa.types.is_binary, pa.types.is_large_binary),
        "path": (pa.types.is_string, pa.types.is_large_string),
    }
    for name, allowed in wanted.items():
        if name in fields and not any(is_type(fields[name]) for is_type in (*allowed, pa.types.is_null)):
            return None
    return stored if fields.keys() & wanted.keys() else None


def _is_list(stored: pa.DataType) -> bool:
    return bool(pa.types.is_list(stored) or pa.types.is_large_list(stored) or pa.types.is_fixed_size_list(stored))


def _unify(schemas: Sequence[pa.Schema], folder: _Folder, table: str, files: Sequence[str]) -> pa.Schema:
    first = schemas[0]
    for path, schema in zip(files, schemas, strict=True):
        different = sorted(set(first.names) ^ set(schema.names))
        if different:
            raise CatalogueError(
                f"column {different[0]!r} is not in all files of table {table!r}",
                f"catalogue {folder.name!r}, file {os.path.relpath(path, folder.root)!r}",
                f"Write all files with the columns of {os.path.basename(files[0])!r}: {', '.join(first.names)}.",
            )
    with _reading(f"catalogue {folder.name!r}, files of table {table!r}", "Write all of them with the same types."):
        return pa.unify_schemas(list(schemas), promote_options="permissive")


# --- Loading -----------------------------------------------------------------------------------------------------


def _load_from_folder(folder: _Folder, table: str, cache_dir: str) -> datasets.Dataset:
    files = folder.files(table)
    schema, fingerprint = _read_schemas(folder, table, files)
    place = f"catalogue {folder.name!r}, table {table!r}"
    mapped = os.path.join(cache_dir, f"{table}-{fingerprint}.arrow")
    if not os.path.exists(mapped):
        with _reading(f"cache folder {cache_dir!r}", "Give a folder that can be written to."):
            os.makedirs(cache_dir, exist_ok=True)
        with _reading(place, "Write the table again, and check the space in the cache folder."):
            _convert(folder, files, schema, mapped)
    with _reading(place, f"Convert columns of a rare type; if {mapped!r} is damaged, remove it."):
        return datasets.Dataset.from_file(mapped)


def _convert(folder: _Folder, files: Sequence[str], schema: pa.Schema, mapped: str) -> None:
    """Writes the files as one Arrow stream that can be memory-mapped.

    `datasets.load_dataset` would do the same but holds a whole row group in memory, which may be the whole table.
    """
    # Under another name until it is complete: a process that is killed, or runs beside this one, leaves no half table.
    unfinished = f"{mapped}.{os.getpid()}.part"
    try:
        with pa.OSFile(unfinished, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for path in files:
                for batch in _read_batches(folder, path, schema):
                    writer.write_table(batch.table)
        os.replace(unfinished, mapped)
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)


def _load_from_hub(name: str, table: str, cache_dir: str, revision: str | None) -> datasets.Dataset:
    place = f"Hub data set {name!r}, configuration {table!r}"
    remedy = f"Check the id (there is no folder {name!r} either), the configuration's name, the network and your login."
    with _reading(place, remedy), _without_progress_bars():
        splits = datasets.load_dataset(name, table, cache_dir=cache_dir, revision=revision, keep_in_memory=False)
        parts = list(splits.values())
    if len(parts) > 1 and table != "qrels" and "split" not in parts[0].column_names:
        raise CatalogueError(
            f"{len(parts)} splits ({', '.join(splits)}) but no column 'split'",
            place,
            "Add the column, or use one split.",
        )
    with _reading(place, "Write all splits with the same columns."):
        loaded = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    if len(loaded) == 0:
        raise CatalogueError("the table has no rows", place, "Push at least one row.")
    schema = loaded.features.arrow_schema.remove_metadata()
    target = _target_schema(schema, table, place)
    with _reading(place, "Convert the column on the Hub."):
        plain = _undecoded(loaded, schema)
        for column in target.names:
            if plain.features.arrow_schema.field(column).type != target.field(column).type:
                plain = plain.cast_column(column, datasets.Features.from_arrow_schema(target)[column])
    return plain


def _undecoded(table: datasets.Dataset, schema: pa.Schema) -> datasets.Dataset:
    """The same mapped table, its photos left as the structs that they are stored as."""
    info = datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(schema))
    # Renewing the metadata alone: `Dataset.cast` would write the photos to disk a second time.
    return datasets.Dataset(table.data.cast(info.features.arrow_schema), info=info, fingerprint=table._fingerprint)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


# --- Checks: vectorised over Arrow columns, as a Python loop over ten million rows takes minutes -------------------


def _check_products(products: datasets.Dataset, source: str, photo_root: str | None) -> None:
    place = f"catalogue {source!r}, table 'products'"
    _check_text(products, place)
    _check_ids(products, "product_id", place)
    _check_splits(products, place, null_allowed=True)
    if "image" in products.column_names:
        _check_photo_paths(products.data.column("image"), photo_root, place)


def _check_queries(queries: datasets.Dataset, source: str) -> None:
    place = f"catalogue {source!r}, table 'queries'"
    _check_text(queries, place)
    _check_ids(queries, "query_id", place)
    _check_splits(queries, place, null_allowed=False)
    text = queries.data.column("query")
    row = _first_true(pc.or_kleene(pc.is_null(text), pc.equal(pc.utf8_trim_whitespace(text), "")))
    if row is not None:
        raise CatalogueError(
            f"query {_cell(queries, 'query_id', row)!r} has the blank text {_cell(queries, 'query', row)!r}",
            f"{place}, column 'query', row {row}",
            "Write its text, or remove the query and its judgements.",
        )


def _check_text(table: datasets.Dataset, place: str) -> None:
    """Refuses bytes that are not UTF-8, which Arrow would otherwise report only when the row is read."""
    for name in table.column_names:
        column = table.data.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        start = 0
        for chunk in column.chunks:
            with _reading(f"{place}, column {name!r}, rows {start} to {start + len(chunk) - 1}", "Write it as UTF-8."):
                chunk.validate(full=True)
            start += len(chunk)


def _check_ids(table: datasets.Dataset, name: str, place: str) -> None:
    column = table.data.column(name)
    row = _first_true(pc.or_kleene(pc.is_null(column), pc.equal(column, "")))
    if row is not None:
        raise CatalogueError(
            f"the id is {_cell(table, name, row)!r}", f"{place}, column {name!r}, row {row}", "Give every row an id."
        )
    if pc.count_distinct(column).as_py() == len(column):
        return
    counts = pc.value_counts(column)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    value, count = repeated[0]["values"].as_py(), repeated[0]["counts"].as_py()
    rows = pc.indices_nonzero(pc.equal(column, value))[:3].to_pylist()
    more = ", ..." if count > len(rows) else ""
    others = f" ({len(repeated):,} ids are used more than once)" if len(repeated) > 1 else ""
    raise CatalogueError(
        f"the id {value!r} is used by {count} rows{others}",
        f"{place}, column {name!r}, rows {', '.join(map(str, rows))}{more}",
        "Ids must be unique: remove the duplicates or rename them.",
    )


def _check_splits(table: datasets.Dataset, place: str, *, null_allowed: bool) -> None:
    if "split" not in table.column_names:
        return
    column = table.data.column("split")
    known = pc.is_in(column, value_set=pa.array(SPLITS, column.type))
    if null_allowed:
        known = pc.or_(known, pc.is_null(column))
    row = _first_true(pc.invert(known))
    if row is not None:
        raise CatalogueError(
            f"the split is {_cell(table, 'split', row)!r}",
            f"{place}, column 'split', row {row}",
            f"Use one of {', '.join(SPLITS)}, or remove the column.",
        )


def _check_split_name(split: str, place: str) -> None:
    if split not in SPLITS:
        raise CatalogueError(f"split {split!r} does not exist", place, f"Use one of {', '.join(SPLITS)}, or None.")


def _check_photo_paths(column: pa.ChunkedArray, photo_root: str | None, place: str, offset: int = 0) -> None:
    """Refuses photos stored as a path that leads out of the catalogue's folder."""
    start = offset
    for chunk in column.chunks:
        found = _photo_paths(chunk)
        if found is not None:
            rows, paths = found
            at = _first_true(_leaves(paths, photo_root))
            if at is not None:
                where = "it is not in a local folder" if photo_root is None else f"that is outside {photo_root!r}"
                raise CatalogueError(
                    f"the photo is stored as the path {paths[at].as_py()!r}, and {where}",
                    f"{place}, column 'image', row {start + rows[at].as_py()}",
                    "Store the photo's bytes, or a path relative to the catalogue's folder.",
                )
        start += len(chunk)


def _photo_paths(chunk: pa.Array) -> tuple[pa.Array, pa.Array] | None:
    """(row in the chunk, path) of the photos that have a path and no bytes; never touches the bytes."""
    rows = pa.array(np.arange(len(chunk)))
    if _is_list(chunk.type):
        rows, chunk = pc.list_parent_indices(chunk), pc.list_flatten(chunk)
    if not pa.types.is_struct(chunk.type) or chunk.type.get_field_index("path") < 0:
        return None
    paths = pc.struct_field(chunk, "path")
    by_path = pc.is_valid(paths)
    if chunk.type.get_field_index("bytes") >= 0:
        by_path = pc.and_(by_path, pc.is_null(pc.struct_field(chunk, "bytes")))
    if pa.types.is_null(paths.type) or not pc.any(by_path).as_py():
        return None
    return rows.filter(by_path), paths.filter(by_path)


def _leaves(paths: pa.Array, photo_root: str | None) -> pa.Array:
    if photo_root is None:
        return pc.is_valid(paths)
    upwards = pc.match_substring_regex(paths, r"(^|[/\\])\.\.([/\\]|$)")
    absolute = pc.match_substring_regex(paths, r"^([/\\]|[A-Za-z]:|[A-Za-z0-9+]+://)")
    inside = pc.starts_with(paths, photo_root.rstrip(os.sep) + os.sep)
    return pc.or_(upwards, pc.and_not(absolute, inside))


def _build_qrels(tables: Mapping[str, datasets.Dataset], source: str, unknown: str) -> Qrels:
    table = tables["qrels"]
    place = f"catalogue {source!r}, table 'qrels'"
    _check_text(table, place)
    _check_grades(table, place)
    rows: dict[str, npt.NDArray[np.int64]] = {}
    kept = np.ones(len(table), dtype=bool)
    for column, owner in (("query_id", "queries"), ("product_id", "products")):
        rows[column] = _find_rows(table, column, tables[owner])
        missing = rows[column] < 0
        if missing.any():
            _report_unknown(table, column, owner, missing, place, unknown)
            kept &= ~missing
    if not kept.any():
        raise CatalogueError("no judgement is left", place, "Check that the ids are written as in the other tables.")
    grade = table.data.column("grade").to_numpy()
    try:
        return Qrels(rows["query_id"][kept], rows["product_id"][kept], grade[kept])
    except DuplicateJudgementError as error:
        query = _cell(tables["queries"], "query_id", error.query)
        product = _cell(tables["products"], "product_id", error.product)
        twice = np.flatnonzero((rows["query_id"] == error.query) & (rows["product_id"] == error.product))
        raise CatalogueError(
            f"query {query!r} and product {product!r} are judged {len(twice)} times, with grades "
            f"{', '.join(str(grade[at]) for at in twice[:3])}",
            f"{place}, rows {', '.join(map(str, twice[:3]))}",
            "Keep one judgement per pair.",
        ) from error


def _check_grades(qrels: datasets.Dataset, place: str) -> None:
    column = qrels.data.column("grade")
    row = _first_true(pc.or_kleene(pc.is_null(column), pc.less(column, 0)))
    if row is not None:
        query, product = _cell(qrels, "query_id", row), _cell(qrels, "product_id", row)
        raise CatalogueError(
            f"the grade of query {query!r} and product {product!r} is {_cell(qrels, 'grade', row)}",
            f"{place}, column 'grade', row {row}",
            "Grades are integers of at least 0: write one, or remove the judgement.",
        )


def _find_rows(qrels: datasets.Dataset, column: str, owner: datasets.Dataset) -> npt.NDArray[np.int64]:
    """Rows in ``owner`` of the ids named by the qrels, int64; -1 where there is none."""
    ids = owner.data.column(column)
    named = qrels.data.column(column).cast(ids.type)
    return pc.fill_null(pc.index_in(named, value_set=ids), -1).to_numpy().astype(np.int64)


def _report_unknown(
    qrels: datasets.Dataset, column: str, owner: str, missing: npt.NDArray[np.bool_], place: str, unknown: str
) -> None:
    rows = np.flatnonzero(missing)
    distinct = pc.unique(qrels.data.column(column).filter(pa.array(missing)))
    first = ", ".join(repr(value) for value in distinct[:3].to_pylist())
    problem = (
        f"{len(rows):,} of {len(qrels):,} judgements name {len(distinct):,} ids that table {owner!r} does not hold: "
        f"{first}{', ...' if len(distinct) > 3 else ''}"
    )
    where = f"{place}, column {column!r}, first in row {rows[0]}"
    if unknown == "error":
        raise CatalogueError(
            problem, where, f"Add them to {owner!r}, remove the judgements, or load with unknown='drop'."
        )
    logger.warning("%s: %s. These judgements are dropped.", where, problem)


# --- Reading rows ------------------------------------------------------------------------------------------------


def _first_true(mask: pa.ChunkedArray | pa.Array) -> int | None:
    at = pc.index(mask, True).as_py()
    return None if at < 0 else int(at)


def _cell(table: datasets.Dataset, column: str, row: int) -> Any:
    return table.data.column(column)[row].as_py()


def _to_strings(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    # Chunk by chunk: one `str` object per id at the same time would take several times the memory of the result.
    strings = np.empty(len(column), dtype=np.dtypes.StringDType())
    start = 0
    for chunk in column.chunks:
        strings[start : start + len(chunk)] = chunk.to_pylist()
        start += len(chunk)
    return strings


def _rows_of_split(table: datasets.Dataset, split: str | None, place: str) -> npt.NDArray[np.int64]:
    if split is not None:
        _check_split_name(split, f"Catalogue.{place}")
    if split is None or "split" not in table.column_names:
        return np.arange(len(table), dtype=np.int64)
    return pc.indices_nonzero(pc.equal(table.data.column("split"), split)).to_numpy().astype(np.int64)


def _check_rows(rows: Sequence[int], count: int, place: str) -> None:
    if rows and not (min(rows) >= 0 and max(rows) < count):
        wrong = next(row for row in rows if not 0 <= row < count)
        raise IndexError(f"Catalogue, {place}: row {wrong} does not exist. Rows are 0 to {count - 1}.")


def _text(value: str | None) -> str:
    return "" if value is None or not value.strip() else value


def _tidy_product(record: dict[str, Any], photo_root: str | None) -> dict[str, Any]:
    """A product as callers see it: lacking text is "", and a photo's path is absolute."""
    image = record.get("image")
    if isinstance(image, list):
        image = [photo for entry in image if (photo := _locate_photo(entry, photo_root)) is not None]
    else:
        image = _locate_photo(image, photo_root)
    text = {name: _text(record.get(name)) for name in ("title", "description")}
    return {**record, **text, "image": image}


def _locate_photo(photo: dict[str, Any] | None, photo_root: str | None) -> dict[str, Any] | None:
    if photo is None or (photo.get("bytes") is None and not photo.get("path")):
        return None
    if photo.get("bytes") is None and photo_root is not None:
        return {**photo, "bytes": None, "path": os.path.join(photo_root, photo["path"])}
    return photo


def _batched(records: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(records, size)):
        yield batch


def _columns_to_read(available: Sequence[str], columns: Sequence[str] | None, place: str) -> list[str]:
    if columns is None:
        return list(available)
    for name in columns:
        if name not in available:
            raise CatalogueError(f"column {name!r} does not exist", place, f"Choose from {', '.join(available)}.")
    return ["product_id", *(name for name in columns if name != "product_id")]


def _stream_from_folder(folder: _Folder, columns: Sequence[str] | None, split: str | None) -> Iterator[dict[str, Any]]:
    files = folder.files("products")
    schema, _ = _read_schemas(folder, "products", files)
    place = f"catalogue {folder.name!r}, table 'products'"
    wanted = _columns_to_read(schema.names, columns, place)
    use_split = split is not None and "split" in schema.names
    read = pa.schema([schema.field(name) for name in dict.fromkeys([*wanted, *(["split"] if use_split else [])])])

    def records() -> Iterator[dict[str, Any]]:
        for path in files:
            for batch in _read_batches(folder, path, read):
                _check_batch(batch, folder.photo_root, f"catalogue {folder.name!r}, file {os.path.basename(path)!r}")
                kept = batch.table.filter(pc.equal(batch.table["split"], split)) if use_split else batch.table
                with _reading(place, "Write its text as UTF-8."):
                    rows = kept.select(wanted).to_pylist()
                yield from (_streamed(record, columns, folder.photo_root) for record in rows)

    return records()


@dataclass(frozen=True)
class _Batch:
    """Some rows of one file, and the number of the first of them."""

    table: pa.Table
    start: int


def _read_batches(folder: _Folder, path: str, schema: pa.Schema) -> Iterator[_Batch]:
    """Reads the columns of ``schema``, as its types, a few megabytes at a time."""
    place = f"catalogue {folder.name!r}, file {os.path.relpath(path, folder.root)!r}"
    remedy = "Write the file again, and check the space in the cache folder."
    start = 0
    with _reading(place, remedy), folder.fs.open(path, "rb") as handle:
        file = pq.ParquetFile(handle, buffer_size=1 << 20, pre_buffer=False)
        for record_batch in file.iter_batches(_batch_rows(file.metadata), columns=schema.names):
            table = pa.Table.from_batches([record_batch]).select(schema.names).cast(schema)
            yield _Batch(table, start)
            start += len(table)


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """Rows that take about `_BATCH_BYTES` together."""
    size = sum(metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups))
    return int(min(max(_BATCH_BYTES * metadata.num_rows // max(size, 1), 1), _MAX_BATCH_ROWS))


def _check_batch(batch: _Batch, photo_root: str | None, place: str) -> None:
    ids = batch.table["product_id"]
    row = _first_true(pc.or_kleene(pc.is_null(ids), pc.equal(ids, "")))
    if row is not None:
        raise CatalogueError(
            f"the id is {ids[row].as_py()!r}",
            f"{place}, column 'product_id', row {batch.start + row}",
            "Give every row an id.",
        )
    if "image" in batch.table.column_names:
        _check_photo_paths(batch.table["image"], photo_root, place, batch.start)


def _streamed(record: dict[str, Any], columns: Sequence[str] | None, photo_root: str | None) -> dict[str, Any]:
    tidy = _tidy_product(record, photo_root)
    return tidy if columns is None else {name: tidy[name] for name in record}


def _stream_from_hub(
    name: str, columns: Sequence[str] | None, split: str | None, revision: str | None
) -> Iterator[dict[str, Any]]:
    place = f"Hub data set {name!r}, configuration 'products'"
    remedy = f"Check the id (there is no folder {name!r} either), the configuration's name, the network and your login."
    with _reading(place, remedy):
        parts = list(datasets.load_dataset(name, "products", revision=revision, streaming=True).values())
        parts = [part if part.features is not None else part._resolve_features() for part in parts]
        schema = parts[0].features.arrow_schema.remove_metadata()
    _target_schema(schema, "products", place)
    wanted = _columns_to_read(schema.names, columns, place)
    use_split = split is not None and "split" in schema.names

    def records() -> Iterator[dict[str, Any]]:
        for part in parts:
            with _reading(place, remedy):
                for record in part.decode(False):
                    if use_split and record["split"] != split:
                        continue
                    record = {name: record[name] for name in wanted}
                    if record["product_id"] in (None, ""):
                        raise CatalogueError(f"the id is {record['product_id']!r}", place, "Give every row an id.")
                    record["product_id"] = str(record["product_id"])
                    yield _streamed(record, columns, None)

    return records()
