"""Embedding a catalogue: what is missing, and nothing else, whatever killed the job before."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.cut_texts import log_cut_texts
from mmfusion.data.tables import ProductTable, Rows, text_lengths
from mmfusion.embedding.content import content_digests
from mmfusion.embedding.manifest import SCHEMA_VERSION, EmbeddedCatalogue, Manifest, entry_of, sound_shards
from mmfusion.embedding.note import find_products
from mmfusion.embedding.plan import NewShard, plan, settle
from mmfusion.embedding.precision import VectorType, check_binary
from mmfusion.embedding.shard import MadeOf
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.model.photos_mmfusion import DECODER
from mmfusion.retrieval.embedding import check_width, looks_at_photos
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.index_files import created_by

log = logging.getLogger("mmfusion")


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


class EmbeddingJob:
    """Brings a folder of embedded products up to date with a catalogue: `find`, then an engine, then `finish`.

    Attributes:
        products: All products that are wanted, from `find` on.
        made_of: What their vectors depend on beside them.
    """

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
                that many, or binary vectors are
                wanted of a routed model or of a dimension that is no multiple of 8.
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
        self.table.photos &= looks_at_photos(model, text_lengths(catalogue, processor.template_columns)[rows])
        self.made_of = describe(model, processor, settings, precision)

    def find(self) -> list[NewShard]:
        """What has to be embedded, as shards to compute in any order.

        Raises:
            ShardError: A shard in the folder is damaged, or was made otherwise.
        """
        self.sound = sound_shards(self.folder)
        # By product, as one that has lost its text must not make all others new to a tower of texts.
        photos_beside_text = self.model.config.fusion != "text_only"
        contents = content_digests(self.table, self.rows, photos_beside_text=photos_beside_text)
        self.products = find_products(self.catalogue, self.rows, contents)
        found = plan(self.folder, self.products, self.made_of, self.settings.shard_size)
        log.info(
            "%s products: %s to embed, %s embedded already; %s vectors of changed or removed products to drop",
            *(f"{n:,}" for n in (len(self.rows), found.missing, len(self.rows) - found.missing, found.dropped)),
        )
        if found.missing:
            log_cut_texts(self.table, self.rows)
        return found.new

    def finish(self) -> EmbeddedCatalogue:
        """Drops what is gone and writes the manifest, once the shards that `find` named are in the folder.

        Raises:
            RuntimeError: One of them is not.
        """
        found = plan(self.folder, self.products, self.made_of, self.settings.shard_size)
        if found.missing:
            raise RuntimeError(
                f"{found.missing} products are not in any shard of {self.folder}, although all ranks or workers are "
                "done; is the folder on a file system that they all share? Run the same command again to go on."
            )
        shards = settle(self.folder, self.made_of, found)
        entries = tuple(self.sound.get(path.name) or entry_of(path) for path in shards)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            made_of=self.made_of,
            model=self.model_name,
            model_revision=getattr(self.model.config, "_commit_hash", None),
            catalogue=self.catalogue.name,
            split=self.split,
            rows=sum(entry.rows for entry in entries),
            shards=entries,
            created_by=created_by(),
            photo_decoder=DECODER,
        )
        if manifest.rows != len(self.rows):
            raise RuntimeError(f"{manifest.rows} vectors for {len(self.rows)} products; please report this bug.")
        manifest.write(self.folder)
        for path in self.folder.glob("shard-*.parquet"):
            if path not in shards:
                path.unlink()
        return EmbeddedCatalogue(self.folder, manifest)


def describe(model: MMFusionModel, processor: MMFusionProcessor, settings: EmbeddingSettings, precision: str) -> MadeOf:
    """What vectors depend on beside the products; `precision` is that of the forward pass, as Lightning names it."""
    return MadeOf(
        model_fingerprint=model_fingerprint(model, processor),
        image_backend=type(processor.image_processor).__name__,
        precision=precision,
        dimension=_dimension(model, settings),
        vector_type=settings.vector_type,
    )


def _dimension(model: MMFusionModel, settings: EmbeddingSettings) -> int:
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
    return dimension
