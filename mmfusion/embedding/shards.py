"""A folder of embedded products: shards in Parquet, and `manifest.json`, written last, which names them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.embedding.content import Digests
from mmfusion.files import replace_text, sha256_of, whole_file
from mmfusion.model.errors import MMFusionError
from mmfusion.retrieval.products import MODALITIES, weights_column

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_PROVENANCE = b"mmfusion.made_of"
_ARROW_TYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}

VectorType = Literal["float32", "float16", "int8", "binary"]
VECTOR_TYPES: tuple[VectorType, ...] = get_args(VectorType)
FloatArray = npt.NDArray[np.float32]


class ShardError(MMFusionError):
    """A file of embedded products is damaged, or was made by something else than expected."""


class PackedVectors(NamedTuple):
    """`values` (N, D) float32, float16 or int8, or (N, D / 8) uint8; and `scale` (N,) float32 of int8, else None."""

    values: npt.NDArray[np.generic]
    scale: FloatArray | None = None


def pack(vectors: FloatArray, kind: VectorType) -> PackedVectors:
    """Vectors (N, D) float32 -> fewer bytes.

    int8 spreads each vector by itself over -127 to 127, so that no calibration is needed and one product's bytes never
    depend on another's. binary keeps signs.

    Raises:
        ValueError: Binary vectors are wanted of a dimension that is not a multiple of 8.
    """
    if kind == "binary":
        check_binary(vectors.shape[1])
        return PackedVectors(np.packbits(vectors > 0, axis=1))
    if kind == "int8":
        scale = np.abs(vectors).max(axis=1) / 127
        steps = np.divide(vectors, scale[:, None], out=np.zeros_like(vectors), where=scale[:, None] > 0)
        return PackedVectors(np.rint(steps).astype(np.int8), scale.astype(np.float32))
    return PackedVectors(vectors.astype(kind))


def unpack(packed: PackedVectors, kind: VectorType) -> FloatArray:
    """What `pack` left of vectors, (N, D) float32; binary ones get length 1."""
    if kind == "binary":
        signs = np.unpackbits(packed.values.astype(np.uint8), axis=1).astype(np.float32) * 2 - 1
        unit: FloatArray = (signs / np.sqrt(max(signs.shape[1], 1))).astype(np.float32)
        return unit
    vectors = packed.values.astype(np.float32)
    return vectors if packed.scale is None else vectors * packed.scale[:, None]


def check_binary(dimension: int) -> None:
    """Raises a ValueError for a dimension whose bits do not fill bytes."""
    if dimension % 8:
        raise ValueError(
            f"binary vectors of dimension {dimension} do not fill bytes; use a dimension divisible by 8, or int8."
        )


@dataclass(frozen=True)
class Provenance:
    """What vectors depend on other than the product. A folder holds vectors of one `Provenance` only.

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


def shard_name(provenance: Provenance, ids: Sequence[str], contents: Digests) -> str:
    """File name of a shard: a hash of all that its vectors depend on, except the batches they were computed in."""
    digest = hashlib.sha256(json.dumps([asdict(provenance), list(ids)]).encode())
    digest.update(np.ascontiguousarray(contents).tobytes())
    return f"shard-{digest.hexdigest()[:24]}.parquet"


def write_shard(
    path: Path, provenance: Provenance, ids: Sequence[str], contents: Digests, vectors: FloatArray, weights: FloatArray
) -> None:
    """Writes a shard, whole or not at all.

    Args:
        path: The file.
        provenance: What the vectors depend on.
        ids: N product ids.
        contents: (N, 2) uint64 digests.
        vectors: (N, D) float32, packed as `provenance` says.
        weights: (N, 2) float32, shares of text and photo.

    Raises:
        ShardError: A vector is NaN or infinite; names the product.
    """
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ShardError(
            f"the vector of product {ids[int(finite.argmin())]!r} holds a NaN or an infinite number; check the "
            "model and this product, or embed with --hardware.precision 32-true"
        )
    packed = pack(vectors, provenance.vector_type)
    flat = pa.array(packed.values.reshape(-1), _ARROW_TYPES[provenance.vector_type])
    columns = {
        "product_id": pa.array(list(ids), pa.string()),
        "content": pa.array([row.tobytes() for row in contents], pa.binary(16)),
        "vector": pa.FixedSizeListArray.from_arrays(flat, packed.values.shape[1]),
    }
    if packed.scale is not None:
        columns["scale"] = pa.array(packed.scale)
    columns["modality_weights"] = weights_column(weights)
    write_table(path, pa.table(columns).replace_schema_metadata({_PROVENANCE: json.dumps(asdict(provenance)).encode()}))


def write_table(path: Path, table: pa.Table) -> None:
    """Writes the table of a shard, whole or not at all."""
    with whole_file(path) as file:
        # Vectors hardly compress, and readers map what is not compressed.
        pq.write_table(table, file, compression="none", use_dictionary=False)


