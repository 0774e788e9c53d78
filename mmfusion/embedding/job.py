"""Embedding a catalogue: finds what is missing, which an engine then computes, whatever killed the job before."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mmfusion.allocator import keep_freed_memory
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.loaders import WorkersLoader
from mmfusion.data.tables import ProductTable, Rows, log_cut_texts, text_lengths
from mmfusion.embedding.content import Digests, content_digests
from mmfusion.embedding.shards import (
    MANIFEST,
    SCHEMA_VERSION,
    EmbeddedCatalogue,
    FloatArray,
    Manifest,
    Provenance,
    ShardError,
    VectorType,
    check_binary,
    entry_of,
    read_contents,
    read_shard,
    shard_name,
    write_shard,
    write_table,
)
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.model.photos import DECODER
from mmfusion.retrieval.embedding import looks_at_photos
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.parts import PartBatch, PartEncoder, PartTable, part_batches, shown_parts
from mmfusion.retrieval.search import check_width
from mmfusion.retrieval.vectors import created_by

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingSettings:
    """How a catalogue is embedded.

    Attributes:
        vector_type: How vectors are stored.
        truncate_dim: Components to keep of each view; None keeps all.
        shard_size: Products per shard, which is also what a kill costs at most per rank.
        batch_size: Products per forward pass.
        num_workers: Processes per rank that decode photos.
        allow_untrained_width: Whether `truncate_dim` may be a width that the model was not trained for.
    """

    vector_type: VectorType = "float32"
    truncate_dim: int | None = None
    shard_size: int = 4096
    batch_size: int = 64
    num_workers: int = 0
    allow_untrained_width: bool = False

    def __post_init__(self) -> None:
        for name, least in (("shard_size", 1), ("batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {least}.")


class NewShard(NamedTuple):
    """A shard to compute: its file `name`, and the (n,) int64 `places` of its products in the job, ascending."""

    name: str
    places: npt.NDArray[np.int64]


class OldShard(NamedTuple):
    """A shard on disk: which of its rows are wanted, (n,) bool, and the place of the first of them in the job."""

    path: Path
    keep: npt.NDArray[np.bool_]
    first: int


class EmbeddingJob:
    """Brings a folder of embedded products up to date with a catalogue: `find`, then an engine, then `finish`.

    Attributes:
        provenance: What the vectors depend on other than the products.
        contents: (P, 2) digests of what the products show; set by `find`, or by an engine on other ranks.
    """

    contents: Digests

    def __init__(
        self,
        folder: Path,
        model: MMFusionModel,
        processor: MMFusionProcessor,
        catalogue: Catalogue,
        rows: Rows,
        settings: EmbeddingSettings,
        *,
        precision: str = "32-true",
        model_name: str = "",
        split: str | None = None,
    ) -> None:
        """Prepares a job.

        Args:
            folder: Where shards and manifest go.
            model: The model; it is set to evaluation mode.
            processor: The model's.
            catalogue: Products.
            rows: (P,) int64 ascending product rows to embed.
            settings: Sizes and types.
            precision: Of the forward pass, as Lightning names it.
            model_name: For the manifest.
            split: For the manifest.

        Raises:
            ValueError: There is no product, the model has fewer components than `truncate_dim` or was not trained for
                that many, or binary vectors are wanted of a routed model or of a dimension that is not a multiple of 8.
        """
        if not len(rows):
            raise ValueError(f"{catalogue!r} has no product to embed; check --split and the column 'split'.")
        self.folder = folder
        self.model = model.eval()
        self.settings = settings
        self.catalogue = catalogue
        self.rows = rows
        self.model_name, self.split = model_name, split
        self.table = ProductTable(catalogue, processor)
        self.lengths = text_lengths(catalogue, processor.template_columns)
        self.table.photos &= looks_at_photos(model, self.lengths[rows])
        self.provenance = describe(model, processor, settings, precision)

    def ids(self, places: npt.NDArray[np.int64] | slice = slice(None)) -> pa.ChunkedArray:
        """Ids of the products at some places of the job, in Arrow: Python objects would take ten times the bytes."""
        return self.catalogue.products.data.column("product_id").take(pa.array(self.rows[places])).cast(pa.string())

    def find(self) -> list[NewShard]:
        """What has to be embedded, as shards to compute in any order.

        Raises:
            ShardError: A shard in the folder is damaged, or was made by another model, precision or type of vector.
        """
        listed = EmbeddedCatalogue.open(self.folder) if (self.folder / MANIFEST).is_file() else None
        there = [entry for entry in listed.manifest.shards if (self.folder / entry.file).is_file()] if listed else []
        if listed:
            listed.check(there)
        self._checked = {entry.file: entry for entry in there}
        # By product, as one that has lost its text must not make all others new to a tower of texts.
        photos_beside_text = self.model.config.fusion != "text_only"
        self.contents = content_digests(self.table, self.rows, photos_beside_text=photos_beside_text)
        old, new = self._compare()
        missing, dropped = sum(len(one.places) for one in new), sum(int((~one.keep).sum()) for one in old)
        logger.info(
            "%s products: %s to embed, %s embedded already; %s vectors of changed or removed products to drop",
            *(f"{n:,}" for n in (len(self.rows), missing, len(self.rows) - missing, dropped)),
        )
        if missing:
            log_cut_texts(self.table, self.rows)
        return new

    def finish(self) -> EmbeddedCatalogue:
        """Drops what is gone and writes the manifest, once the shards that `find` named are in the folder.

        Raises:
            RuntimeError: One of them is not.
        """
        old, new = self._compare()
        if new:
            raise RuntimeError(
                f"{sum(len(one.places) for one in new)} products are not in any shard of {self.folder}, although all "
                "ranks or workers are done; is the folder on a file system that they all share? Run the same command "
                "again to continue."
            )
        shards = [self._without_dropped(one) for one in sorted(old, key=lambda one: one.first)]
        entries = tuple(self._checked.get(path.name) or entry_of(path) for path in shards)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            provenance=self.provenance,
            model=self.model_name,
            model_revision=getattr(self.model.config, "_commit_hash", None),
            catalogue=self.catalogue.name,
            split=self.split,
            rows=sum(entry.rows for entry in entries),
            shards=entries,
            created_by=created_by(),
            photo_decoder=DECODER,
        )
        manifest.write(self.folder)
        for path in self.folder.glob("shard-*.parquet"):
            if path not in shards:
                path.unlink()
        return EmbeddedCatalogue(self.folder, manifest)

    def _compare(self) -> tuple[list[OldShard], list[NewShard]]:
        """Shards in the folder that hold something wanted, whether or not a manifest names them, and those to compute.

        A product is embedded again if no shard has its id with its content. Those are cut into shards in the order of
        the catalogue: after a kill the cuts fall where they would have fallen, as finished shards leave no part of one
        behind.
        """
        taken = np.zeros(len(self.rows), dtype=bool)
        old = []
        for path, places, same in self._found_again():
            keep = same & ~taken[places]
            taken[places[keep]] = True
            if keep.any():
                old.append(OldShard(path, keep, int(places[keep].min())))
        missing = np.flatnonzero(~taken)
        cuts = [
            missing[start : start + self.settings.shard_size]
            for start in range(0, len(missing), self.settings.shard_size)
        ]
        return old, [
            NewShard(shard_name(self.provenance, self.ids(cut).to_pylist(), self.contents[cut]), cut) for cut in cuts
        ]

    def _found_again(self) -> list[tuple[Path, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        """Shards; for each row, the place of its product in the job (0: none), and whether it is there, unchanged."""
        paths, ids, contents = sorted(self.folder.glob("shard-*.parquet")), [], []
        for path in paths:
            provenance, table = read_shard(path, ["product_id", "content"])
            if provenance != self.provenance:
                pairs = ((name, getattr(provenance, name), value) for name, value in vars(self.provenance).items())
                changed = ", ".join(f"{name} was {old!r}, now {new!r}" for name, old, new in pairs if old != new)
                raise ShardError(
                    f"{self.folder} holds vectors that were made in another way ({changed}), and queries fit one model "
                    f"only; give another --output, or remove {MANIFEST} and the shards"
                )
            ids += table.column("product_id").chunks
            contents.append(read_contents(table))
        if not paths:
            return []
        # All shards at once, as looking up means hashing the ids of the whole catalogue.
        found = pc.index_in(pa.chunked_array(ids, pa.string()), value_set=self.ids().combine_chunks())
        places = found.fill_null(0).to_numpy().astype(np.int64)
        same = found.is_valid().to_numpy() & (self.contents[places] == np.concatenate(contents)).all(axis=1)
        cuts = np.cumsum([len(part) for part in contents])[:-1]
        return list(zip(paths, np.split(places, cuts), np.split(same, cuts), strict=True))

    def _without_dropped(self, shard: OldShard) -> Path:
        """The shard, or a new one with what is wanted of it; vectors stay as they are, bit for bit."""
        if shard.keep.all():
            return shard.path
        table = read_shard(shard.path)[1].filter(pa.array(shard.keep))
        name = shard_name(self.provenance, table.column("product_id").to_pylist(), read_contents(table))
        if not (self.folder / name).exists():
            write_table(self.folder / name, table)
        return self.folder / name


def describe(
    model: MMFusionModel, processor: MMFusionProcessor, settings: EmbeddingSettings, precision: str
) -> Provenance:
    """What vectors depend on other than the products; `precision` is that of the forward pass, in Lightning's words."""
    config = model.config
    check_width(config, settings.truncate_dim, settings.allow_untrained_width)
    dimension = model.shorten(torch.zeros(1, config.vector_dim), settings.truncate_dim).shape[1]
    if settings.vector_type == "binary":
        if config.query_router:
            raise ValueError(
                "binary vectors keep signs alone, while queries of a model with a query router weigh its views by "
                "their lengths; use int8, or a model without a router."
            )
        check_binary(dimension)
    return Provenance(
        model_fingerprint=model_fingerprint(model, processor),
        image_backend=type(processor.image_processor).__name__,
        precision=precision,
        dimension=dimension,
        vector_type=settings.vector_type,
    )


