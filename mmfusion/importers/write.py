"""The tables of an imported catalogue, written a part at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmfusion.data.catalogue_schema import GRADES_KEY, CatalogueError, first_line, reading
from mmfusion.files import whole_file
from mmfusion.importers.items import Judgement, Query

PHOTO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CONTENTS_KEY = b"contents"
# Row groups of what a worker reads at a time: small where they hold photos.
_GROUP_ROWS, _GROUP_BYTES = 16_384, 16 << 20


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what the disk raises into a `CatalogueError`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        remedy = "Free some space, or give another --output, and run the command again."
        raise CatalogueError(f"cannot be written ({first_line(error)})", str(folder), remedy) from error


class ProductsWriter:
    """Products in parts on the disk, whose columns and types may differ; `finish` makes one table of them.

    A column that is a number in one part and a text in another becomes text, as do values of several types within one
    part: nothing is guessed from the first rows.
    """

    def __init__(self, folder: Path) -> None:
        """Writes parts into a folder, which is to be removed by the caller."""
        self.parts: list[Path] = []
        self.rows = 0
        self._folder = folder

    def write(self, columns: dict[str, list[Any]], photos: Sequence[list[dict[str, Any]]]) -> None:
        """Adds products: values by column, all of one length, and the photos of each."""
        arrays = {name: _array(values) for name, values in columns.items()}
        arrays["image"] = pa.array([own or None for own in photos], pa.list_(PHOTO))
        table = pa.table(arrays)
        path = self._folder / f"part-{len(self.parts):06d}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        self.parts.append(path)
        self.rows += len(table)

    def tables(self) -> Iterator[pa.Table]:
        """The parts in order, with the same columns and types."""
        schema = self._schema()
        for path in self.parts:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
                missing = [field for field in schema if field.name not in table.column_names]
                for field in missing:
                    table = table.append_column(field, pa.nulls(len(table), field.type))
                yield pa.table([_as(table[field.name], field.type) for field in schema], schema=schema)

    def finish(
        self,
        path: Path,
        split: Mapping[str, str] | None,
        notes: Mapping[bytes, bytes],
        settle: Callable[[pa.Table], Iterator[pa.Table]],
        contents: Callable[[], bytes],
    ) -> None:
        """Writes the table of products.

        Args:
            path: The Parquet file.
            split: Split by product id, where products are split.
            notes: What the file's metadata keep.
            settle: Last changes of photos: `PhotoStore.settled`.
            contents: Digest of the products and of the files of their photos, once all were settled. It is kept in the
                file's metadata, so that a photo that was replaced under its name changes the table.
        """
        with whole_file(path) as file:
            writer: pq.ParquetWriter | None = None
            for table in itertools.chain.from_iterable(map(settle, self.tables())):
                if split is not None:
                    names = [split.get(name) for name in table["product_id"].to_pylist()]
                    table = table.append_column("split", pa.array(names, pa.string()))
                table = table.replace_schema_metadata(notes)
                if writer is None:
                    writer = pq.ParquetWriter(file, table.schema, compression="zstd")
                rows = max(1, min(_GROUP_ROWS, _GROUP_BYTES * len(table) // max(table.nbytes, 1)))
                writer.write_table(table, row_group_size=rows)
            if writer is not None:
                writer.add_key_value_metadata({CONTENTS_KEY: contents()})
                writer.close()

    def _schema(self) -> pa.Schema:
        types: dict[str, pa.DataType] = {}
        for path in self.parts:
            with pa.memory_map(str(path)) as file:
                schema = pa.ipc.open_file(file).schema
            for field in schema:
                known = types.get(field.name)
                if known is None or pa.types.is_null(known):
                    types[field.name] = field.type
                elif known != field.type and not pa.types.is_null(field.type):
                    types[field.name] = pa.string()
        types = {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in types.items()}
        return pa.schema(types.items())


def write_queries(path: Path, queries: Sequence[Query]) -> None:
    """Writes the table of queries; all have a split."""
    columns: dict[str, Any] = {
        "query_id": [query.query_id for query in queries],
        "query": [query.text for query in queries],
        "split": [query.split for query in queries],
    }
    if any(query.kind is not None for query in queries):
        columns["kind"] = [query.kind for query in queries]
    _write(path, pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}))


def write_qrels(path: Path, judgements: Sequence[Judgement], rule: str) -> None:
    """Writes the table of judgements, with the rule that made the grades in the file's metadata."""
    table = pa.table(
        {
            "query_id": pa.array([one.query_id for one in judgements], pa.string()),
            "product_id": pa.array([one.product_id for one in judgements], pa.string()),
            "grade": pa.array([one.grade for one in judgements], pa.int64()),
        }
    )
    _write(path, table.replace_schema_metadata({GRADES_KEY: rule.encode()}))


def read_queries(path: Path) -> list[Query]:
    """Queries of an earlier import; none where there is no such file.

    Raises:
        CatalogueError: The file is damaged.
    """
    if not path.is_file():
        return []
    with reading(str(path), "Remove the file to start afresh; queries then get new splits."):
        table = pq.read_table(path)
        kinds = table["kind"].to_pylist() if "kind" in table.column_names else [None] * len(table)
        columns = [table[name].to_pylist() for name in ("query_id", "query", "split")]
        return [Query(*row) for row in zip(*columns, kinds, strict=True)]


def read_split(path: Path) -> dict[str, str]:
    """Split by product id of an earlier import; none where products are not split.

    Raises:
        CatalogueError: The file is damaged.
    """
    if not path.is_file():
        return {}
    with reading(str(path), "Remove the file to start afresh; products then get new splits."):
        if "split" not in pq.read_schema(path).names:
            return {}
        table = pq.read_table(path, columns=["product_id", "split"])
        return dict(zip(table["product_id"].to_pylist(), table["split"].to_pylist(), strict=True))


def where_mask(table: pa.Table, where: Sequence[Any]) -> pa.ChunkedArray:
    """Which rows fulfil conditions such as `[["price", "<", 50]]`, or one of several lists of them.

    Raises:
        CatalogueError: A condition is none, or compares what cannot be compared.
    """
    place = f"--where {list(where)!r}"
    with reading(place, 'Write conditions as [["column", "=", "value"]], with =, !=, <, >, <=, >=, in or not in.'):
        expression = pq.filters_to_expression(
            [tuple(one) if _is_condition(one) else list(map(tuple, one)) for one in where]
        )
        row = "__row__"
        numbered = table.append_column(row, pa.array(range(len(table))))
        kept = numbered.filter(expression)[row]
        return pc.is_in(numbered[row], value_set=kept.combine_chunks())


def where_columns(where: Sequence[Any]) -> set[str]:
    """Columns that conditions name."""
    return {str(one[0]) for part in where for one in ([part] if _is_condition(part) else part)}


def _is_condition(one: Any) -> bool:
    if not isinstance(one, (list, tuple)) or not one:
        raise CatalogueError(f"{one!r} is not a condition", "--where", 'Write [["column", "=", "value"]].')
    return isinstance(one[0], str)


def _write(path: Path, table: pa.Table) -> None:
    with whole_file(path) as file:
        pq.write_table(table, file)


def _array(values: list[Any]) -> pa.Array:
    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    # JSON may hold NaN. Arrow would ask pandas, which takes a while to import.
    return pc.if_else(pc.is_nan(array), None, array) if pa.types.is_floating(array.type) else array


def _as(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    try:
        return column.cast(kind)
    except pa.ArrowException:
        return pa.chunked_array([pa.array([None if v is None else str(v) for v in column.to_pylist()], kind)])
