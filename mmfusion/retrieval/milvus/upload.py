"""Bringing products into a collection, part by part, so that an upload that was cut off continues where it stopped."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from mmfusion.lexical import tokenize
from mmfusion.retrieval.milvus.columns import (
    BM25_FIELD,
    FIELD_TYPES,
    ID_FIELD,
    MAX_BYTES,
    VECTOR_FIELD,
    WORDS_FIELD,
    Column,
)
from mmfusion.retrieval.milvus.connection import Connection, MilvusError, is_file, pymilvus
from mmfusion.retrieval.products import row_blocks, texts_of

SCHEMA_VERSION = 1
PROPERTY = "mmfusion.index"
# Products per request: a few MB, far from what Milvus takes at once.
BATCH_ROWS = 500
# As many as the longest text of Milvus holds.
_MAX_WORDS = 3_500
_PART_ROWS, _MAX_PARTS = 10_000, 1_000
_KINDS_IN_FILES = ("FLAT", "HNSW", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8")
# Seconds for the index of all products to be built.
_LOAD_TIMEOUT = 3600.0


@dataclass(frozen=True)
class CollectionDescription:
    """What the property `mmfusion.index` of a collection says.

    Attributes:
        schema_version: Version of the collection's layout.
        dimension: Of the embeddings.
        model_fingerprint: Identifies the model that made the embeddings; queries must come from the same one.
        index_type: Kind of index in Milvus.
        search_params: Run-time parameters of searches, for example {"ef": 128}.
        products_schema: Arrow schema of the table next to the vectors (base64).
        created_by: Software that made the collection.
        lexical: Columns whose words are searched; empty if none are.
        complete: Whether all products are there.
        source: Digest of the products that are being uploaded; empty afterwards.
        part_rows: Number of products per part of an upload.
        parts: Digests of the parts that are there, while an upload is not complete.
    """

    schema_version: int
    dimension: int
    model_fingerprint: str
    index_type: str
    search_params: dict[str, Any]
    products_schema: str
    created_by: str
    lexical: tuple[str, ...] = ()
    complete: bool = False
    source: str = ""
    part_rows: int = 0
    parts: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """Of the table next to the vectors."""
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.products_schema)))

    def as_properties(self) -> dict[str, str]:
        """The property that holds the description."""
        return {PROPERTY: json.dumps(asdict(self), separators=(",", ":"))}


def find_description(connection: Connection) -> CollectionDescription | None:
    """The description of the collection; None if there is no such collection.

    Raises:
        MilvusError: It is not ours, damaged, or of another layout.
    """
    if not connection.ask("has_collection"):
        return None
    text = connection.ask("describe_collection").get("properties", {}).get(PROPERTY)
    if text is None:
        raise MilvusError(
            f"the {connection.place} was not made by mmfusion, so that its model is not known; name another one"
        )
    try:
        fields = json.loads(text)
        version = fields["schema_version"]
        if version == SCHEMA_VERSION:
            lists = {name: tuple(fields.get(name, ())) for name in ("parts", "lexical")}
            return CollectionDescription(**{**fields, **lists})
    except (ValueError, KeyError, TypeError) as error:
        raise MilvusError(
            f"the description of the {connection.place} is damaged ({error!r}); build it again"
        ) from error
    raise MilvusError(
        f"the {connection.place} has schema version {version}, this mmfusion reads {SCHEMA_VERSION}; update mmfusion "
        "or build the collection again"
    )


def kind_of_index(uri: str, wanted: str | None) -> str:
    """The kind of index that is asked of Milvus; None: exact in a file, and the server's choice on a server.

    Raises:
        ValueError: Milvus Lite does not have it, which it says of an upload only when it is opened again.
    """
    if is_file(uri) and wanted not in (None, *_KINDS_IN_FILES):
        raise ValueError(
            f"index_type {wanted!r} is not supported in a file of Milvus Lite; give one of "
            f"{', '.join(_KINDS_IN_FILES)}, or the address of a server"
        )
    return wanted or ("FLAT" if is_file(uri) else "AUTOINDEX")


def upload(
    connection: Connection,
    blocks: Iterable[np.ndarray],
    table: pa.Table,
    columns: Sequence[Column],
    wanted: CollectionDescription,
    index_params: Mapping[str, Any],
    overwrite: bool,
) -> CollectionDescription:
    """Brings products into a new collection, or those that are missing into one that holds parts of the same upload.

    Args:
        connection: To the collection.
        blocks: Vectors (n, D) float32, of N rows in all, as [`checked_blocks`] gives them.
        table: Products, N rows.
        columns: Its columns.
        wanted: What the collection will say about itself; what concerns the upload is filled in here.
        index_params: Parameters of its index.
        overwrite: Whether it may take the place of one that is there.

    Returns:
        The description of the whole collection.

    Raises:
        MilvusError: There is another one that must not be replaced, or Milvus rejects a request.
    """
    # So many products that the digests of all parts stay short.
    part_rows = max(_PART_ROWS, -(-len(table) // _MAX_PARTS))
    wanted = replace(wanted, source=_digest_of(table), part_rows=part_rows)
    description = _begun(connection, wanted, columns, index_params, overwrite)
    parts = list(description.parts)
    with tqdm(total=len(table), desc=f"uploading to {connection.collection}", unit="product") as bar:
        for number, part in enumerate(_regrouped(blocks, description.part_rows)):
            start = number * description.part_rows
            digest = hashlib.sha256(part.tobytes()).hexdigest()[:16]
            if parts[number : number + 1] != [digest]:
                upsert(connection, part, table.slice(start, len(part)), columns, wanted.lexical, bar.update)
                parts[number : number + 1] = [digest]
                properties = replace(description, parts=tuple(parts)).as_properties()
                connection.ask("alter_collection_properties", properties=properties)
            bar.update(start + len(part) - bar.n)
    connection.ask("flush")
    # Of an upload that went on, nobody has loaded it since.
    connection.ask("load_collection", timeout=_LOAD_TIMEOUT)
    count = count_products(connection)
    if count != len(table):
        raise MilvusError(
            f"the {connection.place} holds {count} products after {len(table)} were uploaded; see that nothing else "
            "writes to it, and run the upload again with overwrite=True"
        )
    whole = replace(description, complete=True, source="", parts=())
    connection.ask("alter_collection_properties", properties=whole.as_properties())
    return whole


def upsert(
    connection: Connection,
    vectors: np.ndarray,
    table: pa.Table,
    columns: Sequence[Column],
    lexical: Sequence[str],
    observe: Callable[[int], Any] = lambda count: None,
) -> None:
    """Adds products, or replaces those that have the same ids; `observe` gets the size of each request."""
    for start in range(0, len(table), BATCH_ROWS):
        rows = table.slice(start, BATCH_ROWS)
        named: dict[str, Any] = {ID_FIELD: rows.column(ID_FIELD).to_pylist()}
        named[VECTOR_FIELD] = list(vectors[start : start + BATCH_ROWS])
        named.update({one.field: one.stored(rows) for one in columns if one.field is not None})
        if lexical:
            named[WORDS_FIELD] = [spelled(tokenize(text)) for text in texts_of(rows, lexical)]
        data = [dict(zip(named, values, strict=True)) for values in zip(*named.values(), strict=True)]
        connection.change("upsert", data=data)
        observe(len(rows))


def spelled(words: Sequence[str]) -> str:
    """Words as tokenizers of Milvus leave them whole: a digest of each, of at most 3,500."""
    digests = (hashlib.blake2b(word.encode(), digest_size=8).hexdigest() for word in words[:_MAX_WORDS])
    return " ".join(f"w{digest}" for digest in digests)


def count_products(connection: Connection) -> int:
    """Number of products in the collection."""
    return int(connection.ask("query", filter="", output_fields=["count(*)"])[0]["count(*)"])


def _begun(
    connection: Connection,
    wanted: CollectionDescription,
    columns: Sequence[Column],
    index_params: Mapping[str, Any],
    overwrite: bool,
) -> CollectionDescription:
    """Makes an empty collection, or finds one that holds parts of the same upload; its description."""
    found = find_description(connection)
    if found is not None:
        same = not found.complete and replace(found, parts=(), created_by="") == replace(wanted, created_by="")
        if same and found.parts:
            return found
        # One without parts is created again, as it may have been cut off before it had its vector index.
        if not overwrite and not same:
            held = "an index" if found.complete else "what was uploaded of other products or of another model"
            raise MilvusError(
                f"the {connection.place} holds {held}; pass overwrite=True to replace it, or name another collection"
            )
        connection.ask("drop_collection")
    library = pymilvus()
    schema = library.MilvusClient.create_schema(
        auto_id=False, enable_dynamic_field=False, description="Product embeddings of mmfusion"
    )
    schema.add_field(ID_FIELD, library.DataType.VARCHAR, is_primary=True, max_length=MAX_BYTES)
    schema.add_field(VECTOR_FIELD, library.DataType.FLOAT_VECTOR, dim=wanted.dimension)
    for column in columns:
        if column.field is not None:
            kind = library.DataType[FIELD_TYPES.get(column.storage, "JSON")]
            length = {"max_length": MAX_BYTES} if kind == library.DataType.VARCHAR else {}
            schema.add_field(column.field, kind, nullable=True, description=f"{column.struct}: {column.name}", **length)
    index = library.MilvusClient.prepare_index_params()
    index.add_index(VECTOR_FIELD, index_type=wanted.index_type, metric_type="IP", params=dict(index_params))
    if wanted.lexical:
        kinds, words = library.DataType, {"max_length": MAX_BYTES, "enable_analyzer": True}
        schema.add_field(WORDS_FIELD, kinds.VARCHAR, analyzer_params={"tokenizer": "standard"}, **words)
        schema.add_field(BM25_FIELD, kinds.SPARSE_FLOAT_VECTOR)
        schema.add_function(library.Function("bm25", library.FunctionType.BM25, [WORDS_FIELD], [BM25_FIELD]))
        params = {"bm25_k1": 1.2, "bm25_b": 0.75}
        index.add_index(BM25_FIELD, index_type="SPARSE_INVERTED_INDEX", metric_type="BM25", params=params)
    connection.ask(
        "create_collection",
        schema=schema,
        index_params=index,
        # Each client sees what it has changed itself, at once.
        consistency_level="Session",
        properties=wanted.as_properties(),
    )
    return wanted


def _digest_of(table: pa.Table) -> str:
    """Digest of the ids, weights and metadata of products."""
    digest = hashlib.sha256()
    for batch in row_blocks(table):
        digest.update(batch.serialize())
    return digest.hexdigest()


def _regrouped(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same rows in blocks of `size`, except for the last."""
    held: list[np.ndarray] = []
    for block in blocks:
        rest = np.concatenate([*held, block])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
        held = [rest]
    yield from (one for one in held if len(one))