def distinct(contents: Digests) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first place of each content (D,), ascending, and for each of n places which of those has its content (n,)."""
    _, first, same = np.unique(contents, axis=0, return_index=True, return_inverse=True)
    places = np.sort(first)
    # Older NumPy gives the inverse a second axis.
    return places, np.searchsorted(places, first[same.reshape(-1)])


def shard_batches(
    table: ProductTable, rows: Rows, contents: Digests, lengths: npt.NDArray[np.int64], batch_size: int
) -> list[PartBatch]:
    """The batches of a shard, shortest texts first; of products that show the same text and photos, the first alone.

    Batches are made within a shard, because the products next to it change the last digits of a vector: so neither the
    engine nor the number of ranks nor the shards that are there already change what comes out.

    Args:
        table: Of the products.
        rows: (n,) int64 catalogue rows of the shard, ascending.
        contents: (n, 2) digests of what the products show.
        lengths: Characters of the texts of all products of the catalogue.
        batch_size: Products per batch of the encoders.
    """
    rows = rows[distinct(contents)[0]]
    return part_batches(rows, shown_parts(table, rows), lengths[rows], batch_size)


def product_loader(table: ProductTable, batches: Iterable[PartBatch], num_workers: int) -> WorkersLoader:
    """Loads batches of products, decoding photos in `num_workers` processes."""
    return WorkersLoader(
        PartTable(table),
        sampler=batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


# Catalogue rows (n,) of a batch, vectors (n, D) and modality weights (n, 2).
EmbeddedBatch = tuple[Rows, FloatArray, FloatArray]


def embed_batch(
    encoder: PartEncoder, batch: PartBatch, inputs: dict[str, Any], truncate_dim: int | None
) -> EmbeddedBatch:
    """Vectors of a batch of a `product_loader`, on the CPU; the same for every engine."""
    rows = inputs.pop("product_rows")
    keep_freed_memory()
    output: Any = encoder(batch, inputs)
    vectors = encoder.model.shorten(output.product_embeds.float(), truncate_dim)
    return rows.cpu().numpy(), vectors.cpu().numpy(), output.modality_weights.float().cpu().numpy()


def write_batches(
    path: Path, provenance: Provenance, ids: list[str], contents: Digests, batches: Sequence[EmbeddedBatch]
) -> None:
    """Writes a shard from all of its `shard_batches`, whole or not at all; errors are those of `write_shard`."""
    rows, vectors, weights = (np.concatenate(part) for part in zip(*batches, strict=True))
    order = np.argsort(rows)[distinct(contents)[1]]
    write_shard(path, provenance, ids, contents, vectors[order], weights[order])
