"""Embedded products as files for the bulk interface of OpenSearch, with the mapping of their index."""

import datetime
import decimal
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmfusion.embedding.documents import ExportError, check_columns, documents
from mmfusion.embedding.shards import EmbeddedCatalogue
from mmfusion.files import whole_folder
from mmfusion.retrieval.products import MODALITIES

# Of OpenSearch: the longest id, and the most components of a vector.
_MOST_ID_BYTES, _MOST_COMPONENTS = 512, 16_000
# A component of a unit vector, to less than a float of 32 bits tells apart near 1.
_DECIMALS = 8


def write_opensearch(
    folder: Path, embedded: EmbeddedCatalogue, metadata: pa.Table, name: str, file_bytes: int
) -> list[Path]:
    """Writes `index.json`, the body that makes the index, and `bulk-00001.ndjson` …, whole or not at all.

    Loading a file twice changes nothing, as documents have the ids of products.

    Args:
        folder: Is replaced by the new files.
        embedded: Vectors, which become floats.
        metadata: Columns of the catalogue, in the order of the vectors.
        name: Of the index.
        file_bytes: Size above which the next file begins.

    Returns:
        Paths of the bulk files.

    Raises:
        ExportError: A vector is too long, or an id, or a column has the name of one of ours.
    """
    check_columns(metadata)
    dimension = embedded.manifest.provenance.dimension
    if dimension > _MOST_COMPONENTS:
        raise ExportError(f"Vectors have {dimension} components, and OpenSearch takes {_MOST_COMPONENTS} at most.")
    with whole_folder(folder, files=None, overwrite=True) as new:
        body = index_body(metadata.schema, dimension, embedded.manifest.provenance.model_fingerprint)
        (new / "index.json").write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", "utf-8")
        number, size, file = 0, file_bytes, None
        for line in _lines(embedded, metadata, name):
            if size >= file_bytes:
                if file is not None:
                    file.close()
                number, size = number + 1, 0
                file = (new / f"bulk-{number:05d}.ndjson").open("wb")
            assert file is not None
            size += file.write(line)
        if file is not None:
            file.close()
    return sorted(folder.glob("bulk-*.ndjson"))


def index_body(schema: pa.Schema, dimension: int, fingerprint: str) -> dict[str, Any]:
    """Settings and mapping of an index: texts that are searched and filtered, typed columns, and vectors in HNSW."""
    method = {"name": "hnsw", "engine": "faiss", "space_type": "innerproduct"}
    properties: dict[str, Any] = {
        "product_id": {"type": "keyword"},
        "embedding": {"type": "knn_vector", "dimension": dimension, "method": method},
        **{f"{name}_weight": {"type": "float"} for name in MODALITIES},
        **{field.name: _mapping(field.type) for field in schema},
    }
    return {
        "settings": {"index": {"knn": True}},
        "mappings": {"_meta": {"model_fingerprint": fingerprint}, "properties": properties},
    }


def _mapping(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        # A field of OpenSearch holds one value or several.
        return _mapping(kind.value_type)
    if pa.types.is_dictionary(kind):
        return _mapping(kind.value_type)
    if pa.types.is_boolean(kind):
        return {"type": "boolean"}
    if pa.types.is_integer(kind):
        return {"type": "unsigned_long" if kind == pa.uint64() else "long"}
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return {"type": "double"}
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return {"type": "date"}
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}}
    if pa.types.is_struct(kind):
        return {"properties": {field.name: _mapping(field.type) for field in kind}}
    return {"type": "object", "enabled": False}


def _lines(embedded: EmbeddedCatalogue, metadata: pa.Table, name: str) -> Iterator[bytes]:
    """An action with its document, which belong into one file."""
    for ids, vectors, columns in documents(embedded, metadata):
        rounded = np.round(vectors.astype(np.float64), _DECIMALS).tolist()
        for row, product_id in enumerate(ids):
            if len(product_id.encode()) > _MOST_ID_BYTES:
                raise ExportError(
                    f"The id {product_id[:40]!r}… has {len(product_id.encode())} bytes, and OpenSearch takes "
                    f"{_MOST_ID_BYTES} at most; give shorter ids."
                )
            values = {column: own[row] for column, own in columns.items() if own[row] is not None}
            document = {"product_id": product_id, **values, "embedding": rounded[row]}
            action = {"index": {"_index": name, "_id": product_id}}
            yield b"".join(
                json.dumps(one, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain).encode()
                + b"\n"
                for one in (action, document)
            )


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    return str(value)
