"""A file of embedded products: ids, digests of their contents, vectors and modality weights."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.embedding.content import Digests
from mmfusion.embedding.precision import FloatArray, PackedVectors, VectorType, pack, unpack
from mmfusion.files import whole_file
from mmfusion.model.errors import MMFusionError
from mmfusion.retrieval.products import weights_column

_MADE_OF = b"mmfusion.made_of"
_ARROW_TYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}


class ShardError(MMFusionError):
    """A file of embedded products is damaged, or is not what it is taken for."""


@dataclass(frozen=True)
class MadeOf:
    """What vectors depend on beside the product; those of different ones are never in one folder.

    Attributes:
        model_fingerprint: Of weights, config and preprocessing.
        image_backend: Class that resizes and normalises photos.
        precision: Of the forward pass, as Lightning names it.
        dimension: Components of a vector.
        vector_type: How vectors are stored: float32, float16, int8 or binary.
    """

    model_fingerprint: str
    image_backend: str
    precision: str
    dimension: int
    vector_type: VectorType


def shard_name(made_of: MadeOf, ids: Sequence[str], contents: Digests) -> str:
    """File name of a shard, which tells all that its vectors depend on but for the batches they were computed in."""
    digest = hashlib.sha256(json.dumps([asdict(made_of), list(ids)]).encode())
    digest.update(np.ascontiguousarray(contents).tobytes())
    return f"shard-{digest.hexdigest()[:24]}.parquet"


def write_shard(
    path: Path, made_of: MadeOf, ids: Sequence[str], contents: Digests, vectors: FloatArray, weights: FloatArray
) -> None:
    """Writes a shard, whole or not at all.

    Args:
        path: The file.
        made_of: What the vectors depend on.
        ids: N product ids.
        contents: (N, 2) uint64 digests.
        vectors: (N, D) float32, packed as `made_of` says.
        weights: (N, 2) float32, shares of text and photo.

    Raises:
        ShardError: A vector is NaN or infinite; the product is named.
    """
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ShardError(
            f"the vector of product {ids[int(finite.argmin())]!r} holds a NaN or an infinite number; check the "
            "model and this product, or embed with --hardware.precision 32-true"
        )
    packed = pack(vectors, made_of.vector_type)
    columns = {
        "product_id": pa.array(list(ids), pa.string()),
        "content": pa.array([row.tobytes() for row in contents], pa.binary(16)),
        "vector": _vector_column(packed, made_of.vector_type),
    }
    if packed.scale is not None:
        columns["scale"] = pa.array(packed.scale)
    columns["modality_weights"] = weights_column(weights)
    _write(path, pa.table(columns).replace_schema_metadata({_MADE_OF: json.dumps(asdict(made_of)).encode()}))


def keep_rows(source: Path, target: Path, keep: npt.NDArray[np.bool_]) -> None:
    """Writes some rows of a shard as another one; vectors stay as they are, bit for bit."""
    table = read_table(source)
    _write(target, table.filter(pa.array(keep)))


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A shard's columns.

    Raises:
        ShardError: The file is damaged.
    """
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise ShardError(f"{path} is damaged ({error}); remove it and run embed.py again") from error


def read_made_of(path: Path) -> MadeOf:
    """What a shard says its vectors depend on."""
    try:
        return MadeOf(**json.loads(pq.read_schema(path).metadata[_MADE_OF]))
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{path} is no shard of embedded products, or damaged ({error}); remove it") from error


def read_vectors(table: pa.Table, made_of: MadeOf) -> FloatArray:
    """Vectors (N, D) float32 of a shard, unpacked."""
    column = table.column("vector").combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    scale = table.column("scale").to_numpy() if "scale" in table.column_names else None
    return unpack(PackedVectors(values, scale), made_of.vector_type)


def read_contents(table: pa.Table) -> Digests:
    """Digests (N, 2) of a shard."""
    raw = b"".join(table.column("content").to_pylist())
    return np.frombuffer(raw, dtype=np.uint64).reshape(len(table), 2)


def _vector_column(packed: PackedVectors, kind: VectorType) -> pa.Array:
    flat = pa.array(packed.values.reshape(-1), _ARROW_TYPES[kind])
    return pa.FixedSizeListArray.from_arrays(flat, packed.values.shape[1])


def _write(path: Path, table: pa.Table) -> None:
    with whole_file(path) as file:
        # Vectors hardly compress, and readers map what is not compressed.
        pq.write_table(table, file, compression="none", use_dictionary=False)
