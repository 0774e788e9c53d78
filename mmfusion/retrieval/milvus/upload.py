"""Uploading products part by part, so that an upload that was cut off goes on where it stopped."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from mmfusion.retrieval.milvus.columns import ID_FIELD, VECTOR_FIELD, Column
from mmfusion.retrieval.milvus.connection import Connection
from mmfusion.retrieval.milvus.description import CollectionDescription
from mmfusion.retrieval.table_rows import row_blocks

# Products per request: a few MB, far from what Milvus takes at once.
BATCH_ROWS = 500
_PART_ROWS, _MAX_PARTS = 10_000, 1_000


def part_rows_of(count: int) -> int:
    """Products per part, so that the digests of all parts stay short."""
    return max(_PART_ROWS, -(-count // _MAX_PARTS))


def digest_of(table: pa.Table) -> str:
    """Digest of the ids, weights and metadata of products."""
    digest = hashlib.sha256()
    for batch in row_blocks(table):
        # A batch by itself is without the values of its dictionaries.
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, batch.schema) as writer:
            writer.write_batch(batch)
        digest.update(stream.getvalue())
    return digest.hexdigest()


def upload(
    connection: Connection,
    blocks: Iterable[np.ndarray],
    table: pa.Table,
    columns: tuple[Column, ...],
    description: CollectionDescription,
) -> CollectionDescription:
    """Brings all products into a collection, but for the parts that its description says are there.

    Args:
        connection: To the collection.
        blocks: Vectors (n, D) float32, of N rows in all.
        table: Products, N rows.
        columns: Its columns.
        description: Of the collection.

    Returns:
        The description with all parts.

    Raises:
        MilvusError: Milvus refuses.
        ValueError: There are more or fewer vectors than products.
    """
    parts, start = list(description.parts), 0
    with tqdm(total=len(table), desc=f"uploading to {connection.collection}", unit="product") as bar:
        for number, part in enumerate(_regrouped(blocks, description.part_rows)):
            rows = table.slice(start, len(part))
            if len(rows) < len(part):
                raise ValueError(
                    f"more than {len(table)} product embeddings for {len(table)} product ids; pass one each"
                )
            digest = hashlib.sha256(part.tobytes()).hexdigest()[:16]
            if parts[number : number + 1] == [digest]:
                bar.update(len(part))
            else:
                for first in range(0, len(part), BATCH_ROWS):
                    upsert(connection, part[first : first + BATCH_ROWS], rows.slice(first, BATCH_ROWS), columns)
                    bar.update(min(BATCH_ROWS, len(part) - first))
                parts[number : number + 1] = [digest]
                description = replace(description, parts=tuple(parts))
                connection.ask("alter_collection_properties", properties=description.as_properties())
            start += len(part)
    if start != len(table):
        raise ValueError(f"{start} product embeddings for {len(table)} product ids; pass one each")
    return description


def upsert(connection: Connection, vectors: np.ndarray, table: pa.Table, columns: tuple[Column, ...]) -> None:
    """Adds products, or replaces those that have the same ids."""
    named: dict[str, list[Any]] = {ID_FIELD: table.column(ID_FIELD).to_pylist(), VECTOR_FIELD: list(vectors)}
    named.update({column.field: column.stored(table) for column in columns if column.field is not None})
    rows = [dict(zip(named, values, strict=True)) for values in zip(*named.values(), strict=True)]
    connection.change("upsert", data=rows)


def _regrouped(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same rows in blocks of `size`, but for the last."""
    held: list[np.ndarray] = []
    count = 0
    for block in blocks:
        while len(block):
            taken, block = block[: size - count], block[size - count :]
            held.append(taken)
            count += len(taken)
            if count == size:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)
