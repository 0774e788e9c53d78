"""What a folder of embedded products holds: `manifest.json`, written last, names its shards and what made them."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmfusion.embedding.precision import FloatArray
from mmfusion.embedding.shard import MadeOf, ShardError, read_table, read_vectors
from mmfusion.files import replace_text, sha256_of
from mmfusion.retrieval.products import MODALITIES

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ShardEntry:
    """A shard: `file` in the folder, its number of `rows`, and the `sha256` (hex) of the file."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        schema_version: Version of the folder's layout.
        made_of: What the vectors depend on beside the products.
        model: Folder name or Hub id of the model.
        model_revision: Commit of the model on the Hub, or None.
        catalogue: Folder name or Hub id of the catalogue.
        split: Split whose products these are; None: all.
        rows: Number of products.
        shards: In the order of the catalogue, as far as it goes.
        created_by: Software that embedded.
        photo_decoder: Version of the decoder that all photos are read alike by; 1 where it was not written yet.
    """

    schema_version: int
    made_of: MadeOf
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
        replace_text(folder / MANIFEST, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None if it has none.

    Raises:
        ShardError: It is damaged, or of a later layout.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text("utf-8"))
        if fields["schema_version"] != SCHEMA_VERSION:
            raise ShardError(
                f"{path} has schema version {fields['schema_version']}, this mmfusion reads {SCHEMA_VERSION}; update "
                "mmfusion, or embed into another --output"
            )
        shards = tuple(ShardEntry(**entry) for entry in fields.pop("shards"))
        return Manifest(made_of=MadeOf(**fields.pop("made_of")), shards=shards, **fields)
    except ShardError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} is damaged ({error!r}); remove it and run embed.py again") from error


class EmbeddedCatalogue:
    """Read access to a folder that embed.py wrote."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path) -> "EmbeddedCatalogue":
        """Opens a folder.

        Raises:
            FileNotFoundError: There is no manifest, so that it is not finished, or no such folder.
            ShardError: The manifest is damaged.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise FileNotFoundError(f"{folder} holds no finished embeddings (no {MANIFEST}); run embed.py --output …")
        return cls(folder, manifest)

    def __len__(self) -> int:
        return self.manifest.rows

    def check(self) -> None:
        """Compares the shards with their checksums.

        Raises:
            ShardError: One is missing or differs.
        """
        for entry in self.manifest.shards:
            check_shard(self.folder, entry)

    def shards(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Tables of the shards: `product_id`, `content`, `vector`, `modality_weights` and, of int8, `scale`."""
        for entry in self.manifest.shards:
            yield read_table(self.folder / entry.file, columns)

    def vectors(self) -> Iterator[FloatArray]:
        """Vectors (n, D) float32, shard by shard."""
        columns = ["vector", *(["scale"] if self.manifest.made_of.vector_type == "int8" else [])]
        for table in self.shards(columns):
            yield read_vectors(table, self.manifest.made_of)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all shards."""
        return pa.chunked_array([chunk for table in self.shards([name]) for chunk in table.column(name).chunks])

    def modality_weights(self) -> FloatArray:
        """Shares of text and photo of all products, (N, 2) float32."""
        weights = self.column("modality_weights").combine_chunks()
        return np.stack([weights.field(name).to_numpy(zero_copy_only=False) for name in MODALITIES], axis=1)


def entry_of(path: Path) -> ShardEntry:
    """The entry of a shard that is on disk."""
    return ShardEntry(path.name, len(read_table(path, ["content"])), sha256_of(path))


def sound_shards(folder: Path) -> dict[str, ShardEntry]:
    """Entries of the manifest whose files are there, by file, each compared with its checksum.

    Raises:
        ShardError: The manifest is damaged, or a checksum differs.
    """
    manifest = read_manifest(folder)
    there = [entry for entry in manifest.shards if (folder / entry.file).is_file()] if manifest else []
    for entry in there:
        check_shard(folder, entry)
    return {entry.file: entry for entry in there}


def check_shard(folder: Path, entry: ShardEntry) -> None:
    """Raises a ShardError where a shard is missing or its checksum differs."""
    path = folder / entry.file
    if not path.is_file():
        raise ShardError(f"{path} is missing; run embed.py again, which embeds its products anew")
    found = sha256_of(path)
    if found != entry.sha256:
        raise ShardError(
            f"{path} has the checksum {found[:12]}…, the manifest says {entry.sha256[:12]}…; remove the file and run "
            "embed.py again, which embeds its products anew"
        )
