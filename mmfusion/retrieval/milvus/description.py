"""What a collection says about itself, in a property of it."""

import base64
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from mmfusion.retrieval.milvus.connection import MilvusError

SCHEMA_VERSION = 1
PROPERTY = "mmfusion.index"


@dataclass(frozen=True)
class CollectionDescription:
    """What the property `mmfusion.index` of a collection says.

    Attributes:
        schema_version: Version of the collection's layout.
        dimension: Of the embeddings.
        model_fingerprint: Identifies the model that made the embeddings; queries must come from the same one.
        index_type: Kind of index in Milvus.
        search_params: Run-time parameters of searches, for example {"ef": 128}.
        products_schema: Arrow schema of the table beside the vectors (base64).
        created_by: Software that made the collection.
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
    complete: bool = False
    source: str = ""
    part_rows: int = 0
    parts: tuple[str, ...] = field(default=())

    @property
    def schema(self) -> pa.Schema:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.products_schema)))

    def as_properties(self) -> dict[str, str]:
        """The property that holds the description."""
        return {PROPERTY: json.dumps(asdict(self), separators=(",", ":"))}


def encoded_schema(schema: pa.Schema) -> str:
    """An Arrow schema as text."""
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode()


def read_description(properties: dict[str, str], place: str) -> CollectionDescription:
    """The description of a collection.

    Args:
        properties: All properties of the collection.
        place: The collection, for error messages.

    Raises:
        MilvusError: It is not ours, damaged, or of another layout.
    """
    if PROPERTY not in properties:
        raise MilvusError(f"the {place} was not made by mmfusion, so that its model is not known; name another one")
    try:
        fields = json.loads(properties[PROPERTY])
        version = fields["schema_version"]
        if version != SCHEMA_VERSION:
            raise MilvusError(
                f"the {place} has schema version {version}, this mmfusion reads {SCHEMA_VERSION}; update mmfusion or "
                "build the collection again"
            )
        return CollectionDescription(**{**fields, "parts": tuple(fields["parts"])})
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, MilvusError):
            raise
        raise MilvusError(f"the description of the {place} is damaged ({error!r}); build it again") from error
