"""Making a collection, or going on with one whose upload was cut off."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from mmfusion.retrieval.milvus.columns import ID_FIELD, MAX_BYTES, VECTOR_FIELD, Column, Nested
from mmfusion.retrieval.milvus.connection import Connection, MilvusError, is_file, pymilvus
from mmfusion.retrieval.milvus.description import CollectionDescription, read_description

_FIELD_TYPES = {
    pa.bool_(): "BOOL",
    pa.int8(): "INT8",
    pa.int16(): "INT16",
    pa.int32(): "INT32",
    pa.int64(): "INT64",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    Nested: "JSON",
}
_KINDS_IN_FILES = ("FLAT", "HNSW", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8")


def find_description(connection: Connection) -> CollectionDescription | None:
    """The description of the collection; None if there is no such collection.

    Raises:
        MilvusError: It is not ours, or damaged.
    """
    if not connection.ask("has_collection"):
        return None
    return read_description(connection.ask("describe_collection").get("properties", {}), connection.place)


def kind_of_index(uri: str, wanted: str | None) -> str:
    """The kind of index that is asked of Milvus; None: exact in a file, and the server's choice on a server.

    Raises:
        ValueError: Milvus Lite does not have it, which it says of an upload only when it is opened again.
    """
    if not is_file(uri):
        return wanted or "AUTOINDEX"
    if wanted is not None and wanted not in _KINDS_IN_FILES:
        raise ValueError(
            f"index_type {wanted!r} is none that a file of Milvus Lite has; give one of {', '.join(_KINDS_IN_FILES)}, "
            "or the address of a server"
        )
    return wanted or "FLAT"


def prepare_collection(
    connection: Connection,
    wanted: CollectionDescription,
    columns: Sequence[Column],
    index_params: Mapping[str, Any],
    overwrite: bool,
) -> CollectionDescription:
    """An empty collection, or one that holds parts of the same upload.

    Args:
        connection: Says which one.
        wanted: What it will say about itself.
        columns: Its columns.
        index_params: Parameters of the index that it will have.
        overwrite: Whether it may take the place of one that is there.

    Returns:
        The description with the parts that are there.

    Raises:
        MilvusError: There is another one that must not be replaced, or Milvus refuses.
    """
    found = find_description(connection)
    if found is not None:
        same = _is_same_upload(found, wanted)
        if same and found.parts:
            return found
        # One without parts is made anew, as it may have been cut off before it had its vector index.
        if not overwrite and not same:
            held = "an index" if found.complete else "what was uploaded of other products or of another model"
            raise MilvusError(
                f"the {connection.place} holds {held}; pass overwrite=True to replace it, or name another collection"
            )
        connection.ask("drop_collection")
    _create(connection, wanted, columns, index_params)
    return wanted


def _is_same_upload(found: CollectionDescription, wanted: CollectionDescription) -> bool:
    return not found.complete and replace(found, parts=(), created_by="") == replace(wanted, parts=(), created_by="")


def _create(
    connection: Connection, description: CollectionDescription, columns: Sequence[Column], params: Mapping[str, Any]
) -> None:
    library = pymilvus()
    schema = library.MilvusClient.create_schema(
        auto_id=False, enable_dynamic_field=False, description="Product embeddings of mmfusion"
    )
    kinds = library.DataType
    schema.add_field(ID_FIELD, kinds.VARCHAR, is_primary=True, max_length=MAX_BYTES)
    schema.add_field(VECTOR_FIELD, kinds.FLOAT_VECTOR, dim=description.dimension)
    for column in columns:
        if column.field is not None:
            kind = _FIELD_TYPES[column.storage]
            length = {"max_length": MAX_BYTES} if kind == "VARCHAR" else {}
            told = f"{column.struct}: {column.name}"
            schema.add_field(column.field, kinds[kind], nullable=True, description=told, **length)
    index = library.MilvusClient.prepare_index_params()
    index.add_index(VECTOR_FIELD, index_type=description.index_type, metric_type="IP", params=dict(params))
    connection.ask(
        "create_collection",
        schema=schema,
        index_params=index,
        # Each client sees what it has changed itself, at once.
        consistency_level="Session",
        properties=description.as_properties(),
    )