def read_shard(path: Path, columns: list[str] | None = None) -> tuple[Provenance, pa.Table]:
    """What the vectors of a shard depend on, and its columns.

    Raises:
        ShardError: The file is damaged.
    """
    try:
        table = pq.read_table(path, columns=columns)
        return Provenance(**json.loads(table.schema.metadata[_PROVENANCE])), table
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise ShardError(
            f"{path} is damaged, or no shard of embedded products ({error}); remove it and run mmfusion embed again"
        ) from error


def read_contents(table: pa.Table) -> Digests:
    """Digests (N, 2) of a shard."""
    raw = b"".join(table.column("content").to_pylist())
    return np.frombuffer(raw, dtype=np.uint64).reshape(len(table), 2)


@dataclass(frozen=True)
class ShardEntry:
    """A shard: `file` in the folder, its number of `rows`, and the `sha256` (hex) of the file."""

    file: str
    rows: int
    sha256: str


def entry_of(path: Path) -> ShardEntry:
    """The entry of a shard that is on disk."""
    return ShardEntry(path.name, len(read_shard(path, ["content"])[1]), sha256_of(path))


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        schema_version: Version of the folder's layout.
        provenance: What the vectors depend on other than the products.
        model: Folder name or Hub id of the model.
        model_revision: Commit of the model on the Hub, or None.
        catalogue: Folder name or Hub id of the catalogue.
        split: Split whose products these are; None: all.
        rows: Number of products.
        shards: In the order of the catalogue, as far as it goes.
        created_by: Software that embedded.
        photo_decoder: Version of the photo decoder; 1 in manifests that do not hold it.
    """

    schema_version: int
    provenance: Provenance
    model: str
    model_revision: str | None
    catalogue: str
    split: str | None
    rows: int
    shards: tuple[ShardEntry, ...]
    created_by: str
    photo_decoder: int = 1

    def write(self, folder: Path) -> None:
        """Replaces the manifest of a folder."""
        fields = {"made_of" if name == "provenance" else name: value for name, value in asdict(self).items()}
        replace_text(folder / MANIFEST, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


class EmbeddedCatalogue:
    """Read access to a folder that mmfusion embed wrote."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path) -> "EmbeddedCatalogue":
        """Opens a folder.

        Raises:
            FileNotFoundError: There is no such folder, or no manifest in it, so that it is not finished.
            ShardError: The manifest is damaged, or of a later layout.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no finished embeddings (no {MANIFEST}); run `mmfusion embed`")
        try:
            fields = json.loads(path.read_text("utf-8"))
            version = fields["schema_version"]
            if version == SCHEMA_VERSION:
                shards = tuple(ShardEntry(**entry) for entry in fields.pop("shards"))
                manifest = Manifest(provenance=Provenance(**fields.pop("made_of")), shards=shards, **fields)
                return cls(Path(folder), manifest)
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(f"{path} is damaged ({error!r}); remove it and run mmfusion embed again") from error
        raise ShardError(
            f"{path} has schema version {version}, this mmfusion reads {SCHEMA_VERSION}; update mmfusion, or embed "
            "into another --output"
        )

    def __len__(self) -> int:
        return self.manifest.rows

    def check(self, entries: Iterable[ShardEntry] | None = None) -> None:
        """Compares shards, by default all, with their checksums.

        Raises:
            ShardError: One is missing or differs.
        """
        for entry in self.manifest.shards if entries is None else entries:
            path = self.folder / entry.file
            found = sha256_of(path) if path.is_file() else "of no file"
            if found != entry.sha256:
                raise ShardError(
                    f"{path} has the checksum {found[:12]}…, the manifest says {entry.sha256[:12]}…; remove the file "
                    "and run mmfusion embed again, which embeds its products again"
                )

    def shards(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Tables of the shards: `product_id`, `content`, `vector`, `modality_weights` and, of int8, `scale`."""
        for entry in self.manifest.shards:
            yield read_shard(self.folder / entry.file, columns)[1]

    def vectors(self) -> Iterator[FloatArray]:
        """Vectors (n, D) float32, shard by shard."""
        kind = self.manifest.provenance.vector_type
        for table in self.shards(["vector", "scale"] if kind == "int8" else ["vector"]):
            values = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
            scale = table.column("scale").to_numpy() if kind == "int8" else None
            yield unpack(PackedVectors(values.reshape(len(table), -1), scale), kind)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all shards."""
        return pa.chunked_array([chunk for table in self.shards([name]) for chunk in table.column(name).chunks])

    def modality_weights(self) -> FloatArray:
        """Shares of text and photo of all products, (N, 2) float32."""
        weights = self.column("modality_weights").combine_chunks()
        return np.stack([weights.field(name).to_numpy(zero_copy_only=False) for name in MODALITIES], axis=1)
